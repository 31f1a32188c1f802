"""Tables of images per second."""

from __future__ import annotations

from report_tables.common import (
    caption,
    load_text,
    markdown,
    read,
    table,
)

AGAINST = {
    "TrivialAugmentWide, PIL each": "TrivialAugmentWide",
    "kornia RandAugment, float batch": "kornia RandAugment",
}


@table("throughput")
def _() -> str:
    found = read("throughput/results/cpu-1-thread.json")
    sizes = list(found["results"])
    names = list(dict.fromkeys(name for size in sizes for name in found["results"][size]))
    rows = []
    for name in names:
        cells = [name]
        for size in sizes:
            row = found["results"][size].get(name)
            if row is None:
                cells += [""] * (1 + len(AGAINST))
                continue
            cells.append(f"{row['cpu_microseconds_per_image']:,.0f}")
            for other in AGAINST:
                ratio, low, high = row[f"speed over {other}"]["cpu"]
                cells.append("1" if name == other else f"{ratio:.2g} [{low:.2g}, {high:.2g}]")
        rows.append(cells)
    head = [""]
    for size in sizes:
        head += [f"{size} px: us an image", *(f"speed over {other}" for other in AGAINST.values())]
    text = (
        f"Median CPU time an image over {found['rounds']} rounds, all contenders in an order of its own in each; "
        "ratios of medians with 95 % intervals from resampling the rounds, above 1 is faster. Batches hold 256 images "
        "at 32 px, 64 at 64 px and 16 at 224 px; 1 thread. TrivialAugmentWide takes the nearest pixel unless bilinear "
        "is stated."
    )
    source = {**found, "device": f"{found['device']}, {found['threads']} of {found['cores']} cores"}
    load = load_text(found)
    return markdown(head, rows) + caption(text, source, commit=found["commit"][:7], date=found["date"], load=load)


@table("throughput-step-share")
def _() -> str:
    found = read("throughput/results/cpu-1-thread.json")
    rows = [
        [
            name,
            str(step["batch"]),
            f"{step['milliseconds_per_image']:.1f}",
            f"{step['share_of_the_augmenter_percent']:.3f} %",
        ]
        for name, step in found["training_steps"].items()
    ]
    text = "Time of a training step an image, and the share of it that augmenting a batch takes."
    source = {**found, "device": f"{found['device']}, {found['threads']} of {found['cores']} cores"}
    head = ["classifier", "batch", "ms an image", "share of the augmenter"]
    return markdown(head, rows) + caption(text, source, commit=found["commit"][:7], date=found["date"])


@table("steering")
def _() -> str:
    found = read("throughput/results/steering.json")
    rows = []
    for name, result in found["results"].items():
        ratio, low, high = result["ratio"]
        steps = (result["milliseconds_per_step"], result["milliseconds_per_steered_step"])
        rows.append([name, str(result["size"]), *(f"{t:,.0f}" for t in steps), f"{ratio:.2f} [{low:.2f}, {high:.2f}]"])
    text = (
        f"CPU time of a training step in batches of {found['batch']}, median over {found['rounds']} rounds of both in "
        "one process; ratio with a 95 % interval from resampling the rounds."
    )
    source = {**found, "device": f"{found['device']}, {found['threads']} of {found['cores']} cores"}
    load = load_text(found)
    head = ["classifier", "px", "ms a step", "ms a step with SteeredDraws", "times as long"]
    return markdown(head, rows) + caption(text, source, commit=found["commit"][:7], date=found["date"], load=load)


@table("detection")
def _() -> str:
    found = read("throughput/results/detection.json")
    rows = []
    for size, result in found["results"].items():
        ratio, low, high = result["ratio"]
        times = (f"{result['microseconds'][name]:,.0f}" for name in ("LearnedAugment", "RandomAffine"))
        rows.append([f"{size} px", *times, f"{ratio:.2f} [{low:.2f}, {high:.2f}]"])
    text = (
        f"CPU time of a sample, an image in uint8 with {found['masks']} masks and {found['boxes']} boxes; medians over "
        f"{found['rounds']} rounds of {found['draws']} draws each; ratio with a 95 % interval from resampling the "
        "rounds."
    )
    load = load_text(found)
    head = ["", "LearnedAugment, us", "RandomAffine, us", "times as long"]
    return markdown(head, rows) + caption(text, found, commit=found["commit"][:7], load=load)
