"""What a fit has done so far: kept while it runs, saved to go on from, and told to those who listen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learned_aug.augmenter import Augmenter
from learned_aug.fit.checkpoint import Checkpoint, CheckpointError
from learned_aug.fit.stage import Stage
from learned_aug.runtime.distributed import from_first, rank, world_size
from learned_aug.runtime.events import Event, OnEvent
from learned_aug.runtime.stream import Stream

__all__ = ["Run"]


class Run:
    """The results of the finished stages, the state of the one at work, and the events of all.

    Process 0 reads and writes the checkpoint; the others begin from what it read.

    Args:
        checkpoint: None keeps nothing; of processes other than 0 it is not used.
        every: seconds between two saves within a stage; each stage's end is saved as well.
        listeners: called with each event.
        device: device of the tensors that pass between processes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        *,
        every: float,
        listeners: Sequence[OnEvent],
        device: torch.device,
    ) -> None:
        self.checkpoint, self.every, self.listeners, self.device = checkpoint, every, listeners, device
        saved = self._read()
        self.results: dict[str, Any] = saved["results"]
        self.current: dict[str, Any] | None = saved["current"]
        self.history = [Event(*values) for values in saved["history"]]
        self._saved = time.monotonic()
        if not self.results and self.current is None:
            self._save()  # a folder that cannot be written shows now, not after an hour

    def notify(self, event: Event) -> None:
        """Keep an event and tell the listeners."""
        self.history.append(event)
        for listener in self.listeners:
            listener(event)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a stage, a tree as :class:`Checkpoint` takes it; make it if the checkpoint lacks it."""
        if name not in self.results:
            self.results[name] = make()
            self._save()
        result: dict[str, Any] = self.results[name]
        return result

    def train(self, name: str, stage: Stage, streams: Sequence[Stream]) -> None:
        """Run a stage's remaining steps and keep the weights of its augmenter as the result, also where they were kept.

        Args:
            name: name under which the result is kept.
            stage: the stage, before its first step.
            streams: the batches it reads, at their start.
        """

        def after() -> None:
            if time.monotonic() - self._saved >= self.every:
                self._save(lambda: {"stage": stage.state_dict(), "positions": [stream.position for stream in streams]})

        if name not in self.results:
            if self.current is not None:
                stage.load_state_dict(self.current["stage"])
                for stream, (number, done) in zip(streams, self.current["positions"], strict=True):
                    stream.position = number, done
            try:
                stage.run(self.notify, after)
            finally:
                for stream in streams:
                    stream.close()
            self.current = None
            self.results[name] = weights_of(stage.augmenter)
            self._save()
        stage.augmenter.load_state_dict(self.results[name])

    def _save(self, current: Callable[[], dict[str, Any] | None] = lambda: None) -> None:
        self._saved = time.monotonic()
        if self.checkpoint is not None and rank() == 0:
            history = [(e.stage, e.step, e.total, dict(e.metrics)) for e in self.history]
            self.checkpoint.write({"results": self.results, "current": current(), "history": history})

    def _read(self) -> dict[str, Any]:
        """Return on all processes what process 0 reads.

        Raises:
            CheckpointError: if process 0 could not use its checkpoint.
        """
        tree: dict[str, Any] = {"error": None}
        if self.checkpoint is not None and rank() == 0:
            try:
                tree["state"] = self.checkpoint.read()
            except CheckpointError as error:
                tree["error"] = str(error)
        if world_size() > 1:
            tree = from_first(tree, self.device)
        if tree["error"] is not None:
            raise CheckpointError(tree["error"])
        return tree.get("state") or {"results": {}, "current": None, "history": []}


def weights_of(augmenter: Augmenter) -> dict[str, Tensor]:
    """Return a copy of the augmenter's weights."""
    return {name: tensor.detach().clone() for name, tensor in augmenter.state_dict().items()}
