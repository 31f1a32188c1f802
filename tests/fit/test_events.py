import re

from learned_aug.fit import Event, ProgressBars


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
