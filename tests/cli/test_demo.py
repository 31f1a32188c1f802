import json
import re
import subprocess
import sys

import PIL.Image
import pytest
import torch

from learned_aug import LearnedAugment
from learned_aug.cli import demo as demonstration
from learned_aug.cli.main import main
from learned_aug.digits import digits


def test_sample_is_balanced_real_and_disjoint():
    data = digits()
    for part, count in (("train", 600), ("val", 2000), ("test", 2000)):
        images, labels = data[part].tensors
        assert images.shape == (count, 1, 28, 28)
        assert labels.bincount().tolist() == [count // 10] * 10
        assert images.min() == 0
        assert images.max() == 1
    rows = [{bytes(i.numpy()) for i in (data[p].tensors[0] * 255).byte().flatten(1)} for p in ("train", "val", "test")]
    assert len(rows[0] | rows[1] | rows[2]) == sum(map(len, rows))


@pytest.mark.slow
def test_quick_demo_writes_weights_picture_and_the_figures_that_it_prints(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["demo", "--quick", "--seed", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    results = json.loads((out / "results.json").read_text())
    assert results["seed"] == 3
    arms = ["no augmentation", "crop", "crop + prior", "crop + steered"]
    arms += ["crop + fitted"] if results["verdict"].startswith("The fitted") else []
    assert list(results["error"]) == arms
    for arm, errors in results["error"].items():
        assert 0 < errors["test"] < 0.5  # far better than chance, .9
        assert re.search(rf"{re.escape(arm)} +{errors['test']:.2%}", printed.out)
    assert "train: crop + prior: 100/100" in printed.err  # the progress
    assert "test error: share of 2,000 test images that are wrong" in printed.out
    assert results["verdict"] in printed.out
    assert "steered = learned_aug.SteeredDraws(model)" in printed.out.split("Next")[1]
    with PIL.Image.open(out / "digits.png") as picture:
        assert picture.size == (10 * 66 + 2, 8 * 66 + 2)
    image = digits()["test"][0][0]
    augment = LearnedAugment.from_pretrained(out / "augmenter")
    assert not torch.equal(augment(image), augment(image))


def test_weights_are_written_before_all_that_can_fail(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(demonstration, "diversity_grid", broken)
    monkeypatch.setattr(demonstration, "STEPS", 20)
    monkeypatch.setattr(demonstration, "FIT_STEPS", 20)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["augmenter", "results.json"]


def test_folder_that_cannot_be_written_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 1
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert "--out" in error


def test_module_runs_as_a_command_and_explains_itself():
    text = subprocess.run(
        [sys.executable, "-m", "learned_aug", "demo", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert "--quick" in text
    assert "control" in text
