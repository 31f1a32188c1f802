"""The ratios of the benchmarks, against known values; their scripts explain themselves."""

import importlib.util
import subprocess
import sys
from pathlib import Path

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
