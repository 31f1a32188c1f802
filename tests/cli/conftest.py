"""Real digits written as folders of PNG files, and what a short fit of the command line leaves."""

import shutil

import PIL.Image
import pytest

from learned_aug.cli.main import main
from learned_aug.digits import digits

MODEL = "timm:test_resnet"
COUNTS = {"train": 200, "val": 200, "test": 100}
SHORT = ["--size", "28", "--gray", "--baseline", "crop", "--steps", "2", "--batch-size", "32"]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """train/, val/ and test/ with class folders."""
    root = tmp_path_factory.mktemp("digits")
    for part, count in COUNTS.items():
        for k, (image, label) in enumerate(zip(*digits()[part][:count], strict=True)):
            path = root / part / f"digit {int(label)}"
            path.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray((image[0] * 255).byte().numpy()).save(path / f"{k}.png")
    return root


@pytest.fixture(scope="session")
def fitted(images, tmp_path_factory):
    """What a short fit leaves, with a classifier trained before and others compared after."""
    out = tmp_path_factory.mktemp("out") / "run"
    arguments = ["fit", "--model", MODEL, "--train-steps", "60", "--data", str(images), "--out", str(out), *SHORT]
    assert main([*arguments, "--affine", "0", "--warp", "0.05", "--pretrain-steps", "2"]) == 0
    return out


def arguments(fitted, data, out, *more):
    """A fit of a second or two, of the classifier that `fitted` has."""
    weights = ["--weights", fitted / "classifier.safetensors"]
    return [*map(str, ["fit", "--model", MODEL, *weights, "--data", data, "--out", out, *SHORT, *more])]


@pytest.fixture
def some(images, tmp_path):
    """A copy of the images that a test may spoil."""
    shutil.copytree(images, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def failing(capsys):
    """Give the one line of an error that the user can fix."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        told = [line for line in captured.err.splitlines() if line.startswith("learned-aug: ")]
        lines = [line for line in told if not line.startswith(("learned-aug: warning", "learned-aug: the images are"))]
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        return lines[0].removeprefix("learned-aug: ")

    return run
