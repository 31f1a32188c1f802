"""How progress leaves the library: events, and the progress bars made of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

__all__ = ["Event", "OnEvent", "ProgressBars"]

TENTHS = 10  # lines of a stage in a log file
SOONEST = 3.0  # seconds between two of them
FIRST, LONGEST = 30.0, 600.0  # seconds without a line, at first and at most


@dataclass(frozen=True)
class Event:
    """One step of one stage.

    Attributes:
        stage: such as "pretrained" or "fitted".
        step: steps done, up to `total`; 0 is what the stage starts from.
        total: steps of the stage, at most; 0 if that is not known, as of a loader without a length.
        metrics: name to value; units in the docstring of the stage.
    """

    stage: str
    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


OnEvent = Callable[[Event], None]


class ProgressBars:
    """Shows each stage on standard error: ``with ProgressBars() as bars: fit(..., on_event=bars)``.

    On a terminal and in a notebook a stage has a tqdm bar. Elsewhere, as in a log file, it has a line for each tenth of
    its steps, at most one in 3 s; a stage that takes long also has one after 30 s, then after twice as long each
    time, up to every 10 minutes.
    """

    def __init__(self) -> None:
        self._shown: _Bar | _Lines | None = None
        terminal = sys.stderr is not None and sys.stderr.isatty()  # None without a console
        self._live = terminal or "ipykernel" in sys.modules

    def __call__(self, event: Event) -> None:
        """Show `event`, in a new bar if it opens a stage; of a resumed stage the bar starts where the stage does."""
        if self._shown is None or event.stage != self._shown.stage or event.step < self._shown.step:
            self.close()
            self._shown = (_Bar if self._live else _Lines)(event)
        self._shown.show(event, {name: f"{value:.3g}" for name, value in event.metrics.items()})

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Bar:
    """A stage on a terminal."""

    def __init__(self, event: Event) -> None:
        self.stage = event.stage
        done = max(0, event.step - 1)
        self.bar: tqdm[Any] = tqdm(
            total=event.total or None, initial=done, desc=event.stage, unit="step", dynamic_ncols=True, file=sys.stderr
        )

    @property
    def step(self) -> int:
        return int(self.bar.n)

    def show(self, event: Event, metrics: dict[str, str]) -> None:
        if metrics:
            self.bar.set_postfix(metrics, refresh=False)
        self.bar.update(event.step - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class _Lines:
    """A stage in a log file."""

    def __init__(self, event: Event) -> None:
        self.stage, self.step = event.stage, event.step
        self.first = max(0, event.step - 1)
        self.tenth = TENTHS * self.first // max(1, event.total)
        self.started = self.written = time.monotonic()
        self.patience = FIRST
        self.waiting = ""  # the last line that was not written

    def show(self, event: Event, metrics: dict[str, str]) -> None:
        self.step = event.step
        now = time.monotonic()
        tenth = TENTHS * event.step // max(1, event.total)
        rate = (now - self.started) / max(1, event.step - self.first)
        of = f"/{event.total}" if event.total else ""
        line = f"{event.stage}: {event.step}{of}, {now - self.started:.0f} s"
        if event.step < event.total:
            line += f", {rate * (event.total - event.step):.0f} s left"
        self.waiting = line + "".join(f", {name}={value}" for name, value in metrics.items())
        late = now - self.written >= self.patience
        last = 0 < event.total <= event.step
        if last or late or (event.total and tenth > self.tenth and now - self.written >= SOONEST):
            if late:
                self.patience = min(2 * self.patience, LONGEST)
            self.tenth, self.written = tenth, now
            self._write()

    def close(self) -> None:
        self._write()  # a stage that ended before its last step

    def _write(self) -> None:
        if self.waiting and sys.stderr is not None:
            sys.stderr.write(f"{self.waiting}\n")
            sys.stderr.flush()
            self.waiting = ""
