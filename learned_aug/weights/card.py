"""Write the model card of published weights: a README.md that states the facts, or that they were not given."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from learned_aug.config import AugmenterConfig
from learned_aug.weights.files import WeightsError, sha256

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["CARD_NAME", "CardFacts", "CardResult", "published", "render"]

CARD_NAME = "README.md"
UNKNOWN = "Not stated."
FITTED = "fitted to one classifier by\ninfluence functions"
PRIOR = """a calibrated prior: its weights
are random, scaled to the strengths among the settings below; a fit to a classifier found none that are better with
certainty"""
PACKAGES = ("learned-aug", "torch", "torchvision")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardResult:
    """States the result of one arm of a comparison."""

    arm: str
    """What the classifiers were trained with."""
    error: float
    """Mean test error, percent."""
    std: float | None
    """Standard deviation over the runs, percentage points; None, and only then, for a single run."""
    runs: int
    """Number of runs."""

    def __post_init__(self) -> None:
        """Refuse what is no mean of runs.

        Raises:
            ValueError: if `error`, `std` or `runs` is out of its range.
        """
        spread = self.runs == 1 if self.std is None else self.std >= 0
        if not (0 <= self.error <= 100 and spread and self.runs >= 1):
            raise ValueError(
                f"error must be in [0, 100] percent, std >= 0 (None for one run) and runs >= 1, got {self}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """States what a model card says beyond the files themselves; the card names as such what is not given."""

    data: str = UNKNOWN
    """Data set of the fit, and how it was split."""
    classifier: str = UNKNOWN
    """Classifier that the augmenter was fitted to."""
    fitted: bool = True
    """Whether the augmenter learned from that classifier; else it is a prior, random networks of a stated strength."""
    protocol: str = UNKNOWN
    """How the errors were measured: schedules, seeds, what the test set was used for, the command."""
    results: tuple[CardResult, ...] = ()
    """Test errors: first with the fitted augmenter, then with its controls. Where `datasets` names one data set, the
    first also stands in the header (model-index), which the Hub shows and searches."""
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Settings of the fit by name."""
    diagnostics: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Figures of the fit by name, for each stage: :attr:`learned_aug.FitResult.diagnostics`."""
    cost: str = UNKNOWN
    """Time that the fit took, and on which device."""
    limits: str = UNKNOWN
    """Where the augmenter should not be used."""
    license: str | None = None
    """License of the weights, an identifier of the Hub."""
    data_license: str = UNKNOWN
    """License of the data set."""
    datasets: tuple[str, ...] = ()
    """Identifiers of the data sets on the Hub."""
    pictures: Mapping[str | Path, str] = dataclasses.field(default_factory=dict)
    """Captions by path of PNG files that are published beside the card."""
    versions: Mapping[str, str] | None = None
    """Versions of the packages that made the weights; None stands for those installed."""


def render(facts: CardFacts, config: AugmenterConfig, files: Mapping[str, bytes], source: str) -> dict[str, bytes]:
    """Write the card and collect its pictures.

    Args:
        facts: what the card says beyond the files.
        config: configuration of the augmenter.
        files: contents of the weight files by name; the card lists their SHA-256.
        source: what ``from_pretrained`` takes: "org/name", "./folder", or a name of ``list_pretrained``.

    Returns:
        Contents by file name: README.md and the pictures.

    Raises:
        ValueError: if a picture is no PNG file.
        OSError: if a picture cannot be read.
    """
    from huggingface_hub import ModelCardData

    name = source.rstrip("/").rsplit("/", 1)[-1]
    measured = _eval_results(facts)
    data = ModelCardData(
        model_name=name if measured else None,
        eval_results=measured,
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
    origin = FITTED if facts.fitted else PRIOR
    kind = f"{channels}, {'fitted' if facts.fitted else 'made'} at {config.size}x{config.size} pixels; other sizes work"
    # A card cannot name the commit that it is part of.
    on_hub = "/" in source and not source.startswith(".")
    pin = "To pin it, add `revision=` with a commit of this repository. " if on_hub else ""
    settings = {**facts.settings, **{f"config.{k}": v for k, v in config.to_dict().items()}}
    text = f"""---
{data.to_yaml()}
---

# {name}

A network of the Python package learned-aug that {does} images, each time differently, {origin}. Images: {kind}.

## How to use

```python
import torch
from torchvision.transforms import v2
from learned_aug import LearnedAugment

augment = LearnedAugment.from_pretrained("{source}", p=0.5)  # half of the images, as below
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
    """Adapt a folder's card, which :func:`render` wrote and people may have edited, to the repository it goes to.

    Args:
        folder: path of a folder with a README.md, in which the folder's name becomes that of the repository.
        repo_id: name of the repository, "org/name".

    Returns:
        Contents by file name: the card, and the PNG files beside it that it shows. Empty if there is no card.

    Raises:
        OSError: if a file cannot be read.
        WeightsError: if the card is no text in UTF-8.
    """
    if not (folder / CARD_NAME).is_file():
        return {}
    try:
        text = (folder / CARD_NAME).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{folder / CARD_NAME} must be text in UTF-8 ({error}); write it again") from error
    name = folder.resolve().name
    for source in (f"./{name}", name):
        text = text.replace(f'from_pretrained("{source}"', f'from_pretrained("{repo_id}"')
    for title in ("# ", "- name: "):  # the heading, and the name of the header's model-index
        text = re.sub(rf"^{title}{re.escape(name)}$", title + repo_id.rsplit("/", 1)[-1], text, count=1, flags=re.M)
    shown = {link for link in re.findall(r"!\[[^]]*\]\(([^)/]+\.png)\)", text) if (folder / link).is_file()}
    return {CARD_NAME: text.encode(), **{link: (folder / link).read_bytes() for link in sorted(shown)}}


def _eval_results(facts: CardFacts) -> list[EvalResult] | None:
    """Return the figure that the Hub shows as that of these weights; a control's would pass for theirs."""
    from huggingface_hub import EvalResult

    if not facts.results or len(facts.datasets) != 1:
        return None
    (dataset,), fitted = facts.datasets, facts.results[0]
    runs = "1 run" if fitted.runs == 1 else f"mean of {fitted.runs} runs"
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="error",
            metric_value=fitted.error,
            metric_name=f"Test error in percent, {runs}, trained with {fitted.arm}",
        )
    ]


def _row(result: CardResult) -> tuple[str, str, str]:
    spread = "" if result.std is None else f" ± {result.std:.2f}"
    return result.arm, f"{result.error:.2f}{spread} %", str(result.runs)


def _measured(diagnostics: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(diagnostics.values()), {}))
    rows = [(stage, *(f"{figures[name]:.3g}" for name in names)) for stage, figures in diagnostics.items()]
    table = _table(("What it does", *(f"`{name}`" for name in names)), rows)
    return f"{table}\n\nThe figures are those of `learned_aug.fit.measure`.\n\n" if rows else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Write a Markdown table; without rows, nothing."""
    if not rows:
        return ""
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in row)} |" for row in cells)
