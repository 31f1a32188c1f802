"""What the two stages that train E and G have in common: a state that can be saved, and steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.influence.head import HeadTap
from learned_aug.influence.problem import Head
from learned_aug.runtime.distributed import all_mean, rank, world_size
from learned_aug.runtime.events import Event, OnEvent

__all__ = ["IN_FLIGHT", "FollowingInfluence", "Stage", "share_of_noise"]

IN_FLIGHT = 2**24  # values of the images that are worked on at once, at most, where the batch does not matter: 64 MiB


class Stage(ABC):
    """A stage: its networks, optimizers and the units of its losses; :meth:`run` takes its steps.

    Attributes:
        name: name of its events.
        augmenter: networks that are trained in place.
        trained: the part of the augmenter that is trained; all of it, unless a stage says otherwise.
        steps: number of steps in all.
        done: number of steps taken so far.
        modules: other networks that it trains.
        optimizers: optimizers of these networks, by name.
        units: tensors that are measured at the first step and stay.
    """

    name: str

    def __init__(
        self,
        augmenter: Augmenter,
        steps: int,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        self.augmenter, self.steps, self.done = augmenter, steps, 0
        self.trained: nn.Module = augmenter
        self.modules = {"augmenter": augmenter, **modules}
        self.optimizers = dict(optimizers)
        self.units: dict[str, Tensor] = {}

    @abstractmethod
    def step(self) -> dict[str, Tensor]:
        """Take one step and return the figures of this process's part of the batch; events show their mean."""

    def run(self, on_event: OnEvent, after: Callable[[], None] = lambda: None) -> None:
        """Take the remaining steps; `after` is called at the end of each."""
        self.trained.requires_grad_(True)
        self.augmenter.learning = True
        try:
            while self.done < self.steps:
                figures = self.step()
                self.done += 1
                values = all_mean(torch.stack([value.detach().float() for value in figures.values()])).tolist()
                on_event(Event(self.name, self.done, self.steps, dict(zip(figures, values, strict=True))))
                after()
        finally:
            self.augmenter.zero_grad()
            self.augmenter.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps to come depend on, beside the batches."""
        return {
            "done": self.done,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            # The rest of an optimizer's state are its settings, which come from the configuration.
            "optimizers": {
                name: {str(k): state for k, state in optimizer.state_dict()["state"].items()}
                for name, optimizer in self.optimizers.items()
            },
            "units": self.units,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.done = state["done"]
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            saved = {int(k): values for k, values in state["optimizers"][name].items()}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        device = next(self.augmenter.parameters()).device
        self.units = {name: unit.to(device) for name, unit in state["units"].items()}


class FollowingInfluence(Stage):
    """Base of the two forms of stage 3: Adam on a part of the augmenter, against a fixed s_val.

    Args:
        augmenter: trained in place.
        tap: open, on the borrowed model.
        batches: endless (images, labels), as the model is trained on them.
        head: the head for which `ihvp` was computed.
        ihvp: s_val, (K, D + 1).
        steps: number of steps.
        lr: learning rate of Adam.
        seed: seed of the draws.
    """

    name = "maximize"

    def __init__(
        self,
        augmenter: Augmenter,
        tap: HeadTap,
        batches: Iterator[tuple[Tensor, Tensor]],
        head: Head,
        ihvp: Tensor,
        *,
        steps: int,
        lr: float,
        seed: int,
    ) -> None:
        self.tap, self.batches, self.head, self.ihvp, self.lr, self.seed = tap, batches, head, ihvp, lr, seed
        trained = self.part(augmenter)
        self.optimizer = torch.optim.Adam(trained.parameters(), lr)
        super().__init__(augmenter, steps, {}, {"adam": self.optimizer})
        self.trained = trained

    def part(self, augmenter: Augmenter) -> nn.Module:
        """Return what is trained of the augmenter: all of it, unless a form says otherwise."""
        return augmenter


def share_of_noise(augmenter: Augmenter, images: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
    """Return the noise of this process's `images`, repeated `draws` times, out of that for the batch of all processes.

    Args:
        augmenter: augmenter that the noise is for.
        images: (B, C, H, W); B is the same in all processes.
        generator: source of the noise, in the same state in all processes.
        draws: number of draws R for each image.

    Returns:
        (R B, stages, tau_dim).
    """
    count = len(images) * world_size()
    noise = augmenter.draw_noise(draws * count, generator=generator, device=images.device)
    return noise.view(draws, world_size(), len(images), *noise.shape[1:])[:, rank()].flatten(0, 1)
