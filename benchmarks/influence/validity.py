"""Does the predicted influence agree with what refitting the head does? On MNIST, with a small CNN.

For each seed: train the CNN on 2,000 images, freeze it, and refit its head (10 x 65) to convergence on their features
with weight decay. Then, for 150 training images chosen at random, refit again (a) without the image and (b) with a
randomly rotated, shifted and scaled copy in its place, and compare the actual change of the loss on 5,000 other
training images with the predicted one, -I_up / N and I_aug / N. The test set is not used.

Predictions are made at the refitted head, and at the head as the CNN's training left it, over damping values and with
the two approximations of H. The actual change is that of the refitted head each time.

    python benchmarks/influence/validity.py --data ROOT        # ROOT/MNIST/raw as torchvision has it; --download to
    fetch

A few minutes on two CPU cores. Writes validity.json and validity.png to --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2

from learned_aug.influence.head import HeadBatch, HeadTap, borrowed, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.refit import refit
from learned_aug.influence.scores import check_stationary, influence_aug, influence_up
from learned_aug.influence.solvers import CG, BlockDiagonal, PlainGradient, solve
from learned_aug.influence.system import relative_damping

N_VAL, N_CHANGED = 5_000, 150
# Training images, and weight decay of the head's loss, weight_decay / 2 |theta|^2. The features are large (mean |h|^2
# over 1,000, in the JSON): 1.0 is a few per cent of a feature's mean square. The influence is the first order in 1 / N
# and fails where one sample has leverage, in small sets and with little decay.
SETTINGS = {2_000: (1e-1, 1.0), 10_000: (1e-2, 1e-1, 1.0)}
SHOWN = (10_000, 1.0)  # in the figure's scatter plots
DAMPING = (0.0, 0.1, 1.0, 10.0, 100.0)  # in mean eigenvalues of H
REFIT_TOLERANCE = 1e-10


Points = dict[tuple[str, str], tuple[Tensor, Tensor]]  # predicted and actual by change and head


@dataclass
class Row:
    """How predictions compare with refitting, for one kind of change, head and iHVP."""

    seed: int
    n_train: int
    weight_decay: float
    change: str  # leave_one_out or augmented_copy
    head: str  # refitted or as_found
    ihvp: str
    damping: float  # in mean eigenvalues
    n: int
    pearson: float
    spearman: float
    slope: float  # of actual on predicted, least squares through the origin
    sign_counted: int  # samples whose actual effect is over ten times what the refit's tolerance leaves open
    sign_agreement: float
    sign_agreement_large: float  # of samples whose actual effect exceeds a fifth of the median


def main() -> None:
    """Run all seeds, print the table, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root that holds MNIST/raw")
    parser.add_argument("--download", action="store_true", help="fetch MNIST into --data")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args()

    start = time.perf_counter()
    data = torchvision.datasets.MNIST(args.data, train=True, download=args.download)
    images, labels = data.data[:, None].float() / 255, data.targets
    rows: list[Row] = []
    heads: list[dict[str, float]] = []
    shown: Points = {}
    for n_train in args.sizes:
        for seed in range(args.seeds):
            measured, stationarity, points = run(images, labels, n_train, seed)
            rows += measured
            heads += stationarity
            shown = points if seed == 0 and n_train == SHOWN[0] else shown
    print_table(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {
        "command": "python " + shlex.join(sys.argv),
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(time.perf_counter() - start),
        "n_val": N_VAL,
        "n_changed": N_CHANGED,
        "refit_tolerance": REFIT_TOLERANCE,
        "heads_as_found": heads,
        "rows": [asdict(row) for row in rows],
    }
    (args.out / "validity.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, shown, args.out / "validity.png")


def run(images: Tensor, labels: Tensor, n_train: int, seed: int) -> tuple[list[Row], list[dict[str, float]], Points]:
    """One subset and one CNN: the rows, the found head's stationarity, and the points of the figure."""
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    train, val = order[:n_train], order[n_train : n_train + N_VAL]
    changed = torch.randperm(n_train)[:N_CHANGED]
    affine = v2.RandomAffine(degrees=20, translate=(0.1, 0.1), scale=(0.85, 1.15))
    copies = torch.stack([affine(images[i]) for i in train[changed]])

    model = train_cnn(images[train], labels[train])
    head = find_head(model)
    with borrowed(model), HeadTap(model, head) as tap:
        train_batch = double(collect(tap, [(images[train], labels[train])]))
        val_batch = double(collect(tap, [(images[val], labels[val])]))
        aug_batch = double(collect(tap, [(copies, labels[train[changed]])]))

    rows: list[Row] = []
    heads: list[dict[str, float]] = []
    points: Points = {}
    for weight_decay in SETTINGS[n_train]:
        found = HeadProblem.from_batch(train_batch, head, weight_decay=weight_decay).to(torch.float64)
        full = refit(found, REFIT_TOLERANCE)
        base = val_loss(full.problem, val_batch)
        actual = {"leave_one_out": torch.empty(N_CHANGED).double(), "augmented_copy": torch.empty(N_CHANGED).double()}
        gradient_norm = full.gradient_norm
        for j, i in enumerate(changed):
            weights = torch.ones(n_train).double().index_fill(0, i, 0.0)
            features = train_batch.features.clone()
            features[i] = aug_batch.features[j]
            for name, problem in (
                ("leave_one_out", replace(full.problem, sample_weights=weights)),
                ("augmented_copy", replace(full.problem, features=features)),
            ):
                result = refit(problem, REFIT_TOLERANCE)
                if not result.converged:
                    raise RuntimeError(f"refit stopped at |grad| = {result.gradient_norm:.1e}")
                gradient_norm = max(gradient_norm, result.gradient_norm)
                actual[name][j] = val_loss(result.problem, val_batch) - base

        for where, problem in (("refitted", full.problem), ("as_found", found)):
            here_val, here_train, here_aug = (
                at(problem, HeadBatch(*(t[changed] for t in b)) if b is train_batch else b)
                for b in (val_batch, train_batch, aug_batch)
            )
            val_grad = problem.validation_gradient(here_val)
            for name, factor, solver in [
                *(("exact", f, CG(tolerance=1e-8)) for f in DAMPING),
                ("block diagonal", 0.0, BlockDiagonal()),
                ("plain gradient", 0.0, PlainGradient()),
            ]:
                s_val = solve(problem, val_grad, relative_damping(problem, factor), solver).value
                predicted = {
                    "leave_one_out": -influence_up(s_val, here_train) / n_train,
                    "augmented_copy": influence_aug(s_val, here_aug, here_train) / n_train,
                }
                # |change of the validation loss| <= |s_val| |grad| to first order, for each of the two refits.
                resolution = 2 * float(s_val.norm()) * gradient_norm
                for change, p in predicted.items():
                    stats = compare(p, actual[change], resolution)
                    rows.append(Row(seed, n_train, weight_decay, change, where, name, factor, N_CHANGED, *stats))
                    if (n_train, weight_decay) == SHOWN and (name, factor) == ("exact", 0.0):
                        points[change, where] = p, actual[change]
            if where == "as_found":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the figures of the warning are what is recorded
                    s_val = solve(problem, val_grad, 0.0, CG()).value
                    measured = check_stationary(problem, s_val)._asdict()
                drop = float(F.cross_entropy(here_val.logits, here_val.labels)) - base
                heads.append(
                    {
                        "seed": seed,
                        "n_train": n_train,
                        "weight_decay": weight_decay,
                        **measured,
                        "actual_refit_drop": drop,
                        "mean_square_feature_norm": float(train_batch.features.square().sum(1).mean()),
                        "found_val_error": val_error(found, val_batch),
                        "refitted_val_error": val_error(full.problem, val_batch),
                    }
                )
    return rows, heads, points


def train_cnn(images: Tensor, labels: Tensor) -> nn.Module:
    """A small CNN, ten epochs of Adam."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 36, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(10):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def double(batch: HeadBatch) -> HeadBatch:
    """The batch with float64 features and logits."""
    return HeadBatch(batch.features.double(), batch.logits.double(), batch.labels)


def at(problem: HeadProblem, batch: HeadBatch) -> HeadBatch:
    """The batch with the logits of the problem's weights."""
    return batch._replace(logits=F.linear(batch.features, problem.weight, problem.bias))


def val_loss(problem: HeadProblem, batch: HeadBatch) -> float:
    """Mean cross-entropy on the validation batch, nats."""
    return float(F.cross_entropy(at(problem, batch).logits, batch.labels))


def val_error(problem: HeadProblem, batch: HeadBatch) -> float:
    """Share of the validation batch that is misclassified."""
    return float((at(problem, batch).logits.argmax(1) != batch.labels).double().mean())


def compare(predicted: Tensor, actual: Tensor, resolution: float) -> tuple[float, float, float, int, float, float]:
    """The figures of a `Row`, from `pearson` on."""
    pearson = float(torch.corrcoef(torch.stack([predicted, actual]))[0, 1])
    ranks = torch.stack([predicted.argsort().argsort(), actual.argsort().argsort()]).double()
    slope = float((predicted * actual).sum() / predicted.square().sum())
    agree = (predicted.sign() == actual.sign()).double()
    counted = actual.abs() > 10 * resolution
    large = actual.abs() > 0.2 * actual.abs().median()
    spearman = float(torch.corrcoef(ranks)[0, 1])
    return pearson, spearman, slope, int(counted.sum()), float(agree[counted].mean()), float(agree[large].mean())


def print_table(rows: list[Row]) -> None:
    """Means over seeds."""
    print("     N  decay change          head      iHVP            damping  Pearson Spearman   slope   sign  large")
    groups: dict[tuple[int, float, str, str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.n_train, row.weight_decay, row.change, row.head, row.ihvp, row.damping), []).append(row)
    figures = ("pearson", "spearman", "slope", "sign_agreement", "sign_agreement_large")
    for (n, decay, change, head, ihvp, damping), group in groups.items():
        means = " ".join(f"{statistics.mean(getattr(row, name) for row in group):7.4f}" for name in figures)
        print(f"{n:6d} {decay:6.0e} {change:15} {head:9} {ihvp:15} {damping:7g}  {means}")


def draw(rows: list[Row], points: Points, path: Path) -> None:
    """Predicted against actual for both heads, and the correlation over damping."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 7.5), constrained_layout=True)
    titles = {"leave_one_out": "leave one out", "augmented_copy": "augmented copy"}
    for line, change in zip(axes, titles, strict=True):
        for axis, head in zip(line, ("refitted", "as_found"), strict=False):
            predicted, actual = points[change, head]
            ends = [1e6 * float(actual.min()), 1e6 * float(actual.max())]
            axis.plot(ends, ends, color="0.7", lw=1)
            axis.scatter(1e6 * predicted, 1e6 * actual, s=10)
            axis.set(xlabel="predicted change of validation loss, micronats", ylabel="after refitting, micronats")
            axis.set_title(f"{titles[change]}, head {head.replace('_', ' ')}")
        for i, setting in enumerate(dict.fromkeys((r.n_train, r.weight_decay) for r in rows)):
            for head, style in (("refitted", "o-"), ("as_found", "s--")):
                key = (*setting, change, head, "exact")
                chosen = [r for r in rows if (r.n_train, r.weight_decay, r.change, r.head, r.ihvp) == key]
                means = [statistics.mean(r.pearson for r in chosen if r.damping == d) for d in DAMPING]
                label = f"N {setting[0]:,}, decay {setting[1]:g}" if head == "refitted" else None
                line[2].plot(range(len(DAMPING)), means, style, color=f"C{i}", ms=4, label=label)
        line[2].set(xlabel="damping, mean eigenvalues", ylabel="Pearson, mean over seeds", ylim=(-0.4, 1.05))
        line[2].set_title(f"{titles[change]}; dashed: head as found")
        line[2].set_xticks(range(len(DAMPING)), [f"{d:g}" for d in DAMPING])
        line[2].legend(fontsize=7, ncols=2, loc="lower left")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
