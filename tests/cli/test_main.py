"""The command line, on real digits written as folders of PNG files."""

import json
import shutil
import sys
from importlib.metadata import version

import PIL.Image
import pytest
import safetensors.torch
import torch
from huggingface_hub import close_session, constants

from learned_aug import Augmenter, AugmenterConfig, CardFacts, LearnedAugment, list_pretrained
from learned_aug.cli import list as listing
from learned_aug.cli.folder import IMAGENET, build_model, load_checkpoint, open_folders
from learned_aug.cli.main import main
from learned_aug.digits import digits
from learned_aug.training.retrain import evaluate
from tests.weights.fake_hub import Hub

MODEL = "timm:test_resnet"
COUNTS = {"train": 200, "val": 200, "test": 100}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train/, val/ and test/ with class folders."""
    root = tmp_path_factory.mktemp("digits")
    for part, count in COUNTS.items():
        for k, (image, label) in enumerate(zip(*digits()[part][:count], strict=True)):
            path = root / part / f"digit {int(label)}"
            path.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray((image[0] * 255).byte().numpy()).save(path / f"{k}.png")
    return root


SHORT = ["--size", "28", "--gray", "--baseline", "crop", "--pretrain-steps", "2", "--steps", "2", "--batch-size", "32"]
SHORT += ["--warp", "0.05"]


# Python 3.12 and later warn of every fork beside threads; torch's loader forks by default.
FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def fitted(images, tmp_path_factory):
    """What a short fit leaves, with a classifier trained before and others compared after."""
    out = tmp_path_factory.mktemp("out") / "run"
    arguments = ["fit", "--model", MODEL, "--train-steps", "60", "--data", str(images), "--out", str(out), *SHORT]
    assert main(arguments) == 0
    return out


def failing(capsys, *arguments):
    """The one line of an error that the user can fix."""
    assert main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("learned-aug: warning")]
    assert len(lines) == 1
    return lines[0].removeprefix("learned-aug: ")


# fit


def test_fit_writes_weights_card_pictures_curves_and_figures(fitted, images):
    assert sorted(path.name for path in fitted.iterdir()) == [
        "augmenter",
        "classifier.safetensors",
        "curves.png",
        "fit.json",
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
    assert figures["diagnostics"]["untrained"]["warp"] == pytest.approx(0.05, rel=0.1)  # as asked
    assert figures["versions"]["torch"] == version("torch")
    assert set(figures["diagnostics"]) == {"untrained", "pretrained", "fitted"}
    assert figures["s_val"]["converged"]
    assert 0 < figures["val_error"] < 0.8  # it learned something
    card = (fitted / "augmenter" / "README.md").read_text()
    for arm, error in figures["test_error"].items():
        assert f"| {arm} | {100 * error:.2f} % | 1 |" in card
    assert "fitted" in next(iter(figures["test_error"]))
    assert f"{figures['val_error']:.2%} error" in card
    assert all(f"({name}.png)" in card for name in ("diversity", "traversal", "corrected"))
    row = " | ".join(f"{value:.3g}" for value in figures["diagnostics"]["fitted"].values())
    assert f"| fitted | {row} |" in card


@FORKS
def test_fit_takes_the_checkpoint_that_it_wrote_and_resumes(fitted, images, tmp_path, capsys):
    """Without test/ and --train-steps nothing is compared; the held-out share makes the val/ folder unnecessary."""
    arguments = ["fit", "--model", MODEL, "--weights", str(fitted / "classifier.safetensors"), "--val", "0.2"]
    arguments += ["--data", str(images / "train"), "--checkpoint-dir", str(tmp_path / "checkpoints"), *SHORT]
    arguments += ["--workers", "1"]
    results = []
    for name in ("one", "two"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
        results.append((tmp_path / name / "augmenter" / "model.safetensors").read_bytes())
    assert results[0] == results[1]  # the second was read back
    assert "val has 40 images" in capsys.readouterr().err  # the warnings, a line each
    assert any((tmp_path / "checkpoints").iterdir())
    figures = json.loads((tmp_path / "one" / "fit.json").read_text())
    assert figures["images"] == {"train": 160, "val": 40}
    assert figures["test_error"] == {}
    assert not (tmp_path / "one" / "augmenter" / "corrected.png").exists()


def test_fit_without_a_trained_classifier_says_how_to_give_one(images, tmp_path, capsys):
    error = failing(capsys, "fit", "--model", MODEL, "--data", images, "--out", tmp_path)
    assert "--weights" in error
    assert "--train-steps" in error


def test_fit_refuses_a_classifier_that_knows_nothing(images, tmp_path, capsys):
    torch.save(build_model(MODEL, 10, 1).state_dict(), tmp_path / "fresh.pt")
    options = ["--weights", tmp_path / "fresh.pt", "--data", images, "--out", tmp_path, *SHORT]
    error = failing(capsys, "fit", "--model", MODEL, *options)
    assert "90.0% by chance; check --size, --mean" in error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--model": "resnet19"}, "torchvision has no classifier 'resnet19'; it has alexnet"),
        ({"--model": "timm:resnet19"}, "timm has no classifier 'timm:resnet19'"),
        ({"--weights": "none.pt"}, "no checkpoint none.pt"),
        ({"--data": "nowhere"}, "no folder nowhere"),
        ({"--val": "0.1"}, "has a folder val/ already"),
        ({"--val": "1.5", "--data": "train"}, "a share of train in (0, 1), got 1.5"),
        ({"--data": "train"}, "has no train/ and val/; make them, or hold out a share with --val 0.1"),
        ({"--data": "train/digit 3"}, "must hold a folder of images for each class"),
        ({"--mean": "0.1 0.2"}, "mean must be 1 or 1 numbers, got 2"),
        ({"--warp": "0"}, "FitConfig.warp must be a finite number >= 1e-06, got 0.0"),
        ({"--steps": "-1"}, "DropoutConfig.steps must be a finite number >= 0, got -1"),
        ({"--out": "/dev/null/out"}, "/dev/null/out"),
        ({"--device": "abacus"}, "abacus"),
    ],
)
def test_fit_answers_a_mistake_in_one_line(fitted, images, tmp_path, capsys, changed, message):
    options = {"--model": MODEL, "--weights": fitted / "classifier.safetensors", "--data": images, "--out": tmp_path}
    for name, value in changed.items():
        inside = name == "--data" and value != "nowhere"
        options[name] = images / value if inside else value
    arguments = [part for name, value in options.items() for part in (name, *str(value).split(" "))]
    if "digit 3" in str(options["--data"]):
        arguments = [part for name, value in options.items() for part in (name, str(value))]
    assert message in failing(capsys, "fit", *arguments, "--size", "28", "--gray")


def test_usage_mistakes_end_with_status_2(capsys):
    for arguments in ([], ["fit"], ["fit", "--model", MODEL], ["grow"], ["preview", "./aug"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage: learned-aug" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "demo", "fit", "preview", "push"])
def test_help_teaches_by_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"learned-aug {command}" in text.split("options:")[0]
    assert max(map(len, text.splitlines())) <= 120


def test_a_bug_keeps_its_traceback_and_a_mistake_shows_it_when_asked(monkeypatch):
    monkeypatch.setattr(listing, "list_pretrained", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["list"])
    with pytest.raises(ValueError, match="classifier must be trained"):
        main(["--traceback", "fit", "--model", MODEL, "--data", ".", "--out", "."])


def test_interrupting_ends_with_the_shells_status(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "list_pretrained", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "learned-aug: interrupted\n"


# Classifiers and folders


def test_a_gray_classifier_of_torchvision_takes_one_channel():
    model = build_model("squeezenet1_1", 7, 1).eval()
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 7)
    assert build_model("squeezenet1_1", 7)(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_timm_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_model(MODEL, 10)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["plain", "state_dict", "DataParallel", "compiled"],
)
def test_checkpoints_of_common_forms_load(tmp_path, wrap):
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save(wrap(model.state_dict()), tmp_path / "c.pt")
    load_checkpoint(other, tmp_path / "c.pt")
    assert torch.equal(model.weight, other.weight)


class Evil:
    def __reduce__(self):
        return print, ("code of a pickle ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "holds no plain state_dict"),
        ({"weight": Evil()}, "holds no plain state_dict"),
        ([1, 2], "holds a list that is no state_dict"),
        ({"epoch": 3}, "holds a dict that is no state_dict"),
        ({"weight": torch.zeros(4, 2), "bias": torch.zeros(4)}, r"it has bias \(4,\), not \(3,\)"),
        ({"weight": torch.zeros(3, 2)}, "it lacks bias"),
        ({f"more.{k}": torch.zeros(1) for k in range(5)} | {"weight": 1}, "no state_dict"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_no_pickle_runs(tmp_path, capsys, content, message):
    path = tmp_path / "c.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(torch.nn.Linear(2, 3), path)
    assert "code of a pickle ran" not in capsys.readouterr().out


def test_unknown_tensors_are_counted(tmp_path):
    state = torch.nn.Linear(2, 3).state_dict() | {f"more.{k}": torch.zeros(1) for k in range(5)}
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"has unknown more\.0, more\.1 and 3 more; check the model's name"):
        load_checkpoint(torch.nn.Linear(2, 3), tmp_path / "c.safetensors")


def test_folders_become_normalized_squares_with_labels_of_their_folders(images):
    opened = open_folders(images, size=20, mean=[0.5], std=[0.25])
    image, label = opened.train[-1]
    assert image.shape == (3, 20, 20)
    assert label == 9
    assert opened.classes[label] == "digit 9"
    assert (opened.mean, opened.std) == ((0.5,) * 3, (0.25,) * 3)
    assert image.min() == -2
    assert opened.baseline(image).shape == image.shape
    assert opened.baseline(torch.full((3, 20, 20), 2.0)).min() in (-2, 2)  # padded with black
    assert open_folders(images, size=20).mean == IMAGENET[0]


def test_what_is_held_out_is_disjoint_and_repeats(images):
    one, two = (open_folders(images / "train", size=8, val=0.25, seed=3) for _ in range(2))
    assert one.val.indices == two.val.indices
    assert len(one.val) == 50
    assert sorted(one.train.indices + one.val.indices) == list(range(200))


def test_folders_of_different_classes_are_refused(images, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(images / "test", tmp_path / part)
    (tmp_path / "val" / "digit 3").rename(tmp_path / "val" / "three")
    with pytest.raises(ValueError, match=r"train/ and val/ must have the same classes, only one has \['digit 3', 'thr"):
        open_folders(tmp_path, size=8)


def test_checkpoint_of_a_fit_is_the_classifier_of_its_figures(fitted, images):
    model = build_model(MODEL, 10, 1)
    load_checkpoint(model, fitted / "classifier.safetensors")
    error, _ = evaluate(model, open_folders(images, size=28, gray=True).val)
    assert error == json.loads((fitted / "fit.json").read_text())["val_error"]


# preview


def test_preview_draws_a_row_for_each_image_of_files_and_folders(fitted, images, tmp_path, capsys):
    chosen = [images / "test" / "digit 3", next((images / "test" / "digit 4").iterdir())]
    count = len(list(chosen[0].iterdir())) + 1
    out = tmp_path / "new" / "grid.png"
    arguments = ["preview", str(fitted / "augmenter"), *map(str, chosen), "--draws", "4", "--side", "32", "--out"]
    assert main([*arguments, str(out)]) == 0
    assert f"{count} images, 4 draws" in capsys.readouterr().out
    with PIL.Image.open(out) as picture:
        assert picture.size == (5 * 34 + 2, count * 34 + 2)
    again = tmp_path / "again.png"
    for seed, same in (("0", True), ("1", False)):
        assert main([*arguments, str(again), "--seed", seed]) == 0
        assert (again.read_bytes() == out.read_bytes()) == same


def test_preview_draws_a_traversal_of_a_color_image(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 60, 3), generator=generator, dtype=torch.uint8)
    PIL.Image.fromarray(pixels.numpy()).save(tmp_path / "photo.png")
    config = AugmenterConfig(size=16, mean=(0.5,), std=(0.5,))
    augmenter = Augmenter(config, generator=generator)
    augmenter.calibrate_(torch.rand(10, 3, 16, 16, generator=generator), generator=generator)
    augmenter.save_pretrained(tmp_path / "aug")
    arguments = ["preview", str(tmp_path / "aug"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "way.png")]
    assert main([*arguments, "--kind", "traversal", "--side", "48", "--draws", "6"]) == 0
    with PIL.Image.open(tmp_path / "way.png") as picture:
        assert picture.height == 5 * 50 + 2


def test_preview_answers_a_mistake_in_one_line(fitted, images, tmp_path, capsys, monkeypatch):
    augmenter, out = fitted / "augmenter", ("--out", tmp_path / "grid.png")
    image = next(images.rglob("*.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    assert "No such file" in failing(capsys, "preview", augmenter, tmp_path / "none.png", *out)
    assert "holds no images" in failing(capsys, "preview", augmenter, tmp_path / "empty", *out)
    assert "is no image" in failing(capsys, "preview", augmenter, tmp_path / "text.png", *out)
    assert "--draws must be 2 or more" in failing(capsys, "preview", augmenter, image, *out, "--draws", "0")
    assert "one image, got 2" in failing(capsys, "preview", augmenter, image, image, *out, "--kind", "traversal")
    assert "no pretrained weights are called 'cifar11'" in failing(capsys, "preview", "cifar11", image, *out)
    assert "has no config.json" in failing(capsys, "preview", tmp_path, image, *out)
    monkeypatch.chdir(fitted.parent)
    assert "write ./run/augmenter" in failing(capsys, "preview", "run/augmenter", image, *out)
    assert not (tmp_path / "grid.png").exists()


# push and list


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A local Hub, and the client pointed to it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as server:
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        close_session()
        yield server


@pytest.mark.parametrize("named", ["./mine", "mine"])  # as a folder, and as pretrained weights are
def test_push_publishes_the_edited_card_with_its_pictures_under_the_new_name(fitted, server, tmp_path, capsys, named):
    mine = tmp_path / "mine"
    Augmenter.from_pretrained(fitted / "augmenter").save_pretrained(
        mine, card=CardFacts(pictures={fitted / "augmenter" / "diversity.png": "Draws"})
    )
    text = (mine / "README.md").read_text()
    text = text.replace("## Limits\n\nNot stated.", "## Limits\n\nDigits only.").replace('"./mine"', f'"{named}"')
    (mine / "README.md").write_text(text)
    (mine / "notes.png").write_bytes(b"not in the card")
    assert main(["push", str(mine), "me/digits", "--private", "--message", "First"]) == 0
    repo = server.repos["me/digits"]
    files = repo.files("main")
    assert sorted(files) == ["README.md", "config.json", "diversity.png", "model.safetensors"]
    card = files["README.md"].decode()
    assert 'from_pretrained("me/digits")' in card
    assert "\n# digits\n" in card
    assert "Digits only." in card
    assert "mine" not in card
    assert repo.private
    assert files["model.safetensors"] == (mine / "model.safetensors").read_bytes()
    assert repo.refs["main"] in capsys.readouterr().out


def test_push_without_a_card_makes_one(fitted, server, tmp_path):
    Augmenter.from_pretrained(fitted / "augmenter").save_pretrained(tmp_path / "mine")
    assert main(["push", str(tmp_path / "mine"), "me/digits", "--revision", "v2"]) == 0
    files = server.repos["me/digits"].files("v2")
    assert 'from_pretrained("me/digits")' in files["README.md"].decode()


def test_push_answers_a_mistake_in_one_line(fitted, server, tmp_path, capsys):
    assert "has no config.json" in failing(capsys, "push", tmp_path, "me/digits")
    assert "'org/name', got 'digits'" in failing(capsys, "push", fitted / "augmenter", "digits")
    assert server.repos == {}


def test_list_shows_the_weights_of_the_release(monkeypatch, capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == (list(map(str, list_pretrained())) or ["No pretrained weights come with this release."])
