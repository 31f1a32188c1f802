"""Tables of predicted influences against those measured, and of the solvers."""

from __future__ import annotations

from collections import defaultdict

from report_tables.common import (
    Row,
    caption,
    markdown,
    mean_std,
    read,
    table,
)


@table("influence-validity")
def _() -> str:
    found = read("influence/results/validity.json")
    changes = {"leave_one_out": "left out", "augmented_copy": "replaced by an augmented copy"}
    heads = {"refitted": "refitted", "as_found": "as found"}
    norms = {h["seed"]: h["mean_square_feature_norm"] for h in found["heads_as_found"] if h["n_train"] == 10_000}
    rows = []
    for head, head_name in heads.items():
        for decay in (1.0, 0.1, 0.01):
            for change, change_name in changes.items():
                group = [
                    row
                    for row in found["rows"]
                    if (row["n_train"], row["weight_decay"], row["change"], row["head"], row["ihvp"], row["damping"])
                    == (10_000, decay, change, head, "exact", 0.0)
                ]
                rows.append(
                    [
                        f"{change_name}; head {head_name}",
                        f"{decay:g}",
                        mean_std([r["pearson"] for r in group], 4),
                        mean_std([r["spearman"] for r in group], 4),
                        mean_std([r["slope"] for r in group], 3),
                        mean_std([100 * r["sign_agreement"] for r in group], 1),
                    ]
                )
    head = ["change of one training image", "weight decay", "Pearson", "Spearman", "slope", "sign right, %"]
    text = (
        "Predicted against actual changes of the loss on "
        f"{found['n_val']:,} images, each after refitting the head to convergence; MNIST, N = 10,000, "
        f"{found['n_changed']} changes for each seed, mean ± standard deviation over {len(norms)} seeds, no damping. "
        f"The mean squared norm of the features is {min(norms.values()):,.0f} to {max(norms.values()):,.0f}. A slope "
        "of 1 is right."
    )
    return markdown(head, rows) + caption(text, found)


@table("influence-damping")
def _() -> str:
    found = read("influence/results/validity.json")
    kinds = [("exact", d) for d in (0.0, 0.1, 1.0, 10.0, 100.0)] + [("block diagonal", 0.0), ("plain gradient", 0.0)]
    rows = []
    for ihvp, damping in kinds:
        cells = [f"exact, damping {damping:g}" if ihvp == "exact" else ihvp]
        for change in ("leave_one_out", "augmented_copy"):
            group = [
                row
                for row in found["rows"]
                if (row["n_train"], row["weight_decay"], row["change"], row["head"], row["ihvp"], row["damping"])
                == (10_000, 1.0, change, "refitted", ihvp, damping)
            ]
            cells += [mean_std([row["pearson"] for row in group], 3), mean_std([row["slope"] for row in group], 3)]
        rows.append(cells)
    head = ["inverse Hessian", "left out: Pearson", "slope", "replaced: Pearson", "slope"]
    text = (
        "The same changes, weight decay 1, head refitted; damping in units of the mean eigenvalue of the Hessian's "
        "data term; mean and standard deviation over seeds."
    )
    return markdown(head, rows) + caption(text, found)


@table("influence-speed")
def _() -> str:
    found = read("influence/results/speed.json")
    problems = [(64, 10, 50_000), (640, 10, 50_000), (2048, 1000, 20_000)]
    groups: dict[str, dict[tuple[int, int, int, float], Row]] = defaultdict(dict)
    for row in [*found["rows"], *found["small_damping"]["rows"]]:
        groups[row["solver"]].setdefault((row["D"], row["K"], row["N"], row["damping"]), row)
    columns = [(*problem, damping) for problem in problems for damping in (10.0, 0.1, 0.01)]
    columns = [c for c in columns if sum(c in group for group in groups.values()) > 1]

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        if "failed" in row:
            return row["failed"]
        repeats = "" if row["repeats"] > 1 else " *"
        return f"{row['median_s']:.3g}{repeats} ({row['residual']:.0e})"

    rows = [
        [
            name.replace("ours", "learned-aug").replace("error 1e", "tolerance 1e"),
            *(cell(group.get(c)) for c in columns),
        ]
        for name, group in groups.items()
    ]
    head = ["solver", *(f"D {d:,}, K {k:,}, N {n:,}, damping {x:g}" for d, k, n, x in columns)]
    text = (
        "CPU seconds for one s_val, median of 3 runs (\\* a single run), and in brackets the relative residual "
        f"reached, measured in float64; asked for {found['residual_asked']:g}. Damping in mean eigenvalues of the "
        "Hessian. EK-FAC and Arnoldi approximate the Hessian: their residual says how far."
    )
    return markdown(head, rows) + caption(text, found)
