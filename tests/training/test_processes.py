"""Trainings shared by processes: the same results, none lost after a failure, and errors that say what to do."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from learned_aug.training.comparison import Training
from learned_aug.training.processes import results
from tests.training.test_compare import run


def measured(job):
    return Training(arm=job[0], seed=job[1], error=0.5, loss=1.0), None


def work(job, tell=None):
    """Do what the name of the arm says, within seconds given as the seed."""
    arm, seed = job
    time.sleep(seed)
    if arm == "fails":
        raise ValueError("this one fails")
    if arm == "dies":
        os._exit(1)
    return measured(job)


def ended(jobs, processes=2):
    """What came, and the error that ended it."""
    came = []
    try:
        for training, _ in results(work, jobs, processes, lambda job: None):
            came.append(training.arm)
    except BaseException as error:
        return came, error
    return came, None


def test_processes_share_the_trainings_and_give_the_same(data):
    one, two = (run(data, ["baseline", "Cutout"], jobs=jobs) for jobs in (1, 2))
    assert two.errors == one.errors


def test_a_training_that_runs_when_another_fails_is_kept():
    came, error = ended([("fails", 2), ("long", 3), ("never", 0)])
    assert came == ["long"]
    assert str(error) == "this one fails"


def test_what_ended_before_a_failure_is_in_the_folder(data, tmp_path):
    arms = {"fails": fail, "baseline": None}
    with pytest.raises(ValueError, match="no such augmentation"):
        run(data, arms, jobs=2, checkpoint_dir=tmp_path)
    assert len(list(tmp_path.glob("baseline-*.json"))) == 1


def fail(model):
    raise ValueError("no such augmentation")


INTERRUPTED = """
import signal, sys
from tests.training.test_processes import ended
signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background of a shell ignore
print("ready", flush=True)
came, error = ended([("one", float(sys.argv[1])), ("two", float(sys.argv[1])), ("three", 1)])
print(sorted(came), type(error).__name__, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("seconds", "times", "came"), [(12, 1, "['one', 'two']"), (600, 2, "[]")])
def test_ctrl_c_keeps_what_runs_and_a_second_one_drops_it(seconds, times, came):
    command = [sys.executable, "-c", INTERRUPTED, str(seconds)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 120
        while len(children.read_text().split()) < 3 and time.monotonic() < deadline:  # two, and what counts semaphores
            time.sleep(0.1)
        time.sleep(10)  # in which they import, and begin
        try:
            for _ in range(times):
                os.killpg(process.pid, signal.SIGINT)  # of all processes, as a terminal does
                time.sleep(2)
            out, told = process.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert out == f"{came} KeyboardInterrupt\n"
    assert "interrupted: 2 trainings that run end first" in told


def test_a_process_that_dies_is_told_with_the_remedy():
    came, error = ended([("first", 0), ("dies", 2), ("other", 9)])
    assert came == ["first"]
    assert isinstance(error, RuntimeError)
    assert "use fewer jobs" in str(error)
    assert isinstance(error.__cause__, BrokenProcessPool)


@pytest.mark.parametrize("arms", [{"lambda": lambda model: None, "none": None}])
def test_what_cannot_be_pickled_is_named(data, arms):
    with pytest.raises(ValueError, match="must be picklable"):
        run(data, arms, jobs=2)
