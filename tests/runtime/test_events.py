import io
import itertools
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from learned_aug.runtime import events
from learned_aug.runtime.events import Event, ProgressBars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Put a terminal in place of standard error; to be called in the test, after pytest has put its own there."""

    def put():
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


# On a terminal


def test_bars_show_each_stage_its_steps_and_its_metrics(terminal):
    stream = terminal()
    with ProgressBars() as bars:
        for stage in ("one", "two"):
            for step in (1, 2, 3):
                bars(Event(stage, step, 3, {"loss": 0.12345}))
    shown = stream.getvalue()
    for stage in ("one", "two"):
        assert re.search(rf"{stage}: +100%.*3/3.*loss=0.123", shown)


def test_a_stage_that_runs_again_gets_a_new_bar(terminal):
    stream = terminal()
    with ProgressBars() as bars:
        for _ in range(2):
            for step in (1, 2):
                bars(Event("again", step, 2))
    assert len(re.findall(r"2/2", stream.getvalue())) == 2


def test_bar_of_a_resumed_stage_starts_where_the_stage_does_and_shows_rate_and_remaining_time(terminal):
    stream = terminal()
    with ProgressBars() as bars:
        for step in (8, 9, 10):
            bars(Event("resumed", step, 10))
    shown = stream.getvalue()
    assert re.search(r"resumed: +70%.*7/10", shown)
    assert re.search(r"resumed: +100%.*10/10 \[00:0\d<00:00, +\d.*step/s", shown)


def test_bar_of_a_stage_of_unknown_length_counts(terminal):
    stream = terminal()
    with ProgressBars() as bars:
        for step in (1, 2, 3):
            bars(Event("reading", step, 0))
    assert re.search(r"reading: 3step", stream.getvalue())


# In a log file


def lines(capsys):
    text = capsys.readouterr().err
    assert "\r" not in text
    return text.splitlines()


def test_a_log_file_gets_a_line_for_each_tenth(capsys, clock):
    with ProgressBars() as bars:
        for step in range(1, 1001):
            clock[0] += 0.1
            bars(Event("train", step, 1000, {"loss": 1 / step}))
    shown = lines(capsys)
    assert len(shown) == 10
    assert re.fullmatch(r"train: 100/1000, 10 s, (89|90) s left, loss=0\.01", shown[0])
    assert shown[-1] == "train: 1000/1000, 100 s, loss=0.001"


def test_a_fast_stage_gets_one_line(capsys, clock):
    with ProgressBars() as bars:
        for step in range(1, 101):
            clock[0] += 0.01
            bars(Event("features", step, 100))
    assert lines(capsys) == ["features: 100/100, 1 s"]


def test_a_slow_stage_gets_lines_that_grow_rarer(capsys, clock):
    with ProgressBars() as bars:
        for step in range(1, 1001):
            clock[0] += 20
            bars(Event("train", step, 100_000))
    seconds = [int(re.search(r", (\d+) s,", line).group(1)) for line in lines(capsys)]
    waits = [b - a for a, b in itertools.pairwise([0, *seconds])]
    assert waits[:5] == pytest.approx([30, 60, 120, 240, 480], abs=20)
    assert set(waits[5:-1]) == {600}


def test_a_stage_that_ends_early_and_one_that_runs_again_show_their_last_step(capsys, clock):
    with ProgressBars() as bars:
        for last in (7, 3):
            for step in range(last + 1):
                bars(Event("refit", step, 100, {"norm": 0.5}))
    assert [line.split(",")[0] for line in lines(capsys)] == ["refit: 7/100", "refit: 3/100"]


def test_a_resumed_stage_counts_its_own_time(capsys, clock):
    with ProgressBars() as bars:
        for step in range(501, 1001):
            clock[0] += 1
            bars(Event("train", step, 1000))
    shown = lines(capsys)
    assert re.match(r"train: 53\d/1000, 3\d s, 4\d\d s left", shown[0])
    assert re.match(r"train: 1000/1000, (499|500) s", shown[-1])


EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "with_logger.py"))


def test_example_logs_every_step_of_every_stage_with_its_metrics(tmp_path):
    EXAMPLE["main"](tmp_path / "fit.jsonl", 3)
    lines = [json.loads(line) for line in (tmp_path / "fit.jsonl").read_text().splitlines()]
    for stage, metric in (("pretrain", "warp"), ("maximize", "kl")):
        steps = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in steps] == [1, 2, 3]
        assert all(isinstance(line[metric], float) for line in steps)


def test_example_writes_scalars_as_tensorboard_takes_them():
    class Writer(list):
        def add_scalar(self, tag, value, step):
            self.append((tag, value, step))

    writer = Writer()
    EXAMPLE["scalars"](writer)(Event("maximize", 4, 9, {"moved": 0.5, "cross_entropy": 2.0}))
    assert writer == [("maximize/moved", 0.5, 4), ("maximize/cross_entropy", 2.0, 4)]


def test_log_of_a_stage_of_unknown_length_has_a_line_now_and_then_and_one_at_its_end(capsys, clock):
    with ProgressBars() as bars:
        for step in range(1, 101):
            clock[0] += 1
            bars(Event("reading", step, 0))
    assert lines(capsys) == [
        "reading: 31, 30 s",
        "reading: 91, 90 s",
        "reading: 100, 99 s",
    ]


def test_a_process_without_a_console_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBars() as bars:
        for step in (1, 2):
            bars(Event("stage", step, 2, {"loss": 1.0}))
