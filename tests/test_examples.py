"""The examples run, on real digits and with few steps; pipelines are in test_pipelines, publish in weights/test_hub."""

import re
import runpy
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment
from learned_aug.digits import digits

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Run an example as a module; returns its names."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for path in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return lambda name: runpy.run_path(str(EXAMPLES / name))


def weights(folder, **config):
    generator = torch.Generator().manual_seed(0)
    augmenter = Augmenter(AugmenterConfig(**config), generator=generator)
    images = torch.rand(20, augmenter.config.channels, 28, 28, generator=generator)
    augmenter.calibrate_(images, generator=generator).save_pretrained(folder)
    return str(folder)


def test_fit_your_classifier_compares_with_the_control_and_saves(example, tmp_path, capsys):
    main = example("fit_your_classifier.py")["main"]
    compared = main(["--out", str(tmp_path / "aug"), "--steps", "60", "--fit-steps", "2", "--device", "cpu"])
    assert list(compared.errors) == ["crop", "crop, untrained control", "crop, fitted", "crop, steered"]
    assert all(0 < error < 0.8 for (error,) in compared.errors.values())  # .9 by chance
    assert str(compared) in capsys.readouterr().out
    image = digits()["test"][0][0]
    assert not torch.equal(LearnedAugment.from_pretrained(tmp_path / "aug")(image), image)


@pytest.mark.filterwarnings("ignore:val has 60 images")
def test_fit_your_classifier_reads_folders_of_images(example, tmp_path):
    for part in ("train", "val", "test"):
        for k, (image, label) in enumerate(zip(*digits()[part][:60], strict=True)):
            folder = tmp_path / "data" / part / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray((image[0] * 255).byte().numpy()).save(folder / f"{k}.png")
    main = example("fit_your_classifier.py")["main"]
    options = ["--data", str(tmp_path / "data"), "--size", "16", "--steps", "2", "--fit-steps", "1", "--device", "cpu"]
    main([*options, "--out", str(tmp_path / "aug")])
    assert Augmenter.from_pretrained(tmp_path / "aug").config.channels == 3


@pytest.mark.slow
def test_pictures_of_gray_weights_are_all_written_and_small(example, tmp_path, capsys):
    folder = weights(tmp_path / "aug", channels=1, size=28, mean=(0.1,), std=(0.3,))
    example("pictures.py")["main"](["--weights", folder, "--out", str(tmp_path), "--steps", "20", "--count", "3"])
    written = sorted(path.name for path in tmp_path.glob("*.png"))
    assert written == ["corrected.png", "curves.png", "digits.png", "influence.png", "traversal.png"]
    assert capsys.readouterr().out.count("bytes\n") == 5
    assert all(path.stat().st_size < 100_000 for path in tmp_path.glob("*.png"))


def test_pictures_of_color_weights_need_their_data(example, tmp_path, capsys):
    names = example("pictures.py")
    folder = weights(tmp_path / "aug", size=32)
    with pytest.raises(SystemExit):
        names["main"](["--weights", folder, "--out", str(tmp_path)])
    assert "--cifar10" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["torchvision", "folder"])
def test_pictures_of_color_weights(example, tmp_path, layout):
    names = example("pictures.py")
    folder, root = weights(tmp_path / "aug", size=32), tmp_path / "root"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    images = [(PIL.Image.fromarray(image), 0) for image in pixels]
    if layout == "torchvision":
        names["color"].__globals__["CIFAR10"] = lambda root, train: images
    else:
        for k, (image, _) in enumerate(images):
            (root / "test" / f"class {k}").mkdir(parents=True)
            image.save(root / "test" / f"class {k}" / "0.png")
    names["main"](["--weights", folder, "--out", str(tmp_path), "--cifar10", str(root)])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["cifar10-traversal.png", "cifar10.png"]


@pytest.mark.slow
def test_walkthrough_runs_and_makes_the_pictures_that_its_text_shows(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WALKTHROUGH_OUT", str(tmp_path))
    monkeypatch.setenv("WALKTHROUGH_STEPS", "60")
    names = example("walkthrough.py")
    text = (EXAMPLES / "walkthrough.py").read_text()
    shown = set(re.findall(r"^# !\[.*\]\(walkthrough/(.*)\)$", text, flags=re.M))
    assert shown == {path.name for path in tmp_path.glob("*.png")}
    assert shown == {path.name for path in (EXAMPLES / "walkthrough").glob("*.png")}
    assert list(names["errors"]) == ["crops", "untrained control", "fitted"]
    assert all(0 < error < 0.8 for error in names["errors"].values())
    assert torch.corrcoef(torch.stack([names["predicted"], names["actual"]]))[0, 1] > 0.8
    assert "sign right" in capsys.readouterr().out
