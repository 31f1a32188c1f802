"""learned-aug fit on real digits: what it writes and says, and what it checks before the work."""

import json
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
import torch

from learned_aug import Augmenter, AugmenterConfig, LearnedAugment, evaluate
from learned_aug.cli import fit as fitting
from learned_aug.cli.classifier import build_model, load_checkpoint
from learned_aug.cli.folder import open_folders
from learned_aug.cli.main import main
from learned_aug.cli.report import write_weights
from learned_aug.cli.work import check_device
from tests.cli.conftest import COUNTS, MODEL, SHORT, arguments

# Python 3.12 and later warn of every fork beside threads; torch's loader forks by default.
FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# What it writes and says


def test_fit_writes_weights_card_pictures_curves_and_figures(fitted, images):
    assert sorted(path.name for path in fitted.iterdir()) == [
        "augmenter",
        "classifier.safetensors",
        "curves.png",
        "fit.json",
        "strengths.png",
    ]
    for name in ("diversity.png", "traversal.png", "corrected.png"):
        with PIL.Image.open(fitted / "augmenter" / name) as picture:
            assert picture.width > 300
    augment = LearnedAugment.from_pretrained(fitted / "augmenter")
    with PIL.Image.open(next(images.rglob("*.png"))) as image:
        assert augment(image).tobytes() != augment(image).tobytes()


def test_fit_states_its_figures_and_the_card_repeats_them(fitted):
    figures = json.loads((fitted / "fit.json").read_text())
    assert figures["images"] == COUNTS
    assert figures["classes"][3] == "digit 3"
    assert figures["settings"]["maximize.steps"] == 2
    assert figures["augmenter"]["affine"] == 0
    assert figures["augmenter"]["warp"] == 0.05
    assert figures["augmenter"]["color"] == [0, 0.4]
    assert figures["diagnostics"]["prior"]["warp"] == pytest.approx(0.05, rel=0.15)  # as asked
    assert figures["versions"]["torch"] == version("torch")
    assert set(figures["diagnostics"]) == {"prior", "pretrained", "fitted"}
    assert figures["verdict"].startswith(("The fitted networks are used", "The prior is used"))
    assert figures["gain"]["margin"] > 0
    assert figures["s_val"]["converged"]
    assert [set(curves["strengths"]) for curves in figures["strengths"]] == [{"warp", "color"}]
    assert 0 < figures["val_error"] < 0.8  # it learned something
    card = (fitted / "augmenter" / "README.md").read_text()
    assert next(iter(figures["test_error"])) == "baseline"
    assert {"baseline, prior (control)", "baseline, steered prior"} <= set(figures["test_error"])
    for arm, error in figures["test_error"].items():
        assert f"| {arm} | {100 * error:.2f} % | 1 |" in card
    assert f"{figures['val_error']:.2%} error" in card
    assert all(f"({name}.png)" in card for name in ("diversity", "traversal", "corrected"))
    row = " | ".join(f"{value:.3g}" for value in figures["diagnostics"]["fitted"].values())
    assert f"| fitted | {row} |" in card


def test_fit_ends_with_a_legend_the_verdict_and_the_next_command(fitted, some, tmp_path, capsys):
    shutil.rmtree(some / "test")
    assert main(arguments(fitted, some, tmp_path / "out")) == 0
    shown = capsys.readouterr()
    assert "predicted_val_drop +- margin" in shown.out
    assert (
        f", strengths.png.\n\nNext, see over several runs whether it helps, with further images in {some}/test/:"
        in (shown.out)
    )
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["verdict"] in shown.out
    last = shown.out.splitlines()[-1].strip()
    assert last.startswith(f"learned-aug compare --model {MODEL}")
    for option in (f"--data {some}", "--size 28", "--gray", "--baseline crop", str(tmp_path / "out" / "augmenter")):
        assert option in last
    for stage in ("files' headers: 400/400", "evaluation on val: 7/7", "train features: 1/1", "val features: 1/1"):
        assert stage in shown.err


@FORKS
def test_fit_takes_the_checkpoint_that_it_wrote_and_resumes(fitted, images, tmp_path, capsys):
    """Without test/ and --train-steps nothing is compared; the held-out share makes the val/ folder unnecessary."""
    more = ["--val", "0.2", "--checkpoint-dir", tmp_path / "checkpoints", "--workers", "1"]
    results = []
    for name in ("one", "two"):
        assert main(arguments(fitted, images / "train", tmp_path / name, *more)) == 0
        results.append((tmp_path / name / "augmenter" / "model.safetensors").read_bytes())
    assert results[0] == results[1]  # the second was read back
    assert "val has 40 images" in capsys.readouterr().err  # the warnings, a line each
    assert any((tmp_path / "checkpoints").iterdir())
    figures = json.loads((tmp_path / "one" / "fit.json").read_text())
    assert figures["images"] == {"train": 160, "val": 40}
    assert figures["test_error"] == {}
    assert not (tmp_path / "one" / "augmenter" / "corrected.png").exists()


def test_the_next_command_of_a_folder_of_classes_asks_for_train_and_test(images):
    def where(data):
        return fitting._where(SimpleNamespace(args=SimpleNamespace(data=data), data=SimpleNamespace(test=None)))

    data = images / "train"
    assert where(data) == f", with the class folders moved to {data}/train/ and further images in {data}/test/"
    assert where(images) == f", with further images in {images}/test/"


def test_checkpoint_of_a_fit_is_the_classifier_of_its_figures(fitted, images):
    model = build_model(MODEL, 10, 1)
    load_checkpoint(model, fitted / "classifier.safetensors")
    error, _ = evaluate(model, open_folders(images, size=28, gray=True).val)
    assert error == pytest.approx(json.loads((fitted / "fit.json").read_text())["val_error"])


# What is checked before the work


@pytest.fixture
def idle(monkeypatch):
    """Fail a test where the work begins before the mistake is found."""

    def work(*_, **__):
        raise AssertionError("the work has begun")

    for name in ("trained", "predict"):
        monkeypatch.setattr(fitting.Work, name, work)


def test_fit_without_a_trained_classifier_says_how_to_give_one(images, tmp_path, failing):
    error = failing("fit", "--model", MODEL, "--data", images, "--out", tmp_path)
    assert "--weights" in error
    assert "--train-steps" in error


def test_fit_refuses_a_classifier_that_knows_nothing(images, tmp_path, failing):
    torch.save(build_model(MODEL, 10, 1).state_dict(), tmp_path / "fresh.pt")
    options = ["--weights", tmp_path / "fresh.pt", "--data", images, "--out", tmp_path, *SHORT]
    assert "90.0% by chance; check --size, --mean" in failing("fit", "--model", MODEL, *options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--model": "resnet19"}, "torchvision has no classifier 'resnet19'; it has alexnet"),
        ({"--model": "timm:resnet19"}, "timm has no classifier 'timm:resnet19'"),
        ({"--model": "squeezenet1_1", "--weights": None}, "expected a classifier that ends in nn.Linear"),
        ({"--weights": "none.pt"}, "no checkpoint none.pt"),
        ({"--data": "nowhere"}, "no folder nowhere"),
        ({"--val": "0.1"}, "has a folder val/ already"),
        ({"--val": "1.5", "--data": "train"}, "a share of train in (0, 1), got 1.5"),
        ({"--data": "train"}, "has no train/ and val/; make them, or hold out a share with --val 0.1"),
        ({"--data": "train/digit 3"}, "has no train/ and val/"),
        ({"--mean": "0.1 0.2"}, "mean must be 1 or 1 numbers, got 2"),
        ({"--std": "0"}, "std must be of images in [0, 1]"),
        ({"--warp": "0.2,0.1"}, "warp must be a strength >= 0 or a range"),
        ({"--steps": "-1"}, "DropoutConfig.steps must be an integer >= 0, got -1"),
        ({"--train-steps": "0"}, "RetrainConfig.steps must be an integer >= 1, got 0"),
        ({"--head": "body"}, "head='body' must name an nn.Linear"),
        ({"--out": "/dev/null/out"}, "/dev/null/out"),
        ({"--checkpoint-dir": "/dev/null/out"}, "/dev/null/out"),
        ({"--device": "abacus"}, "--device must be one that torch has here, got abacus"),
        ({"--device": "meta"}, "--device must be one that torch has here, got meta"),
        ({"--device": "cuda:7"}, "--device must be one that torch has here, got cuda:7"),
        ({"--workers": "-1"}, "--workers must be 0 or more, got -1"),
        ({"--size": "2"}, "size must be"),
    ],
)
def test_fit_answers_a_mistake_in_one_line_before_the_work(fitted, images, tmp_path, failing, idle, changed, message):
    options = {"--model": MODEL, "--weights": fitted / "classifier.safetensors", "--data": images, "--out": tmp_path}
    options["--train-steps"] = "5"
    options["--size"] = "28"
    for name, value in changed.items():
        inside = name == "--data" and value != "nowhere"
        options[name] = images / value if inside else value
    split = "--mean"
    given = [
        part
        for name, value in options.items()
        if value is not None
        for part in (name, *(str(value).split(" ") if name == split else [str(value)]))
    ]
    assert message in failing("fit", *given, "--gray")


@pytest.mark.parametrize("option", ["--out", "--checkpoint-dir"])
@pytest.mark.parametrize("name", ["mine", "mine/run 1", "."])
def test_results_among_the_class_folders_are_refused_before_a_folder_is_made(images, tmp_path, failing, option, name):
    mine = images / "train" / name
    options = {"--model": MODEL, "--data": images / "train", "--val": "0.3", "--out": tmp_path, option: mine}
    given = [part for pair in options.items() for part in pair]
    assert f"lies among the class folders of {images / 'train'}" in failing("fit", *given, "--train-steps", "5", *SHORT)
    assert not (images / "train" / "mine").exists()
    assert not (images / "train" / "augmenter").exists()


@pytest.mark.parametrize("beside", [[], ["compare.txt"]])
def test_an_augmenter_that_no_fit_wrote_is_refused_before_the_work(fitted, images, tmp_path, failing, idle, beside):
    (tmp_path / "augmenter").mkdir()
    for name in (*beside, "augmenter/model.safetensors"):
        (tmp_path / name).write_text("mine")
    assert "holds an augmenter/ that no fit wrote" in failing(*arguments(fitted, images, tmp_path))
    assert (tmp_path / "augmenter" / "model.safetensors").read_text() == "mine"


def test_a_second_fit_keeps_the_users_files_and_the_card_that_was_filled_in(tmp_path):
    inside = tmp_path / "augmenter"
    inside.mkdir()
    for name in ("holiday.png", "diversity.png", "README.md"):
        (inside / name).write_text(name)
    augmenter = Augmenter(AugmenterConfig(channels=1, size=8))
    for _ in range(2):  # the third fit keeps what the second one did
        write_weights(tmp_path, SimpleNamespace(augmenter=augmenter))
        assert {p.name for p in inside.glob("*.png")} == {"holiday.png"}
        assert (inside / "README.old.md").read_text() == "README.md"
        (inside / "README.md").write_text("of the next")


def test_a_full_disk_is_found_before_the_work(fitted, images, tmp_path, failing, idle, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * 2**20))
    assert "has 10 MiB free, 32 MiB are needed" in failing(*arguments(fitted, images, tmp_path / "out"))


def test_a_long_reason_of_torch_against_a_device_is_cut(monkeypatch):
    def broken(*_, **__):
        raise NotImplementedError("not with arguments from this backend\n" * 100)

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(ValueError, match="got mps") as short:
        check_device("mps")
    assert len(str(short.value)) < 300


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_file_that_is_no_image_is_found_before_the_work(fitted, some, tmp_path, failing, idle, part):
    spoilt = some / part / "digit 3" / "bad.png"
    spoilt.write_bytes(b"GIF89a no picture")
    error = failing(*arguments(fitted, some, tmp_path / "out"))
    assert error.startswith(str(spoilt))
    assert not (tmp_path / "out" / "augmenter").exists()


def test_images_smaller_than_the_size_are_told_before_the_work(fitted, some, tmp_path, capsys):
    shutil.rmtree(some / "test")
    given = arguments(fitted, some, tmp_path / "out")
    given[given.index("--size") + 1] = "64"
    assert main([*given, "--head", "none"]) == 1
    error = capsys.readouterr().err
    assert "their shorter side is 28 px (median of 400), --size is 64, which takes 5.22 times the work" in error


def test_the_next_command_keeps_what_the_fit_was_told_about_the_data():
    told = {"model": "cnn4", "data": Path("my digits"), "size": 28, "gray": True, "val": "0.2", "baseline": "crop"}
    args = SimpleNamespace(**told, workers=0, mean=[0.5], std=[0.25], train_steps=None, out=Path("run"))
    words = shlex.split(fitting._next(args))
    assert words[:2] == ["learned-aug", "compare"]
    options = " ".join(words)
    for option in ("--data my digits", "--size 28 --gray", "--val 0.2", "--baseline crop", "--mean 0.5", "--std 0.25"):
        assert option in options
    assert words[-2:] == ["--augmenter", "run/augmenter"]
    assert "--workers" not in words  # as it is by default
    assert "--steps" not in words
