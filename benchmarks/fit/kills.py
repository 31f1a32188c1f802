"""Kills a fit at random moments, half of them while a checkpoint is being written, and compares what it resumes to.

    python benchmarks/fit/kills.py --kills 30

Each trial starts a fit in a folder of its own, which saves after every step, sends it SIGKILL after a random time,
checks that its checkpoints can be read, and makes the same call again. Every other trial waits for a half-written file
before it kills. The end must be that of a fit that was left alone, bit for bit: weights of the three augmenters,
diagnostics, s_val, history. A trial is a forked process, which saves the time of imports. About a minute, CPU.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from torch.utils.data import Subset
from torchvision.transforms import v2

from learned_aug.digits import all_conv, digits
from learned_aug.fit.checkpoint import NAMES, decode
from learned_aug.fit.config import FitConfig
from learned_aug.fit.dropout import DropoutConfig
from learned_aug.fit.pipeline import fit
from learned_aug.fit.pretrain import PretrainConfig
from learned_aug.runtime.digest import digest
from learned_aug.training.retrain import RetrainConfig, retrain

RESULTS = Path(__file__).parent / "results" / "kills.json"
CONFIG = FitConfig(pretrain=PretrainConfig(steps=12, batch_size=16), maximize=DropoutConfig(steps=12, batch_size=16))


def outcome(result):
    """A digest of all that must be equal; seconds are not."""
    tensors = [result.solution.value]
    for augmenter in (result.prior, result.pretrained, result.fitted):
        tensors += augmenter.state_dict().values()
    history = [(e.stage, e.step, e.total, dict(e.metrics)) for e in result.history]
    return hashlib.sha256(repr((digest(*tensors), result.diagnostics, history)).encode()).hexdigest()


def start(task):
    """The id of a forked process that runs `task`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def found(folder):
    """The stage that the latest checkpoint in a folder is at, and the number of files there that cannot be read."""
    states, unreadable = [], 0
    for path in (folder / name for name in NAMES):
        if path.exists():
            try:
                states.append(decode(path.read_bytes()))
            except ValueError:
                unreadable += 1
    return stage_of(max(states, key=lambda s: s["generation"])["state"]) if states else "no checkpoint yet", unreadable


def stage_of(state):
    if state["current"] is not None:
        return f"in stage {1 if 'pretrained' not in state['results'] else 3}"
    return f"after {list(state['results'])[-1]}" if state["results"] else "at the start"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, crop = digits(), v2.RandomCrop(28, padding=2)
    model = all_conv(width=4)
    retrain(model, data["train"], RetrainConfig(steps=60), seed=0)
    train, val = Subset(data["train"], range(100)), Subset(data["val"], range(1000))
    temporary = tempfile.TemporaryDirectory()
    root = Path(temporary.name)

    def run(folder):
        result = fit(
            model, train, val, baseline=crop, config=CONFIG, checkpoint_dir=folder, checkpoint_every=0, progress=False
        )
        (folder / "outcome").write_text(outcome(result))

    def finish(folder):
        """Seconds to the end, and the outcome."""
        begin = time.perf_counter()
        _, status = os.waitpid(start(lambda: run(folder)), 0)
        if status:
            sys.exit(f"the fit in {folder} failed")
        return time.perf_counter() - begin, (folder / "outcome").read_text()

    seconds, expected = finish(root / "alone")
    moments, trials = random.Random(args.seed), []
    while sum(trial["killed"] for trial in trials) < args.kills:
        folder, wait_for_write = root / str(len(trials)), len(trials) % 2 == 1
        delay = moments.uniform(0, seconds)
        child = start(lambda folder=folder: run(folder))
        time.sleep(delay)
        half_written = [f".{name}.*" for name in NAMES]
        while wait_for_write and not any(any(folder.glob(name)) for name in half_written):
            if os.waitpid(child, os.WNOHANG)[0]:
                child = None
                break
        if child is not None:
            os.kill(child, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        else:
            killed = False
        reached, unreadable = found(folder)
        trial = {
            "killed": killed,
            "delay_s": round(delay, 3),
            "in_write": any(any(folder.glob(name)) for name in half_written),
            "reached": reached,
            "unreadable": unreadable,
            "bit_equal": finish(folder)[1] == expected,
        }
        trials.append(trial)
        print(trial, flush=True)

    temporary.cleanup()
    trials = [trial for trial in trials if trial["killed"]]
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": f"cpu, 1 thread, {platform.machine()}",
        "fit_seconds": round(seconds, 2),
        "kills": len(trials),
        "in_write": sum(trial["in_write"] for trial in trials),
        "unreadable_checkpoints": sum(trial["unreadable"] for trial in trials),
        "bit_equal": sum(trial["bit_equal"] for trial in trials),
        "trials": trials,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(figures, indent=1) + "\n")
    print({key: value for key, value in figures.items() if key != "trials"})
    if figures["bit_equal"] != len(trials) or figures["unreadable_checkpoints"]:
        sys.exit("not all fits ended alike, or a checkpoint could not be read")


if __name__ == "__main__":
    main()
