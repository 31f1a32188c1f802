"""A fit in two processes, on the CPU."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset
from torchvision.transforms import v2

import learned_aug
from learned_aug.digits import all_conv, digits
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig, LearningDropout
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.runtime.distributed import rank
from tests.processes import run_processes

ROOT = Path(__file__).parents[2]
CONFIG = FitConfig(
    pretrain=PretrainConfig(steps=6, batch_size=16), maximize=DropoutConfig(steps=6, batch_size=32), batch_size=64
)
TOLERANCE = 1e-4  # relative; sums over a batch are rounded otherwise, and Adam passes that on


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def parts(**changes):
    """Training and validation images, and all else that fit takes."""
    data = digits()
    options = {"baseline": v2.RandomCrop(28, padding=2), "config": CONFIG, "progress": False}
    # Sizes that two processes cannot share evenly.
    return {"train": Subset(data["train"], range(201)), "val": Subset(data["val"], range(1001)), **options, **changes}


def classifier(state):
    model = all_conv(width=4)
    model.load_state_dict(state)
    return model


def figures(result):
    """What two fits are compared by."""
    names = ("prior", "pretrained", "fitted", "augmenter")
    weights = {name: torch.cat([p.flatten() for p in getattr(result, name).parameters()]) for name in names}
    return {**weights, "s_val": result.solution.value, "other": (result.diagnostics, result.history)}


def refusal(model, **changes):
    """The message of a fit that is refused."""
    try:
        learned_aug.fit(model, **parts(**changes))
    except ValueError as error:
        return str(error)
    return "none"


def die_in_stage_3(state, folder):
    """Process 1 ends without a word; what the others say."""
    if rank() == 1:
        step = LearningDropout.step

        def dying(self):
            return os._exit(0) if self.done == 4 else step(self)

        LearningDropout.step = dying
    try:
        learned_aug.fit(classifier(state), **parts(checkpoint_dir=folder, checkpoint_every=0))
    except RuntimeError as error:
        return str(error)
    return "none"


def fits(state, folder):
    """A fit that goes on after another has died, one that does not, one from loaders, and refusals."""
    model = classifier(state)
    seen = []
    resumed = learned_aug.fit(model, **parts(checkpoint_dir=folder, on_event=seen.append))
    whole = learned_aug.fit(model, **parts())
    data = parts()

    def loader(name):
        return DataLoader(data[name], 16, sampler=DistributedSampler(data[name]))

    # The same numbers of batches as in one process at twice the batch size.
    loaders = learned_aug.fit(model, **parts(train=loader("train"), val=loader("val")))
    odd = dataclasses.replace(CONFIG, pretrain=PretrainConfig(steps=1, batch_size=18))
    other = classifier(state)
    other[-1].bias.data += rank()
    return {
        "resumed": figures(resumed),
        "seen": [(event.stage, event.step) for event in seen],
        "whole": figures(whole),
        "loaders": figures(loaders),
        "odd": refusal(model, config=odd),
        "plain loader": refusal(model, train=DataLoader(data["train"], 16)),
        "iterable": refusal(model, val=DataLoader(Endless(), 16)),
        "other model": refusal(other),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def died(trained, folder):
    """What the processes of a fit said of which one died."""
    (folder / "died").mkdir()
    return run_processes(die_in_stage_3, folder / "died", trained.state_dict(), folder / "checkpoint")


@pytest.fixture(scope="module")
def results(trained, folder, died):
    """What each of two processes returned."""
    (folder / "fits").mkdir()
    return run_processes(fits, folder / "fits", trained.state_dict(), folder / "checkpoint")


@pytest.fixture(scope="module")
def alone(trained):
    return figures(learned_aug.fit(trained, **parts()))


def assert_close(one, two):
    for name in ("prior", "pretrained", "fitted", "s_val"):
        assert (one[name] - two[name]).norm() <= TOLERANCE * two[name].norm(), name


pytestmark = pytest.mark.slow


def test_two_processes_agree_with_one(results, alone):
    for result in results:
        assert_close(result["whole"], alone)
    moved = alone["fitted"] - alone["prior"]
    assert (results[0]["whole"]["fitted"] - alone["fitted"]).norm() < 1e-3 * moved.norm()


@pytest.mark.parametrize("kind", ["whole", "resumed", "loaders"])
def test_processes_agree_with_each_other_to_the_last_bit(results, kind):
    one, two = (result[kind] for result in results)
    assert all(torch.equal(one[name], two[name]) for name in one if name != "other")
    assert one["other"] == two["other"]


def test_process_that_dies_ends_the_others_with_the_cause_and_the_remedy(died):
    assert died[1] is None
    for part in ("process 0 of 2", "one has died", "start all of them again", "checkpoint_dir"):
        assert part in died[0]


def test_fit_with_a_process_that_died_goes_on_to_the_same_end(results):
    one, two = results[0]["resumed"], results[0]["whole"]
    assert all(torch.equal(one[name], two[name]) for name in one if name != "other")
    assert one["other"] == two["other"]
    assert [event for event in results[0]["seen"] if event[0] == "maximize"] == [("maximize", 5), ("maximize", 6)]


def test_process_0_alone_calls_on_event(results):
    assert results[1]["seen"] == []


def test_one_process_reads_the_checkpoint_of_two(results, trained, folder):
    again = learned_aug.fit(trained, **parts(checkpoint_dir=folder / "checkpoint"))
    assert figures(again)["other"] == results[0]["resumed"]["other"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("odd", ["PretrainConfig.batch_size", "multiple of 4 for 2 processes", "got 18"]),
        (
            "plain loader",
            ["loader of train", "process {rank} of 2", "SequentialSampler", "DistributedSampler(dataset)"],
        ),
        ("iterable", ["loader of val", "process {rank} of 2", "InfiniteConstantSampler", "pass the data set"]),
    ],
)
def test_what_processes_cannot_share_is_refused_by_all(results, case, expected):
    for number, result in enumerate(results):
        assert all(part.format(rank=number) in result[case] for part in expected), result[case]


def test_model_that_differs_between_processes_is_refused_by_all(results):
    for result in results:
        assert "same in all processes, got other weights than process 0's in 1 of 2; load" in result["other model"]


def test_example_runs_under_torchrun_and_reads_its_checkpoint_back(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "examples" / "fit_distributed.py"), "--steps", "2"]
    command += ["--checkpoint-dir", str(tmp_path / "fit"), "--out", str(tmp_path / "out")]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("The prior is used") + done.stdout.count("The fitted networks are used") == 1
        augmenter = learned_aug.Augmenter.from_pretrained(tmp_path / "out")
        assert augmenter.config.channels == 1
    assert "maximize" not in done.stderr  # no bar: nothing was left to do
