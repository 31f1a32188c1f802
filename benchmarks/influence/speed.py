"""How long does one s_val take? The closed form against general-purpose influence libraries, on the same problem.

The problem: softmax regression on N features of dimension D with K classes, float32, at weights that fit part of it;
the right-hand side is the gradient of other samples; damping 10 mean eigenvalues of H and 0.1. Features are synthetic:
ReLU of correlated Gaussians, whose spectrum falls as a trained network's does. Each solver is asked for a relative
residual of 1e-3, which is then measured in float64, outside the timing. Every run is its own process with a time limit;
its peak memory is the whole process less what it held before the solve.

    python benchmarks/influence/speed.py

The libraries are optional (`pip install "pydvl[influence]" captum dattri kronfluence`); those missing are named in the
result. torch-influence is not on PyPI and is not measured. captum's Arnoldi and kronfluence's EK-FAC approximate H:
their residual says how far. Writes speed.json to --out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from learned_aug.influence.cg import conjugate_gradients
from learned_aug.influence.problem import HeadProblem
from learned_aug.influence.solvers import CG, Direct, LiSSA, solve
from learned_aug.influence.system import relative_damping

RESIDUAL = 1e-3
SIZES = {"medium": (640, 10, 50_000), "large": (2048, 1000, 20_000), "small": (64, 10, 50_000)}  # D, K, N
LINE = (6_250, 12_500, 25_000, 50_000)  # N of the medium size, for the line through the cost
OUR_LIMIT = 900.0  # seconds
LIBRARIES = ("pydvl", "captum", "dattri", "kronfluence")


def make_problem(dim: int, classes: int, n: int) -> tuple[HeadProblem, Tensor]:
    """The problem and the right-hand side, the same for all solvers."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=generator) * torch.arange(1, dim + 1).float().rsqrt()
    teacher = torch.randn(classes, dim, generator=generator) / dim**0.5

    def draw(count: int) -> tuple[Tensor, Tensor]:
        features = (torch.randn(count, dim, generator=generator) @ (mix / mix.norm(dim=0).mean())).relu()
        noisy = 3 * F.linear(features, teacher) + torch.randn(count, classes, generator=generator)
        return features, noisy.argmax(1)

    features, labels = draw(n)
    problem = HeadProblem(features=features, labels=labels, weight=2 * teacher, bias=torch.zeros(classes))
    features, labels = draw(5_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 1,000 classes some have no sample
        return problem, problem.validation_gradient(problem.head(features, labels))


def linear(problem: HeadProblem) -> nn.Linear:
    """The head as a module, for the libraries."""
    head = nn.Linear(problem.weight.shape[1], len(problem.weight))
    head.weight.data.copy_(problem.weight)
    head.bias.data.zero_()
    return head


def ours(problem: HeadProblem, rhs: Tensor, damping: float, solver: Direct | CG | LiSSA) -> Callable[[], Tensor]:
    def run() -> Tensor:
        fresh = problem.with_theta(problem.theta)  # without cached probabilities: they are part of the cost
        return solve(fresh, rhs, damping, solver).value

    return run


def pydvl(problem: HeadProblem, rhs: Tensor, damping: float) -> Callable[[], Tensor]:
    from pydvl.influence.torch.operator import CgOperator, HessianOperator

    loader = DataLoader(TensorDataset(problem.features, problem.labels), batch_size=10_000)
    b = torch.cat([rhs[:, :-1].flatten(), rhs[:, -1]])

    def run() -> Tensor:
        hessian = HessianOperator(linear(problem), F.cross_entropy, loader)
        # Version 0.10 stops at |r| < max(atol^2, rtol^2 |b_0|): ask for the residual through atol.
        atol = (RESIDUAL * float(b.norm())) ** 0.5
        x = CgOperator(hessian, damping, rtol=0.0, atol=atol, maxiter=1000).apply(b)
        return unflatten(x.detach().flatten(), rhs)

    return run


def captum_naive(problem: HeadProblem, rhs: Tensor, damping: float) -> Callable[[], Tensor]:
    return _captum(problem, rhs, damping, exact=True)


def captum_arnoldi(problem: HeadProblem, rhs: Tensor, damping: float) -> Callable[[], Tensor]:
    return _captum(problem, rhs, damping, exact=False)


def _captum(problem: HeadProblem, rhs: Tensor, damping: float, exact: bool) -> Callable[[], Tensor]:
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
    from captum.influence._core.influence_function import NaiveInfluenceFunction

    n = problem.n_train
    data = TensorDataset(problem.features, problem.labels)
    b = torch.cat([rhs[:, :-1].flatten(), rhs[:, -1]])

    def run() -> Tensor:
        # Its Hessian is that of the sum over samples.
        options = {
            "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
            "batch_size": 10_000,
            "hessian_reg": n * damping,
            "hessian_inverse_tol": 0.0 if exact else 1e-5,
            "checkpoints_load_func": lambda *_: 1.0,
            "sample_wise_grads_per_batch": True,
        }
        if exact:
            found = NaiveInfluenceFunction(linear(problem), data, "", projection_dim=rhs.numel(), **options)
            return unflatten(n * found.R @ (found.R.T @ b), rhs)
        found = ArnoldiInfluenceFunction(linear(problem), data, "", projection_dim=50, arnoldi_dim=50, **options)
        columns = torch.stack([torch.cat([t.flatten() for t in column]) for column in found.R])
        return unflatten(n * columns.T @ (columns @ b), rhs)

    return run


def dattri_cg(problem: HeadProblem, rhs: Tensor, damping: float) -> Callable[[], Tensor]:
    from dattri.func.hessian import ihvp_at_x_cg

    def loss(theta: Tensor) -> Tensor:
        theta = theta.view(rhs.shape)
        return F.cross_entropy(F.linear(problem.features, theta[:, :-1], theta[:, -1]), problem.labels)

    # Its CG has no stopping rule: give it the steps that plain CG needs for the residual, found outside the timing.
    limit = RESIDUAL * float(rhs.norm())
    *_, steps = conjugate_gradients(
        lambda v: problem.hvp(v).add_(v, alpha=damping), rhs, lambda _, r: float(r.norm()) <= limit, 10_000
    )

    def run() -> Tensor:
        theta = problem.theta.flatten()
        x = ihvp_at_x_cg(loss, theta, max_iter=steps, regularization=damping)(rhs.flatten())
        return x.detach().view(rhs.shape)

    return run


def dattri_explicit(problem: HeadProblem, rhs: Tensor, damping: float) -> Callable[[], Tensor]:
    from dattri.func.hessian import ihvp_at_x_explicit

    def loss(theta: Tensor) -> Tensor:
        theta = theta.view(rhs.shape)
        return F.cross_entropy(F.linear(problem.features, theta[:, :-1], theta[:, -1]), problem.labels)

    def run() -> Tensor:
        theta = problem.theta.flatten()
        x = ihvp_at_x_explicit(loss, theta, regularization=damping)(rhs.flatten()[None])
        return x.detach().view(rhs.shape)

    return run


def kronfluence(problem: HeadProblem, rhs: Tensor, damping: float) -> Callable[[], Tensor]:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task

    class Head(Task):
        def compute_train_loss(self, batch, model, sample=False):  # type: ignore[no-untyped-def]
            logits = model(batch[0])
            labels = torch.multinomial(logits.detach().softmax(1), 1).flatten() if sample else batch[1]
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):  # type: ignore[no-untyped-def]
            return self.compute_train_loss(batch, model)

    data = TensorDataset(problem.features, problem.labels)

    def run() -> Tensor:
        model = prepare_model(nn.Sequential(linear(problem)), Head())
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("head", model, Head(), output_dir=folder, disable_tqdm=True, disable_model_save=True)
            analyzer.fit_all_factors("ekfac", data, per_device_batch_size=5_000)
            vectors = analyzer.load_eigendecomposition("ekfac")
            lambdas = analyzer.load_lambda_matrices("ekfac")
        q_out, q_in = (vectors[f"{side}_eigenvectors"]["0"] for side in ("gradient", "activation"))
        spectrum = lambdas["lambda_matrix"]["0"] / lambdas["num_lambda_processed"]["0"]
        return q_out @ ((q_out.T @ rhs @ q_in) / (spectrum + damping)) @ q_in.T

    return run


def unflatten(x: Tensor, rhs: Tensor) -> Tensor:
    """Parameters in the order weight, bias as (K, D + 1)."""
    k, d = rhs.shape[0], rhs.shape[1] - 1
    return torch.cat([x[: k * d].view(k, d), x[k * d :, None]], 1)


CONTENDERS: dict[str, Callable[[HeadProblem, Tensor, float], Callable[[], Tensor]]] = {
    # Ours stop at a proved relative error: 1e-3 is a residual of 1e-4 here, 1e-2 is 0.4e-3 to 3e-3.
    "ours CG, error 1e-2": lambda p, b, d: ours(p, b, d, CG(tolerance=10 * RESIDUAL)),
    "ours CG, error 1e-3": lambda p, b, d: ours(p, b, d, CG(tolerance=RESIDUAL)),
    "ours plain CG": lambda p, b, d: ours(p, b, d, CG(tolerance=10 * RESIDUAL, preconditioner="none")),
    "ours Direct": lambda p, b, d: ours(p, b, d, Direct()),
    "ours LiSSA": lambda p, b, d: ours(p, b, d, LiSSA(tolerance=10 * RESIDUAL)),
    "pydvl CG": pydvl,
    "captum naive": captum_naive,
    "captum Arnoldi": captum_arnoldi,
    "dattri CG": dattri_cg,
    "dattri explicit": dattri_explicit,
    "kronfluence EK-FAC": kronfluence,
}
AT_SMALL_DAMPING = (
    "ours CG, error 1e-2",
    "ours CG, error 1e-3",
    "ours plain CG",
    "pydvl CG",
    "dattri CG",
)  # at 0.1 too
AT_LARGE = ("ours CG, error 1e-2", "ours CG, error 1e-3", "pydvl CG")
EXPLICIT = ("ours Direct", "captum naive", "dattri explicit")  # form H: small size only


def work(name: str, dim: int, classes: int, n: int, factor: float, repeats: int, threads: int) -> None:
    """One contender in this process: prints its figures as JSON."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # the libraries'
    tiny, b = make_problem(16, 3, 500)
    CONTENDERS[name](tiny, b, relative_damping(tiny, 1))()  # imports and first calls are not timed
    problem, rhs = make_problem(dim, classes, n)
    damping = relative_damping(problem, factor)
    run = CONTENDERS[name](problem, rhs, damping)
    before = peak_bytes(reset=True)
    seconds, wall = [], []
    while len(seconds) < repeats:
        start = time.process_time(), time.perf_counter()
        x = run()
        seconds.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    peak = peak_bytes() - before
    exact = problem.to(torch.float64)
    r = rhs.double() - exact.hvp(x.double()) - damping * x.double()
    residual = float(r.norm() / rhs.double().norm())
    figures = {"seconds": seconds, "wall_s": wall, "residual": residual, "extra_bytes": peak}
    print("RESULT " + json.dumps(figures))


def peak_bytes(reset: bool = False) -> int:
    """Peak resident memory of this process, Linux; from now on if `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def attempt(
    name: str, size: tuple[int, int, int], factor: float, repeats: int, args: argparse.Namespace
) -> dict[str, object]:
    """One contender in a process of its own: its row, with the reason where there is no time."""
    dim, classes, n = size
    row: dict[str, object] = {"solver": name, "D": dim, "K": classes, "N": n, "damping": factor}
    row["load_before"] = round(os.getloadavg()[0], 1)
    command = [sys.executable, __file__, "--work", name, *map(str, size), str(factor), str(repeats), str(args.threads)]
    limit = OUR_LIMIT if name.startswith("ours") else args.limit
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return row | {"failed": f"not finished in {limit:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        return row | {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    figures = json.loads(lines[0].removeprefix("RESULT "))
    times = figures.pop("seconds")
    return row | {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times),
                  "repeats": len(times), **figures}  # fmt: skip


def main() -> None:
    """Run every contender that applies, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one library, set-up included")
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the libraries run once")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        name, dim, classes, n, factor, repeats, threads = args.work
        work(name, int(dim), int(classes), int(n), float(factor), int(repeats), int(threads))
        return

    rows = []
    for label in args.sizes:
        for name in CONTENDERS:
            if (name in EXPLICIT and label != "small") or (label == "large" and name not in AT_LARGE):
                continue
            for factor in (10.0, 0.1) if name in AT_SMALL_DAMPING and label != "large" else (10.0,):
                repeats = args.repeats if name.startswith("ours") and label != "large" else 1
                rows.append(attempt(name, SIZES[label], factor, repeats, args))
                print_row(rows[-1])
        save(args, rows, [])
    dim, classes, _ = SIZES["medium"]
    line = [attempt("ours CG, error 1e-3", (dim, classes, n), 10.0, args.repeats, args) for n in LINE]
    for row in line:
        print_row(row)
    save(args, rows, line)


def save(args: argparse.Namespace, rows: list[dict[str, object]], line: list[dict[str, object]]) -> None:
    """Write what has been measured so far."""
    args.out.mkdir(parents=True, exist_ok=True)
    report = {
        "command": "python " + shlex.join(sys.argv),
        "device": f"cpu, {args.threads} of {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | library_versions(),
        "residual_asked": RESIDUAL,
        "seconds_are": "CPU seconds; wall_s beside them; load_before is the load average of the shared machine",
        "rows": rows,
        "line": {"rows": line, **fit_line(line)} if line else None,
        "not_measured": {"torch-influence": "not on PyPI"},
    }
    (args.out / "speed.json").write_text(json.dumps(report, indent=1) + "\n")


def fit_line(rows: list[dict[str, object]]) -> dict[str, float]:
    """Least squares of seconds on N, and how much of the variance it explains."""
    n, s = (torch.tensor([float(str(row[key])) for row in rows]).double() for key in ("N", "min_s"))
    slope = float(((n - n.mean()) * (s - s.mean())).sum() / (n - n.mean()).square().sum())
    intercept = float(s.mean()) - slope * float(n.mean())
    unexplained = float((s - slope * n - intercept).square().sum() / (s - s.mean()).square().sum())
    print(f"cost over N: {intercept:.3f} s + {1e6 * slope:.2f} s per million samples, R^2 {1 - unexplained:.4f}")
    return {"seconds_per_sample": slope, "intercept_s": intercept, "r_squared": 1 - unexplained}


def library_versions() -> dict[str, str]:
    """Versions of the libraries, or that they are missing."""
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    return {name: installed.get(name, "not installed") for name in LIBRARIES}


def print_row(row: dict[str, object]) -> None:
    where = f"D {row['D']:5} K {row['K']:5} N {row['N']:6} damping {row['damping']:4}  {row['solver']:20}"
    if "failed" in row:
        print(f"{where} {row['failed']}", flush=True)
    else:
        memory = float(str(row["extra_bytes"])) / 2**20
        span = f"({row['min_s']:.3f} to {row['max_s']:.3f})"
        print(f"{where} {row['median_s']:9.3f} s {span}, residual {row['residual']:.1e}, +{memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
