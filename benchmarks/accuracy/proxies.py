"""Can a short training tell which augmentation is best, before a classifier is trained with each?

    python benchmarks/accuracy/proxies.py mnist --data ROOT --seeds 34-41      # runs what is missing, then the table
    python benchmarks/accuracy/proxies.py mnist --report

What a fit could afford to choose its result by: the validation loss after a short training with each candidate, from
the fitted classifier (restart) or from scratch, one cycle at the full learning rate. Candidates are those whose order
after full trainings is known from mnist.py (README): fitted before untrained before crop, and what was learned,
reversed, last. Shown is the share of seeds in which a proxy puts a pair in that order.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

from directions import TASKS
from harness import Arm, evaluate, fitted, numbers, provenance, read, reverse, train

SHARES = (0.1, 0.3)  # of the steps of a full training
PAIRS = (("fitted", "untrained"), ("untrained", "baseline"), ("fitted", "baseline"), ("untrained", "reversed"))


def run(task, settings, seed, root, path):
    args = argparse.Namespace(data=root, **settings)
    data, baseline = task.load(root, seed, args.per_class), task.baselines[task.heuristic]
    model = train(task, data["train"], args, seed, baseline, None)
    fits = {
        name: fitted(task, data, args, seed, Arm(task.heuristic, source), model)[0]
        for name, source in (("untrained", "untrained"), ("fitted", "fitted, not pretrained"))
    }
    rows, origin = [], provenance()
    fits |= {"reversed": reverse(fits["fitted"]), "baseline": None}
    for name, augmenter in fits.items():
        augment = None if augmenter is None else lambda model, a=augmenter: lambda images, labels: a(images)
        for share in SHARES:
            for kind, start in (("restart", model), ("scratch", None)):
                short = argparse.Namespace(**{**vars(args), "steps": round(share * args.steps)})
                begin = time.perf_counter()
                final = train(task, data["train"], short, seed, baseline, augment, start)
                row = {"seed": seed, "candidate": name, "proxy": f"{kind}, {share:.0%} of the steps"}
                row["seconds"] = round(time.perf_counter() - begin, 1)
                row |= {part: evaluate(final, *data[part]) for part in ("influence", "choosing")}
                rows.append({**row, "settings": settings, **origin})
        print(f"seed {seed} {name}", flush=True)
    with open(path, "a") as file:  # a seed's rows together: an interrupted one is run again
        file.writelines(json.dumps(row) + "\n" for row in rows)


def report(rows):
    """By the loss on images that the influence has not read."""
    losses = defaultdict(dict)
    for row in rows:
        losses[row["proxy"], row["seed"]][row["candidate"]] = row["choosing"][1]
    print(f"{'proxy':28}  n  " + "   ".join(f"{a} < {b}" for a, b in PAIRS))
    for proxy in sorted({proxy for proxy, _ in losses}):
        seeds = [values for (name, _), values in losses.items() if name == proxy and len(values) == 4]
        shares = (sum(values[a] < values[b] for values in seeds) for a, b in PAIRS)
        cells = (
            f"{right}/{len(seeds)}".center(len(a) + len(b) + 3) for right, (a, b) in zip(shares, PAIRS, strict=True)
        )
        print(f"{proxy:28} {len(seeds):2}  " + "   ".join(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", help="root folder of the data set")
    parser.add_argument("--seeds", type=numbers, default=range(0), help="such as 0-9")
    parser.add_argument("--results", type=Path, help="by default results/proxies-TASK.jsonl beside this script")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    path = args.results or Path(__file__).parent / "results" / f"proxies-{args.task}.jsonl"
    if not args.report:
        if args.data is None:
            parser.error("--data is needed to run")
        done = {row["seed"] for row in read(path)}
        for seed in args.seeds:
            if seed not in done:
                run(*TASKS[args.task], seed, args.data, path)
    report(read(path))


if __name__ == "__main__":
    main()
