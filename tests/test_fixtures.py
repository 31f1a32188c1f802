"""Files that an earlier release wrote, which this one and all later ones must read to the same values."""

import json

import pytest
import torch

from learned_aug import Augmenter, LearnedAugment
from learned_aug.fit.checkpoint import MAGIC, Checkpoint, CheckpointError, decode
from tests.fixtures.make import CONFIGS, HERE, TREE, drawn

VERSIONS = sorted(CONFIGS)


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_of_every_version_draw_as_when_they_were_written(version):
    folder = HERE / f"weights-{version}"
    augmenter = Augmenter.from_pretrained(folder)
    expected = json.loads((folder / "expected.json").read_text())
    got = drawn(augmenter)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(got[name]), torch.tensor(values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_configurations_of_every_version_keep_their_fields(version):
    config = Augmenter.from_pretrained(HERE / f"weights-{version}").config
    assert {name: getattr(config, name) for name in CONFIGS[version]} == CONFIGS[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_of_every_version_are_saved_and_read_again_to_the_same_bits(version, tmp_path):
    augmenter = Augmenter.from_pretrained(HERE / f"weights-{version}")
    augmenter.save_pretrained(tmp_path)
    assert drawn(Augmenter.from_pretrained(tmp_path)) == drawn(augmenter)
    assert LearnedAugment.from_pretrained(tmp_path).augmenter.config == augmenter.config


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def test_a_checkpoint_is_read_to_the_same_tree(tmp_path):
    data = (HERE / "fit-1.ckpt").read_bytes()
    assert data.startswith(MAGIC + b"\n")
    assert equal(decode(data), TREE)
    (tmp_path / "fit-1.ckpt").write_bytes(data)
    assert equal(Checkpoint(tmp_path, TREE["fingerprint"]).read(), TREE["state"])
    with pytest.raises(CheckpointError, match="torch was 2, is 3"):
        Checkpoint(tmp_path, {"seed": "0", "torch": "3"}).read()


def test_the_frozen_files_are_small():
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.suffix != ".pyc" and path.is_file()) < 100_000
