"""The ratios of the benchmarks, against known values; their scripts explain themselves."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from learned_aug import RetrainConfig, retrain
from learned_aug.digits import all_conv, digits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_of_median_times_have_an_interval_that_holds_them():
    throughput = load(BENCHMARKS / "throughput" / "throughput.py")
    assert throughput.ratio_of_medians([2.0] * 5, [1.0] * 5) == [2, 2, 2]
    ratio, low, high = throughput.ratio_of_medians([1.0, 2.0, 3.0, 6.0, 9.0], [1.0] * 5)
    assert ratio == 3
    assert 1 <= low < ratio < high <= 9


def test_signals_notes_what_the_influence_says_and_changes_no_draw(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "accuracy"))
    signals = load(BENCHMARKS / "accuracy" / "signals.py")
    monkeypatch.setattr(signals, "EVERY", 2)
    parts = digits()
    train, val = (
        signals.Pixels((255 * images).byte(), labels)
        for images, labels in (
            (part.tensors[0][:100], part.tensors[1][:100]) for part in (parts["train"], parts["val"])
        )
    )
    trained = []
    for make in (lambda m: signals.Watched(m, train, val, seed=0), lambda m: signals.SteeredDraws(m, seed=0)):
        torch.manual_seed(0)
        model = all_conv(8)
        draws = make(model)
        draws.warmup = 1
        retrain(model, train, RetrainConfig(steps=6, batch_size=20), augment=draws, seed=0)
        trained.append((model, draws))
    (watched, notes), (plain, _) = trained
    assert [note["call"] for note in notes.notes] == [3, 5]
    assert all(len(note["steering"]) == 2 for note in notes.notes)
    torch.testing.assert_close(watched.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*/*.py")), ids=lambda path: path.stem)
def test_scripts_explain_themselves(script):
    if "__main__" not in script.read_text():
        pytest.skip("no script")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout


@pytest.fixture
def panel(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "accuracy"))
    return load(BENCHMARKS / "accuracy" / "panel.py")


def pictures(folder, classes, level=0):
    for part in ("train", "test"):
        for k, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for n in range(4):
                PIL.Image.new("L", (9, 12), level + 40 * k + n).save(folder / part / name / f"{n}.png")


def test_a_folder_of_the_panel_is_read_as_it_is_now(panel, tmp_path):
    read = panel.fold.__globals__["folder"]
    pictures(tmp_path, "abc")
    for level in (0, 9):
        pictures(tmp_path, "abc", level)
        images, labels = read(tmp_path, 16, gray=True)["train"]
        assert images.shape == (12, 1, 16, 16)
        assert images.flatten(1).float().mean(1).tolist() == [level + 40 * k + n for k in range(3) for n in range(4)]
        assert labels.tolist() == [k for k in range(3) for _ in range(4)]
    (tmp_path / ".panel-16-gray.npz").write_bytes(b"cut off")
    assert torch.equal(read(tmp_path, 16, gray=True)["train"][0], images)
    shutil.rmtree(tmp_path / "test" / "a")
    with pytest.raises(ValueError, match="must have the same classes: only train/ has a/"):
        read(tmp_path, 16, gray=True)


def test_pictures_of_16_bits_keep_their_levels_in_the_panel(panel, tmp_path):
    pictures(tmp_path, "ab")
    deep = np.full((9, 9), 128 * 257, dtype=np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / "train" / "a" / "0.png")
    assert panel.fold.__globals__["folder"](tmp_path, 16, gray=True)["train"][0][0].unique().tolist() == [128]


@pytest.mark.parametrize("cut", ['{"cell": "a', '{"cell": "a", "settings": {}'])
def test_rows_after_a_line_that_was_cut_off_are_read(panel, tmp_path, cut):
    path = tmp_path / "new" / "rows.jsonl"
    panel.append(path, {"seed": 1})
    with path.open("a") as file:
        file.write(cut)
    panel.append(path, {"seed": 2})
    assert panel.read(path) == [{"seed": 1}, {"seed": 2}]


def panel_of(folder, *options):
    script = str(BENCHMARKS / "accuracy" / "panel.py")
    command = [sys.executable, script, "--data", str(folder), "--results", str(folder / "rows.jsonl"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_data_set_of_ones_own_goes_through_the_panel_and_back(tmp_path):
    pictures(tmp_path / "mine", "abc")
    options = ["--set", "mine", "--per-class", "9", "--side", "8", "--gray", "--seeds", "0-1", "--arms", "baseline"]
    done = panel_of(tmp_path, *options, "steered", "--steps", "2")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["arm"], row["seed"], row["val_error"]) for row in rows] == [
        (arm, seed, None) for seed in (0, 1) for arm in ("baseline", "steered")
    ]
    assert "mine-9  steered   2 " in done.stdout
    again = panel_of(tmp_path, *options, "--steps", "3")  # other trainings, which are not mixed with the first
    assert "mine-9  baseline  2 " in again.stdout
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "nowhere"], "no folder"),
        (["--set", "mine"], "has no test/"),
        (["--set", "mine", "--model", "resnet18"], "model must be one of"),
        (["--set", "mine", "--steps", "0"], "steps must be at least 1"),
        (["--seeds", "5-3"], "must be a seed or a range"),
        (["--jobs", "0"], "must be 1 or more"),
        (["--arms", "magic"], "arms must be of"),
    ],
)
def test_what_the_panel_cannot_do_is_said_in_a_line(panel, tmp_path, monkeypatch, capsys, options, message):
    pictures(tmp_path / "mine", "ab")
    shutil.rmtree(tmp_path / "mine" / "test")
    monkeypatch.setattr(sys, "argv", ["panel.py", "--data", str(tmp_path), *options])
    with pytest.raises(SystemExit):
        panel.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
