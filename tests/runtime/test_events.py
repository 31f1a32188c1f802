import json
import re
import runpy
from pathlib import Path

from learned_aug.runtime.events import Event, ProgressBars


def test_bars_show_each_stage_its_steps_and_its_metrics(capsys):
    with ProgressBars() as bars:
        for stage in ("one", "two"):
            for step in (1, 2, 3):
                bars(Event(stage, step, 3, {"loss": 0.12345}))
    shown = capsys.readouterr().err
    for stage in ("one", "two"):
        assert re.search(rf"{stage}: +100%.*3/3.*loss=0.123", shown)


def test_a_stage_that_runs_again_gets_a_new_bar(capsys):
    with ProgressBars() as bars:
        for _ in range(2):
            for step in (1, 2):
                bars(Event("again", step, 2))
    assert len(re.findall(r"2/2", capsys.readouterr().err)) == 2


def test_bar_of_a_resumed_stage_starts_where_the_stage_does_and_shows_rate_and_remaining_time(capsys):
    with ProgressBars() as bars:
        for step in (8, 9, 10):
            bars(Event("resumed", step, 10))
    shown = capsys.readouterr().err
    assert re.search(r"resumed: +70%.*7/10", shown)
    assert re.search(r"resumed: +100%.*10/10 \[00:0\d<00:00, +\d.*step/s", shown)


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
