"""The ratios of the benchmarks, against known values; their scripts explain themselves."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*/*.py")), ids=lambda path: path.stem)
def test_scripts_explain_themselves(script):
    if "__main__" not in script.read_text():
        pytest.skip("no script")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
