"""learned-aug fit: what survives a failure, and two processes in one folder."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import PIL.Image
import pytest

from learned_aug import Augmenter
from learned_aug.cli import fit as fitting
from learned_aug.cli import report
from learned_aug.cli.main import main
from learned_aug.runtime.lock import LOCK_NAME
from tests.cli.conftest import arguments

# Python 3.12 and later warn of every fork beside threads; torch's loader forks by default.
FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# What survives a failure


def truncate(path):
    """Leave the header of an image, so that only reading all of it fails."""
    image = PIL.Image.open(path).convert("L").resize((90, 90))
    image.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def weights_are_there(out):
    augmenter = Augmenter.from_pretrained(out / "augmenter")
    assert json.loads((out / "fit.json").read_text())["augmenter"] == json.loads(json.dumps(augmenter.config.to_dict()))


def test_a_truncated_image_in_test_leaves_the_weights_and_all_else(fitted, some, tmp_path, capsys):
    bad = truncate(next((some / "test" / "digit 3").iterdir()))
    out = tmp_path / "out"
    assert main(arguments(fitted, some, out, "--train-steps", "2")) == 3
    told = capsys.readouterr()
    weights_are_there(out)
    assert "Traceback" not in told.err
    assert f"warning: no comparison on test/ of 'baseline': {bad} cannot be read (" in told.err
    assert "missing: comparison on test/ of 'baseline', comparison on test/" in told.err.splitlines()[-1]
    assert "diversity.png" in told.out
    assert sorted(p.name for p in (out / "augmenter").iterdir()) == [
        "README.md",
        "config.json",
        "diversity.png",
        "model.safetensors",
        "traversal.png",
    ]
    assert (out / "curves.png").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("part", ["train", "val"])
@FORKS
def test_a_truncated_image_elsewhere_is_named(fitted, some, tmp_path, failing, part, workers):
    bad = truncate(next((some / part / "digit 3").iterdir()))
    error = failing(*arguments(fitted, some, tmp_path / "out", "--workers", workers))
    assert error.startswith(f"{bad} cannot be read (")


@pytest.mark.parametrize(
    ("module", "name", "missing", "kept"),
    [
        (report, "fit_curves", ["curves.png"], ["README.md", "diversity.png", "traversal.png"]),
        (report, "diversity_grid", ["diversity.png"], ["README.md", "traversal.png"]),
        (report, "tau_traversal", ["traversal.png"], ["README.md", "diversity.png"]),
        (Augmenter, "save_pretrained", ["model card"], []),
        (fitting, "_examples", ["pictures of draws"], ["README.md"]),
    ],
)
def test_each_part_of_the_report_fails_alone(fitted, some, tmp_path, capsys, monkeypatch, module, name, missing, kept):
    shutil.rmtree(some / "test")
    before = getattr(module, name)

    def broken(*args, **kwargs):
        if name == "save_pretrained" and "card" not in kwargs:
            return before(*args, **kwargs)
        raise RuntimeError("no space left for tests")

    monkeypatch.setattr(module, name, broken)
    out = tmp_path / "out"
    assert main(arguments(fitted, some, out)) == 3
    told = capsys.readouterr()
    weights_are_there(out)
    assert f"warning: no {missing[0]}: no space left for tests" in told.err
    assert told.err.splitlines()[-1] == f"learned-aug: missing: {', '.join(missing)}; see the warnings above"
    assert "What the augmenters do" in told.out
    for file in kept:
        assert (out / "augmenter" / file).exists()


def test_a_new_fit_leaves_nothing_of_an_earlier_one_beside_its_weights(fitted, some, tmp_path, monkeypatch):
    shutil.copytree(fitted, tmp_path / "out")
    shutil.rmtree(some / "test")

    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(report, "diversity_grid", broken)
    assert main(arguments(fitted, some, tmp_path / "out")) == 3
    left = {path.name for path in (tmp_path / "out" / "augmenter").iterdir()}
    assert "corrected.png" not in left
    assert "diversity.png" not in left


# Two processes


@contextmanager
def holder(folder):
    """Another process that works in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "tests.cli.holder", str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("option", ["--out", "--checkpoint-dir"])
def test_a_second_process_in_one_folder_is_refused_and_a_dead_ones_lock_taken_over(
    fitted, some, tmp_path, failing, option
):
    shutil.rmtree(some / "test")
    folder = tmp_path / "shared"
    given = arguments(fitted, some, tmp_path / "out", *(["--checkpoint-dir", folder] if option != "--out" else []))
    if option == "--out":
        given[given.index("--out") + 1] = str(folder)
    with holder(folder) as other:
        error = failing(*given)
        assert f"{folder} is in use by process {other.pid} on {socket.gethostname()}" in error
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (folder / LOCK_NAME).exists()
        assert main(given) == 0
    assert not (folder / LOCK_NAME).exists()
