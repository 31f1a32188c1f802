"""A fit in two processes against one: how well the results agree, and what the second process brings.

    python benchmarks/fit/distributed.py

The packaged digits, an all-convolutional classifier, one thread for each process, gloo on the CPU; the same settings,
so the same global batches. Rounds of one and of two processes alternate; times are medians over them, of each stage and
of the whole call, without starting processes. Efficiency is the time of one process over twice that of two; that of CPU
seconds is what remains on a machine whose cores are taken by others, and does not see one process wait for the other.
Not shared are the calibration, which "pretrain" includes, and the diagnostics, which only "all" does, each on 512
images. About ten minutes.

Agreement is that of each stage from the same start, after several numbers of steps: of the weights of E and G, relative
to them and to how far they have moved. Rounding alone moves a GAN apart, faster the longer it runs: the slope of a
LeakyReLU jumps at 0, and where pixels are equal, as in a background, many jump at once. So beside each stands a
control, one process against itself with gradients changed by a relative 1e-6, by which those of two processes differ at
the first step.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchvision.transforms import v2

from learned_aug.digits import all_conv, digits
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.linear import LinearConfig
from learned_aug.fit.pipeline import fit
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.training.retrain import RetrainConfig, retrain

RESULTS = Path(__file__).parent / "results" / "distributed.json"
STAGES = ("train features", "val features", "refit", "ihvp", "pretrain", "maximize")


def add_noise(module):
    """Change all gradients of a stage by a relative 1e-6."""
    generator = torch.Generator().manual_seed(0)

    def noise(parameters):
        for p in (p for p in parameters if p.grad is not None):
            p.grad.mul_(1 + 1e-6 * torch.randn(p.shape, generator=generator))

    module.average_gradients_ = noise


def now():
    """Wall-clock and CPU seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def run(state, config, noisy=False):
    """Weights, s_val, seconds of each stage and CPU seconds of a fit."""
    torch.set_num_threads(1)
    if noisy:
        for stage in ("pretrain", "linear", "dropout"):
            add_noise(importlib.import_module(f"learned_aug.fit.{stage}"))
    model = all_conv(width=32)
    model.load_state_dict(state)
    data = digits()
    ends = {}
    begin = now()
    result = fit(
        model,
        data["train"],
        data["val"],
        baseline=v2.RandomCrop(28, padding=2),
        config=config,
        progress=False,
        on_event=lambda event: ends.__setitem__(event.stage, now()),
    )
    ends["all"] = now()
    seconds = {}
    for stage, last in zip(STAGES, (begin, *ends.values()), strict=False):
        if stage in ends:  # in process 0
            seconds[stage] = ends[stage] - last
    seconds["all"] = ends["all"] - begin
    names = ("untrained", "pretrained", "augmenter")
    tensors = {name: torch.cat([p.flatten() for p in getattr(result, name).parameters()]) for name in names}
    return {**tensors, "s_val": result.solution.value, "seconds": seconds}


def worker(rank, count, folder, *args):
    store = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group("gloo", store, timedelta(seconds=300), rank=rank, world_size=count)
    torch.save(run(*args), Path(folder) / f"{rank}.pt")
    time.sleep(0.1)  # torch 2.6 hangs if gloo's group is destroyed while its thread still frees the last tensor
    dist.destroy_process_group()


def together(count, *args):
    """What each of `count` processes returns."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (count, folder, *args), count)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(count)]


def apart(two, one):
    """Relative differences."""
    gap = (two["augmenter"] - one["augmenter"]).norm()
    return {
        "s_val": float((two["s_val"] - one["s_val"]).norm() / one["s_val"].norm()),
        "weights": float(gap / one["augmenter"].norm()),
        "weights, of what they moved": float(gap / (one["augmenter"] - one["untrained"]).norm()),
    }


def configured(pretrain, maximize, form=DropoutConfig):
    """Settings for these numbers of steps."""
    return FitConfig(
        pretrain=PretrainConfig(steps=pretrain, batch_size=128), maximize=form(steps=maximize, batch_size=128)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of stages 1 and 3 each")
    parser.add_argument("--times", action="store_true", help="measure these alone, and keep the agreement on file")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = all_conv(width=32)
    retrain(model, digits()["train"], RetrainConfig(steps=100), seed=0)
    state = model.state_dict()

    agreement = {}
    if args.times:
        agreement = json.loads(args.results.read_text())["relative_difference_from_one_process"]
    for steps in () if args.times else (5, args.steps):
        stages = {
            "stage 1": configured(steps, 0),
            "stage 3, dropout": configured(0, steps),
            "stage 3, linear": configured(0, steps, LinearConfig),
        }
        for stage, config in stages.items():
            one, two = (together(count, state, config)[0] for count in (1, 2))
            control = together(1, state, config, True)[0]
            name = f"{stage}, {steps} steps"
            agreement[name] = {"two processes": apart(two, one), "control": apart(control, one)}
            print(name, agreement[name], flush=True)

    rounds, config = [], configured(args.steps, args.steps)
    for k in range(args.rounds):
        rounds.append((together(1, state, config)[0], together(2, state, config)))
        print(k, [f"{part['seconds']['all'][0].item():.1f} s" for part in (rounds[-1][0], *rounds[-1][1])], flush=True)

    times = {}
    for stage in ("all", *STAGES):
        # Of process 0, whose events tell its stages; the other has the same work.
        one, two = (
            torch.stack([part["seconds"][stage] for part in parts]).median(0).values.tolist()
            for parts in ([r[0] for r in rounds], [r[1][0] for r in rounds])
        )
        times[stage] = {
            kind: {"one": round(a, 3), "two": round(b, 3), "efficiency": round(a / b / 2, 3)}
            for kind, a, b in zip(("wall", "cpu"), one, two, strict=True)
        }
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": f"cpu, 1 thread for each process, {os.cpu_count()} cores, {platform.machine()}",
        "load_average": os.getloadavg(),
        "rounds": args.rounds,
        "relative_difference_from_one_process": agreement,
        "processes_equal_to_the_last_bit": all(
            torch.equal(r[1][0][name], r[1][1][name]) for r in rounds for name in r[0] if name != "seconds"
        ),
        "seconds": times,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
