"""Every reader of files under damage: the same values, or the package's own error that names the file."""

import functools
import io
import shutil

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learned_aug import Augmenter, CheckpointError, WeightsError
from learned_aug.cli.classifier import load_checkpoint
from learned_aug.cli.images import ImageError, check_headers, read_image
from learned_aug.fit.checkpoint import Checkpoint
from learned_aug.weights.card import CardFacts, published, render
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME, encode
from tests.fixtures.make import HERE, TREE
from tests.test_fixtures import equal

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "cut", "end", "repeat", "zero"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def damaged(data, edits):
    """Bytes after some edits, each at a share of the length."""
    for kind, place, junk in edits:
        k = int(place * len(data))
        head, tail = data[:k], data[k:]
        data = {
            "flip": head + bytes([tail[0] ^ (1 << junk[0] % 8)]) + tail[1:] if tail else head,
            "set": head + junk + tail[len(junk) :],
            "insert": head + junk + tail,
            "cut": head + tail[junk[0] + 1 :],
            "end": head,
            "repeat": head + tail[:64] + tail,
            "zero": head + bytes(len(tail[:64])) + tail[64:],
        }[kind]
    return data


def outcome(read, *errors):
    """What a reader gives, and what it says where it refuses."""
    try:
        return read(), None
    except errors as error:
        return None, str(error)


@functools.cache
def card():
    augmenter = Augmenter.from_pretrained(HERE / "weights-2")
    files = encode(augmenter.config, augmenter.state_dict())
    return render(CardFacts(data="Bäume"), augmenter.config, files, "./w")["README.md"]


@bounded
@given(EDITS)
@pytest.mark.parametrize("version", [1, 2])
def test_weights(tmp_path, version, edits):
    shutil.copytree(HERE / f"weights-{version}", tmp_path / "w", dirs_exist_ok=True)
    good = Augmenter.from_pretrained(tmp_path / "w").state_dict()
    path = tmp_path / "w" / WEIGHTS_NAME
    path.write_bytes(damaged(path.read_bytes(), edits))
    read, text = outcome(lambda: Augmenter.from_pretrained(tmp_path / "w"), WeightsError)
    if text is None:
        assert equal(dict(read.state_dict()), dict(good))
    else:
        assert str(tmp_path / "w") in text


@bounded
@given(EDITS)
@pytest.mark.parametrize("version", [1, 2])
def test_config(tmp_path, version, edits):
    shutil.copytree(HERE / f"weights-{version}", tmp_path / "w", dirs_exist_ok=True)
    path = tmp_path / "w" / CONFIG_NAME
    path.write_bytes(damaged(path.read_bytes(), edits))
    augmenter, text = outcome(lambda: Augmenter.from_pretrained(tmp_path / "w"), WeightsError)
    if text is None:  # another number that a person could have written there: then all of it is as it says
        config = augmenter.config
        assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
        if max(config.encoder_side, config.control_points, config.size) <= 512:
            noise = torch.full((1, len(config.stages), config.noise_dim), 0.3)
            assert augmenter(torch.zeros(1, config.channels, 12, 12), noise).shape == (1, config.channels, 12, 12)
    else:
        assert str(tmp_path / "w") in text


@bounded
@given(EDITS)
def test_checkpoint(tmp_path, edits):
    data = (HERE / "fit-1.ckpt").read_bytes()
    path = tmp_path / "fit-1.ckpt"
    path.write_bytes(damaged(data, edits))
    reader = Checkpoint(tmp_path, TREE["fingerprint"])
    state, text = outcome(reader.read, CheckpointError)
    reader.close()
    if text is None:
        assert equal(state, TREE["state"])
    else:
        assert str(tmp_path) in text
        assert "delete the folder" in text


@bounded
@given(EDITS)
def test_card(tmp_path, edits):
    data = damaged(card(), edits)
    folder = tmp_path / "w"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_bytes(data)
    files, text = outcome(lambda: published(folder, "org/name"), WeightsError)
    if text is None:
        assert "org/name" in files["README.md"].decode() or b'from_pretrained("./w")' not in data
    else:
        assert str(folder / "README.md") in text
        with pytest.raises(UnicodeDecodeError):
            data.decode()


PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8))
FORMATS = {"png": {}, "jpg": {"quality": 90}, "tif": {"compression": "tiff_lzw"}, "bmp": {}, "webp": {}}


@settings(bounded, max_examples=40)
@given(EDITS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_images(tmp_path, suffix, edits):
    buffer = io.BytesIO()
    PICTURE.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **FORMATS[suffix])
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(damaged(buffer.getvalue(), edits))
    for read in (read_image, lambda p: check_headers([p])):
        out, text = outcome(functools.partial(read, path), ImageError)
        if text is None:
            assert out.mode == "RGB" if isinstance(out, PIL.Image.Image) else out[0] > 0
        else:
            assert str(path) in text
            assert "\n" not in text


@bounded
@given(EDITS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_classifiers(tmp_path, suffix, edits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / f"a.{suffix}"
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    if suffix == "pt":
        torch.save({"model": other, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(dict(other), path)
    path.write_bytes(damaged(path.read_bytes(), edits))
    _, text = outcome(lambda: load_checkpoint(model, path), ValueError, OSError)
    if text is None:
        assert all(value.isfinite().all() for value in model.state_dict().values())
    else:
        assert str(path) in text
        assert equal(dict(model.state_dict()), before)
