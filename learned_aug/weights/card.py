"""The model card of published weights: a README.md that states the facts, or that they were not given."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from learned_aug.nets import AugmenterConfig
from learned_aug.weights.files import sha256

__all__ = ["CARD_NAME", "CardFacts", "CardResult", "published", "render"]

CARD_NAME = "README.md"
UNKNOWN = "Not stated."
PACKAGES = ("learned-aug", "torch", "torchvision")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardResult:
    """One arm of a comparison.

    Attributes:
        arm: what the classifiers were trained with.
        error: mean test error, percent.
        std: standard deviation over the runs, percentage points; None, and only then, for a single run.
        runs: number of runs.
    """

    arm: str
    error: float
    std: float | None
    runs: int

    def __post_init__(self) -> None:
        """Refuse what is no mean of runs."""
        spread = self.runs == 1 if self.std is None else self.std >= 0
        if not (0 <= self.error <= 100 and spread and self.runs >= 1):
            raise ValueError(
                f"error must be in [0, 100] percent, std >= 0 (None for one run) and runs >= 1, got {self}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says beyond the files themselves. What is not given is stated as such.

    Attributes:
        data: data set of the fit, and how it was split.
        classifier: that the augmenter was fitted to.
        protocol: of the measurement: schedules, seeds, what the test set was used for, the command.
        results: test errors; put the fitted augmenter first, then its controls.
        settings: of the fit, by name.
        diagnostics: of the fit, :attr:`learned_aug.FitResult.diagnostics`: figures by name, for each stage.
        cost: of the fit: time and device.
        limits: where not to use it.
        license: of the weights, an identifier of the Hub.
        data_license: of the data set.
        datasets: identifiers of the data sets on the Hub.
        pictures: PNG files with their captions, published beside the card.
        versions: of the packages that made the weights; by default those installed.
    """

    data: str = UNKNOWN
    classifier: str = UNKNOWN
    protocol: str = UNKNOWN
    results: tuple[CardResult, ...] = ()
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    diagnostics: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    cost: str = UNKNOWN
    limits: str = UNKNOWN
    license: str | None = None
    data_license: str = UNKNOWN
    datasets: tuple[str, ...] = ()
    pictures: Mapping[str | Path, str] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] | None = None


def render(facts: CardFacts, config: AugmenterConfig, files: Mapping[str, bytes], source: str) -> dict[str, bytes]:
    """The card and its pictures, by file name.

    Args:
        facts: see :class:`CardFacts`.
        config: of the augmenter.
        files: the weight files, for their SHA-256.
        source: what ``from_pretrained`` takes: "org/name", "./folder", or a name of ``list_pretrained``.

    Raises:
        ValueError: if a picture is no PNG file.
        OSError: if a picture cannot be read.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=facts.license,
        library_name="learned-aug",
        pipeline_tag="image-to-image",
        tags=["data-augmentation", "influence-functions", "torchvision"],
        datasets=list(facts.datasets) or None,
    )
    versions = facts.versions
    if versions is None:
        versions = {"Python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    if others := [str(path) for path in facts.pictures if Path(path).suffix != ".png"]:
        raise ValueError(f"pictures must be PNG files, got {others}; save them as .png")
    pictures = {Path(path).name: (Path(path).read_bytes(), caption) for path, caption in facts.pictures.items()}
    does = " and ".join(
        word for k, word in enumerate(("warps", "recolors")) if any(stage[k] for stage in config.stages)
    )
    shown = "".join(f"![{caption}]({name})\n\n{caption}\n\n" for name, (_, caption) in pictures.items())
    channels = "1 channel" if config.channels == 1 else f"{config.channels} channels"
    kind = f"{channels}, fitted at {config.size}x{config.size} pixels; other sizes work"
    # A card cannot name the commit that it is part of.
    on_hub = "/" in source and not source.startswith(".")
    pin = "To pin it, add `revision=` with a commit of this repository. " if on_hub else ""
    settings = {**facts.settings, **{f"config.{k}": v for k, v in config.to_dict().items()}}
    text = f"""---
{data.to_yaml()}
---

# {source.rstrip("/").rsplit("/", 1)[-1]}

A network of the Python package learned-aug that {does} images, each time differently, fitted to one classifier by
influence functions. Images: {kind}.

## How to use

```python
import torch
from torchvision.transforms import v2
from learned_aug import LearnedAugment

augment = LearnedAugment.from_pretrained("{source}")
transform = v2.Compose([augment, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])  # before any Normalize
```

{pin}Every call draws anew; draws come from torch's global generator.

## Test error

{_table(("Trained with", "Error, mean ± std", "Runs"), [_row(r) for r in facts.results]) or "Not measured."}

{shown}## How it was made

- **Data:** {facts.data}
- **Classifier:** {facts.classifier}
- **Protocol:** {facts.protocol}
- **Cost:** {facts.cost}
- **Versions:** {", ".join(f"{package} {number}" for package, number in versions.items())}

{_measured(facts.diagnostics)}{_table(("Setting", "Value"), [(f"`{k}`", f"`{v}`") for k, v in settings.items()])}

## Limits

{facts.limits}

## License

- **Weights:** {facts.license or UNKNOWN}
- **Data:** {facts.data_license}

## Files

{_table(("File", "Bytes", "SHA-256"), [(name, str(len(f)), f"`{sha256(f)}`") for name, f in files.items()])}
"""
    return {CARD_NAME: text.encode(), **{name: picture for name, (picture, _) in pictures.items()}}


def published(folder: Path, repo_id: str) -> dict[str, bytes]:
    """The card of a folder that :func:`render` wrote and people may have edited, for a repository, and its pictures.

    Args:
        folder: with a README.md; its own name in there becomes that of the repository.
        repo_id: "org/name".

    Returns:
        By file name: the card, and the PNG files beside it that it shows. Empty if there is no card.

    Raises:
        OSError: if a file cannot be read.
    """
    if not (folder / CARD_NAME).is_file():
        return {}
    text = (folder / CARD_NAME).read_text(encoding="utf-8")
    name = folder.resolve().name
    for source in (f"./{name}", name):
        text = text.replace(f'from_pretrained("{source}")', f'from_pretrained("{repo_id}")')
    text = re.sub(rf"^# {re.escape(name)}$", f"# {repo_id.rsplit('/', 1)[-1]}", text, count=1, flags=re.M)
    shown = {link for link in re.findall(r"!\[[^]]*\]\(([^)/]+\.png)\)", text) if (folder / link).is_file()}
    return {CARD_NAME: text.encode(), **{link: (folder / link).read_bytes() for link in sorted(shown)}}


def _row(result: CardResult) -> tuple[str, str, str]:
    spread = "" if result.std is None else f" ± {result.std:.2f}"
    return result.arm, f"{result.error:.2f}{spread} %", str(result.runs)


def _measured(diagnostics: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(diagnostics.values()), {}))
    rows = [(stage, *(f"{figures[name]:.3g}" for name in names)) for stage, figures in diagnostics.items()]
    table = _table(("What it does", *(f"`{name}`" for name in names)), rows)
    return f"{table}\n\nThe figures are those of `learned_aug.fit.measure`.\n\n" if rows else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in row)} |" for row in cells)
