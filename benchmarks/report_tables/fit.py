"""Tables of the costs and the safety of a fit."""

from __future__ import annotations

import statistics
from collections import defaultdict

from report_tables.common import (
    Row,
    caption,
    load_text,
    markdown,
    read,
    table,
)


@table("fit-stages")
def _() -> str:
    found = read("fit/results/stages.json")
    names = {
        "train features": "features of the training images",
        "val features": "features of the hyper-validation images",
        "refit": "refit of the head",
        "ihvp": "s_val",
        "maximize": "stage 3",
        "diagnostics of prior": "figures of the start",
        "diagnostics of fitted": "figures of the fitted networks",
    }
    results = found["results"]
    parts = list(dict.fromkeys(part for result in results.values() for part in result["seconds"]))
    rows = [
        [names.get(part, part)]
        + [
            f"{r['seconds'].get(part, 0):.1f} s, {100 * r['seconds'].get(part, 0) / r['training']:.2f} %"
            for r in results.values()
        ]
        for part in parts
    ]
    rows.append(["all", *(f"{r['fit']:.0f} s, {r['share_percent']:.1f} %" for r in results.values())])
    rows.append(["one training run", *(f"{r['training']:,.0f} s" for r in results.values())])
    described = "; ".join(
        f"{name}: {r['images']['train']:,} training and {r['images']['val']:,} hyper-validation images of "
        f"{r['images']['size']} px, {r['training_step']:.2f} s a training step"
        for name, r in results.items()
    )
    text = (
        f"Default settings, and shares of one training run of {found['epochs']} epochs in batches of {found['batch']}. "
        f"{described}. CPU time; of stage 3, {found['steps']['run']} of {found['steps']['default']} steps were run, "
        "and the training run is counted in steps."
    )
    load = load_text(found)
    return markdown(["part of the fit", *results], rows) + caption(text, found, commit=found["commit"][:7], load=load)


@table("fit-memory")
def _() -> str:
    found = read("fit/results/memory.json")
    rows = [
        [
            f"{row['D']:,} features, {row['K']:,} classes, features in {row['cache']}",
            f"{row['peak_above_bytes'] / 2**30:.2f}",
            f"{row['cache_bytes'] / 2**30:.2f}",
            f"{row['probabilities_bytes'] / 2**30:.2f}",
        ]
        for row in found["rows"]
    ]
    text = f"N = {found['rows'][0]['N']:,} training images; one run each, peak of the process less that before the fit."
    head = ["problem", "peak, GiB", "of it features", "of it probabilities"]
    return markdown(head, rows) + caption(text, found)


@table("fit-half-precision")
def _() -> str:
    found = read("fit/results/memory.json")
    by_dtype: dict[str, list[Row]] = defaultdict(list)
    for row in found["half_precision"]:
        by_dtype[row["cache"].removeprefix("torch.")].append(row)

    def figures(group: list[Row], key: str) -> str:
        return f"{statistics.mean(r[key] for r in group):.1e} ± {statistics.stdev(r[key] for r in group):.0e}"

    rows = [[name, str(len(g)), figures(g, "s_val"), figures(g, "influence")] for name, g in by_dtype.items()]
    text = "Relative change of s_val, and of the influences, if features are cached in half precision."
    return markdown(["features in", "seeds", "s_val", "influence"], rows) + caption(text, found)


@table("fit-kills")
def _() -> str:
    found = read("fit/results/kills.json")
    reached: dict[str, int] = defaultdict(int)
    for trial in found["trials"]:
        reached[trial["reached"]] += 1
    places = ", ".join(f"{count} {place}" for place, count in sorted(reached.items()))
    rows = [
        ["kills at random moments", str(found["kills"])],
        ["of these during the write of a checkpoint", str(found["in_write"])],
        ["checkpoints that could not be read afterward", str(found["unreadable_checkpoints"])],
        ["resumed to the same bits", str(found["bit_equal"])],
    ]
    return markdown(["", "count"], rows) + caption(f"Where the fits were when they were killed: {places}.", found)


@table("fit-distributed")
def _() -> str:
    found = read("fit/results/distributed.json")
    rows = []
    for name, part in found["relative_difference_from_one_process"].items():
        two, control = part["two processes"], part["control"]
        rows.append([name, f"{two['weights']:.1e}", f"{control['weights']:.1e}"])
    text = (
        "Relative difference of the weights from those of one process, for two processes and for a control: one "
        "process whose sums run in another order. All processes end with equal bits: "
        + ("yes" if found["processes_equal_to_the_last_bit"] else "no")
        + "."
    )
    return markdown(["stage", "two processes", "control"], rows) + caption(text, found)


@table("fit-imagenet-plan")
def _() -> str:
    found = read("fit/results/imagenet_plan.json")
    forms = found["forms"]
    parts = list(dict.fromkeys(part for form in forms.values() for part in form["plan"]["hours"]))
    rows = [[f"{part}, hours"] + [f"{form['plan']['hours'][part]:.3f}" for form in forms.values()] for part in parts]
    rows.append(["all, GPU hours"] + [f"{form['plan']['gpu_hours']:.2f}" for form in forms.values()])
    kept = next(iter(forms.values()))["plan"]["gigabytes_per_gpu"]
    rows += [
        [f"{name}, GB for each GPU", *(f"{f['plan']['gigabytes_per_gpu'][name]:.1f}" for f in forms.values())]
        for name in kept
    ]
    assumed = found["assumed"]
    text = (
        "Counted on the CPU and scaled, never run on ImageNet: "
        f"{assumed['gpus']} GPUs at {assumed['tflops']:g} TFLOP/s and {assumed['memory_gb_s']:g} GB/s, "
        f"{assumed['decoded_per_s']:,.0f} images decoded a second, batches of {assumed['batch']}."
    )
    source = {**found, "device": f"CPU, counted on {found['counted_on_images']} images"}
    return markdown(["", *forms], rows) + caption(text, source, commits=found["commit"][:7])
