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


def test_bar_of_a_resumed_stage_starts_where_the_stage_does_and_shows_rate_and_remaining_time(capsys):
    with ProgressBars() as bars:
        for step in (8, 9, 10):
            bars(Event("resumed", step, 10))
    shown = capsys.readouterr().err
    assert re.search(r"resumed: +70%.*7/10", shown)
    assert re.search(r"resumed: +100%.*10/10 \[00:0\d<00:00, +\d.*step/s", shown)
