"""Tables of images per second."""

from __future__ import annotations

from report_tables.common import (
    caption,
    markdown,
    read,
    table,
)


def throughput(path: str, clock: str) -> str:
    """Return microseconds per image by contender and size, of one clock, with ratios."""
    found = read(path)
    sizes = {"32": "32 px", "224": "224 px"}
    names = list(dict.fromkeys(name for size in sizes for name in found["results"][size]))
    against = ("TrivialAugmentWide, PIL each", "kornia RandAugment, float batch")
    key = "cpu_mean_microseconds_per_image" if clock == "cpu" else "mean_microseconds_per_image"
    rows = []
    for name in names:
        cells = [name]
        for size in sizes:
            row = found["results"][size].get(name)
            if row is None:
                cells += [""] * 3
                continue
            cells.append(f"{row[key]:,.0f}")
            for other in against:
                ratio, low, high = row[f"speed over {other}"][clock]
                cells.append("1" if name == other else f"{ratio:.2g} [{low:.2g}, {high:.2g}]")
        rows.append(cells)
    head = [""]
    for size in sizes.values():
        head += [f"{size}: us an image", "speed over TrivialAugmentWide", "speed over kornia RandAugment"]
    seconds = "CPU time" if clock == "cpu" else "wall-clock time"
    text = (
        f"Mean {seconds} an image over {found['rounds']} rounds, all contenders in turn in each round; ratios of means "
        "with 95 % intervals from resampling the rounds, above 1 is faster. Batches hold 256 images at 32 px and 16 at "
        f"224 px; {found['threads']} thread{'s' if found['threads'] > 1 else ''}."
    )
    source = {**found, "device": f"{found['device']}, {found['threads']} of {found['cores']} cores"}
    load = f"{found['load_before'][0]:.1f} before, {found['load_after'][0]:.1f} after"
    return markdown(head, rows) + caption(text, source, commit=found["commit"][:7], date=found["date"], load=load)


@table("throughput-1-thread")
def _() -> str:
    return throughput("throughput/results/cpu-1-thread.json", "cpu")


@table("throughput-2-threads")
def _() -> str:
    return throughput("throughput/results/cpu-2-threads.json", "wall")


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
