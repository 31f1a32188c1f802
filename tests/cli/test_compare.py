"""learned-aug compare, on folders of digits."""

import csv
import shutil

import PIL.Image
import pytest

from learned_aug import Augmenter
from learned_aug.cli.main import main

SHORT = ["--model", "cnn4", "--size", "28", "--gray", "--baseline", "crop", "--steps", "4", "--device", "cpu"]


@pytest.fixture(scope="session")
def compared(images, tmp_path_factory):
    """What a short comparison leaves."""
    out = tmp_path_factory.mktemp("compared") / "out"
    arms = ["--arms", "baseline", "prior", "--seeds", "2"]
    assert main(["compare", *SHORT, "--data", str(images), "--out", str(out), *arms]) == 0
    return out


def rows(out):
    with open(out / "compare.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_compare_leaves_table_trainings_and_picture(compared):
    assert [(row["arm"], row["seed"]) for row in rows(compared)] == [
        ("baseline", "0"),
        ("prior", "0"),
        ("baseline", "1"),
        ("prior", "1"),
    ]
    assert all(0 <= float(row["error"]) <= 1 for row in rows(compared))
    assert "2 seeds" in (compared / "compare.txt").read_text()
    with PIL.Image.open(compared / "compare.png") as picture:
        assert picture.width == 700


def test_more_seeds_and_arms_are_added_without_repeating_what_is_there(compared, images, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "trainings").glob("*-?.json")}
    assert len(kept) == 4
    arms = ["--arms", "baseline", "prior", "Cutout", "--seeds", "3"]
    assert main(["compare", *SHORT, "--data", str(images), "--out", str(out), *arms]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert len(rows(out)) == 9
    assert [row["error"] for row in rows(out) if row["seed"] == "0"][:2] == [r["error"] for r in rows(compared)[:2]]
    shown = capsys.readouterr()
    assert "The best arm is " in shown.out
    assert "training 9/9" in shown.err


def test_the_networks_of_the_winning_arm_can_be_loaded(compared, images, tmp_path, capsys):
    (weights,) = (path.parent for path in (compared / "trainings").glob("prior-*/model.safetensors"))
    out = tmp_path / "mine"
    arguments = ["--arms", "baseline", "--augmenter", str(weights), "--seeds", "1"]
    assert main(["compare", *SHORT, "--data", str(images), "--out", str(out), *arguments]) == 0
    shown = capsys.readouterr().out
    assert weights.name in shown
    assert "One seed: no interval" in shown
    if f"The best arm is {weights.name}" in shown:
        assert Augmenter.from_pretrained(out / "augmenter").config.channels == 1
    else:
        assert not (out / "augmenter").exists()


def test_the_augmenter_of_a_fit_is_never_replaced(compared, images, tmp_path, failing):
    (weights,) = (path.parent for path in (compared / "trainings").glob("prior-*/model.safetensors"))
    mine = tmp_path / "augmenter"
    shutil.copytree(weights, mine)
    options = ["--data", images, "--out", tmp_path, "--arms", "baseline", "--augmenter", mine]
    assert "holds an augmenter/ that no comparison wrote" in failing("compare", *SHORT, *options)
    assert Augmenter.from_pretrained(mine).config.channels == 1


def test_networks_chosen_on_the_test_images_are_said_to_have_an_optimistic_error_there(images, tmp_path, capsys):
    arguments = ["--data", str(images), "--out", str(tmp_path), "--arms", "prior", "--seeds", "1"]
    for _ in range(2):
        assert main(["compare", *SHORT, *arguments]) == 0
        for text in (capsys.readouterr().out, (tmp_path / "compare.txt").read_text()):
            assert "the lowest error on these test images, which makes this error optimistic" in text
        (tmp_path / "augmenter" / "holiday.png").touch()
        (tmp_path / "augmenter" / "README.md").write_text("filled in")
    assert main(["compare", *SHORT, *arguments]) == 0  # which replaces the weights, and keeps what people wrote
    left = sorted(path.name for path in (tmp_path / "augmenter").iterdir())
    assert left == ["README.old.md", "README.old2.md", "config.json", "holiday.png", "model.safetensors"]


def test_an_augmenter_takes_no_other_arms_name(compared, images, tmp_path, failing):
    (weights,) = (path.parent for path in (compared / "trainings").glob("prior-*/model.safetensors"))
    for names in (["prior"], ["a/mine", "b/mine"]):
        more = []
        for name in names:
            shutil.copytree(weights, tmp_path / name)
            more += ["--augmenter", tmp_path / name]
        told = failing("compare", *SHORT, "--data", images, "--out", tmp_path / "out", "--arms", "baseline", *more)
        assert f"{names[-1]} must have a name of its own" in told


def test_what_cannot_be_compared_is_said_in_one_line(some, compared, images, tmp_path, failing):
    def refused(*more, data=images, out=tmp_path / "out"):
        return failing("compare", *SHORT, "--data", data, "--out", out, *more)

    (tmp_path / "file").touch()
    assert "file is a file; give a folder for results" in refused(out=tmp_path / "file")
    assert "is for images of 3 channels; leave --gray out" in refused("--augmenter", "cifar10-wrn")
    assert "mean must be that of the augmenter's images" in refused("--augmenter", "mnist-cnn4", "--mean", "0.3")
    assert not list((tmp_path / "out").glob("trainings/*-0.json"))
    assert "arms must be of baseline, TrivialAugmentWide" in refused("--arms", "magic")
    assert "--seeds must be at least 1" in refused("--seeds", "0")
    assert "--jobs must be at least 1" in refused("--jobs", "0")
    assert "--size must be the side of the images in pixels, got 0" in refused("--size", "0")
    assert "config.steps was 4, is 5" in refused("--steps", "5", "--arms", "baseline", out=compared)
    assert "cnn4 does not take images of 1 x 64 x 64" in refused("--size", "64")
    shutil.rmtree(some / "test")
    assert "has no test/, on which arms are compared" in refused(data=some)


def test_a_validation_set_is_needed_only_by_arms_that_read_it(some, tmp_path, failing):
    shutil.rmtree(some / "val")
    options = [*SHORT, "--data", str(some), "--seeds", "1"]
    assert main(["compare", *options, "--out", str(tmp_path / "out"), "--arms", "baseline", "steered"]) == 0
    line = failing("compare", *options, "--out", tmp_path / "other", "--arms", "baseline", "steered-influence")
    assert "has train/ and no val/" in line
    shutil.rmtree(some / "train")
    line = failing("compare", *options, "--out", tmp_path / "none", "--arms", "baseline")
    assert "no train/" in line
