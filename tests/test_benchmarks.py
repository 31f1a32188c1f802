"""The statistics of the benchmarks, against known values; their scripts explain themselves."""

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


@pytest.fixture(scope="module")
def paired():
    return load(BENCHMARKS / "accuracy" / "paired.py")


@pytest.mark.parametrize(("df", "quantile"), [(1, 12.706), (4, 2.7764), (9, 2.2622), (29, 2.0452)])
def test_quantiles_are_students(paired, df, quantile):
    assert paired._t975(df) == pytest.approx(quantile, rel=1e-3)


def test_interval_and_exact_p_of_a_worked_example(paired):
    mean, low, high, p = paired.compare([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert (low, high) == pytest.approx((3 - 2.7764 * 1.58114 / 5**0.5, 3 + 2.7764 * 1.58114 / 5**0.5), rel=1e-3)
    assert p == 2 / 2**5  # only all plus and all minus are as far from 0


def test_p_value_of_symmetric_differences_is_one(paired):
    assert paired.compare([1.0, -1.0, 2.0, -2.0])[3] == 1


def test_many_pairs_are_flipped_at_random_and_p_is_never_zero(paired):
    assert 0 < paired.compare([1.0] * 30)[3] < 1e-3


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
