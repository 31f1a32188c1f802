"""The command itself: usage, help, errors, terminals; and its small commands push and list."""

import io
import os
import subprocess
import sys

import PIL.Image
import pytest
from huggingface_hub import close_session, constants

from learned_aug import Augmenter, AugmenterConfig, CardFacts, list_pretrained
from learned_aug.cli import list as listing
from learned_aug.cli.main import COMMANDS, IncompleteError, main, one_line, plain
from learned_aug.cli.settings import strength
from learned_aug.weights import registry
from tests.cli.conftest import MODEL
from tests.weights.fake_hub import Hub


def test_usage_mistakes_end_with_status_2(capsys):
    for arguments in ([], ["fit"], ["fit", "--model", MODEL], ["grow"], ["preview", "./aug"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage: learned-aug" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_teaches_by_examples_in_ascii_and_120_columns(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"learned-aug {command}" in text.split("options:")[0]
    assert max(map(len, text.splitlines())) <= 120
    assert text.isascii()


def test_help_imports_neither_torch_nor_torchvision_nor_pil():
    code = (
        "import sys; from learned_aug.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'torchvision', 'PIL', 'tqdm', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_strengths_are_a_number_or_a_range(capsys):
    assert strength("0.1") == 0.1
    assert strength("0") == 0
    assert strength("0,0.125") == (0, 0.125)
    for text in ("a", "1,2,3", "", "0.1;0.2"):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--model", MODEL, "--data", ".", "--out", ".", "--warp", text])
        assert stop.value.code == 2
        assert "must be a number X, or a range LO,HI" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["affine", "warp", "color"])
@pytest.mark.parametrize("value", ["0.2,0.1", "nan", "inf", "-1"])
def test_strengths_that_cannot_be_are_refused_before_the_work(family, value, failing, tmp_path):
    options = ["--model", MODEL, "--train-steps", "1", "--data", tmp_path, "--out", tmp_path / "out"]
    assert f"{family} must be a strength >= 0 or a range" in failing("fit", *options, f"--{family}={value}")
    assert not (tmp_path / "out").exists()


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


def test_an_incomplete_report_is_shown_and_ends_with_status_3(monkeypatch, capsys):
    def partly(args):
        raise IncompleteError("the report", ["curves.png", "model card"])

    monkeypatch.setattr(listing, "run", partly)
    assert main(["list"]) == 3
    captured = capsys.readouterr()
    assert captured.out == "the report\n"
    assert captured.err == "learned-aug: missing: curves.png, model card; see the warnings above\n"


def test_errors_of_several_lines_become_one():
    assert one_line(ValueError("a\n  b\n")) == "a b"


# Terminals without the characters


@pytest.fixture
def still(tmp_path):
    Augmenter(AugmenterConfig(channels=1, size=8)).save_pretrained(tmp_path / "aug")
    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    return tmp_path / "aug", tmp_path / "a.png", "--side", "8"


@pytest.mark.parametrize("name", ["größe", "猫", "emoji 🐈", b"\xff".decode("utf-8", "surrogateescape")])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_paths_are_printed_on_every_terminal(still, tmp_path, monkeypatch, name, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    path = tmp_path / name / "grid.png"
    assert main([*map(str, ["preview", *still, "--out", path])]) == 0
    assert path.exists()
    shown = out.buffer.getvalue().decode(encoding)
    assert shown.startswith(f"Wrote {tmp_path}")
    if encoding == "utf-8" and "\udcff" not in name:
        assert str(path) in shown
    assert main([*map(str, ["preview", still[0], tmp_path / name / "none.png", "--out", path])]) == 1
    assert err.buffer.getvalue().startswith(b"learned-aug: No such file")


def test_a_process_on_an_ascii_terminal_ends_well(still, tmp_path):
    path = tmp_path / "größe 猫" / "grid.png"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "learned_aug", "preview", *map(str, still), "--out", str(path)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert path.exists()


def test_texts_that_are_no_utf_8_can_be_written():
    assert plain("a\udcff") == "a\\udcff"
    assert plain("größe") == "größe"


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
    assert 'from_pretrained("me/digits", p=0.5)' in card
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
    assert 'from_pretrained("me/digits", p=0.5)' in files["README.md"].decode()


def test_push_answers_a_mistake_in_one_line(fitted, server, tmp_path, failing):
    assert "has no config.json" in failing("push", tmp_path, "me/digits")
    assert "'org/name', got 'digits'" in failing("push", fitted / "augmenter", "digits")
    assert server.repos == {}


def test_list_shows_the_weights_of_the_release_what_the_lines_say_and_what_to_do_next(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    found = list_pretrained()
    assert shown.splitlines()[: len(found)] == list(map(str, found))
    assert "Name: data and classifier of the fit" in shown
    assert f"learned-aug preview {found[0].name} photo.jpg --out grid.png" in shown


def test_list_says_so_where_a_release_has_no_weights(capsys, monkeypatch):
    monkeypatch.setattr(registry, "PRETRAINED", ())
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "No pretrained weights come with this release.\n"
