"""How progress leaves the library: events, and the progress bars made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

__all__ = ["Event", "OnEvent", "ProgressBars"]


@dataclass(frozen=True)
class Event:
    """One step of one stage.

    Attributes:
        stage: such as "pretrain" or "maximize".
        step: steps done, up to `total`; 0 is what the stage starts from.
        total: steps of the stage, at most.
        metrics: name to value; units in the docstring of the stage.
    """

    stage: str
    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


OnEvent = Callable[[Event], None]


class ProgressBars:
    """A tqdm bar for each stage, on standard error: ``with ProgressBars() as bars: fit(..., on_event=bars)``."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def __call__(self, event: Event) -> None:
        """Show `event`, in a new bar if it opens a stage; of a resumed stage the bar starts where the stage does."""
        if self._bar is None or event.stage != self._stage or event.step < self._bar.n:
            self.close()
            done = max(0, event.step - 1)
            self._bar = tqdm(total=event.total, initial=done, desc=event.stage, unit="step", dynamic_ncols=True)
            self._stage = event.stage
        if event.metrics:
            shown = {name: f"{value:.3g}" for name, value in event.metrics.items()}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(event.step - self._bar.n)

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
