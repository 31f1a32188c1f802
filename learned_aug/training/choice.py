"""DrawChoice: the best of a few draws from any augmentations, judged by the classifier while it is trained."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from learned_aug.augmenter import Augmenter
from learned_aug.influence.s_val import InfluenceConfig
from learned_aug.runtime.checks import check_range
from learned_aug.runtime.data import Data
from learned_aug.runtime.distributed import rank
from learned_aug.runtime.numbers import check_count, check_number, check_seed
from learned_aug.runtime.rng import generator
from learned_aug.training.augment import Augment, applied, batched, check_units, each, same
from learned_aug.training.policies import Recorder, Tally
from learned_aug.training.reader import Loss, Reader, check_state
from learned_aug.training.steer import SteeredDraws

__all__ = ["DrawChoice"]


class DrawChoice:
    """Augments each image by the best of a few candidates, drawn from any augmentations.

        choice = DrawChoice(model, {"ours": augmenter, "policy": v2.TrivialAugmentWide()}, train=train, val=val)
        for images, labels in loader:
            images = choice(images, labels)
            ...  # your training step
        print(choice.tally)  # what helped here
        transform = choice.transform()

    With `val` the best is the candidate whose influence predicts the lowest loss there; otherwise the hardest of those
    that the classifier still recognizes: loss times a power of the probability of the label, so that a draw that
    destroys the label is not taken. The best of a few draws of a prior is the hard limit of the distribution
    q ~ prior exp(-I / beta), which minimizes E_q[I] + beta KL(q || prior).

    The classifier is read in eval mode, as it stands. s_val is solved anew every `every` calls, which reads all of
    `train` and `val`: for large sets raise it. A call is a forward pass for each candidate.

    Args:
        model: the classifier in training.
        sources: augmentations to draw from, by name, as a sequence, or one alone: Augmenters, :class:`SteeredDraws`
            with ``share=1``, transforms of torchvision (drawn for each image), functions of batches, or None for the
            image as it is.
        shares: probability with which a candidate comes from each source, in their order; equal by default.
        draws: candidates for each image, at least 1.
        by: "influence", which needs `train` and `val`, or "loss"; by default "influence" where `val` is given.
        train: (image, label) pairs without augmentation, for "influence".
        val: the hyper-validation set, for "influence"; errors on it are no longer honest, for the choice follows it.
        every: calls between two solutions of s_val, and between two points of the tally's curve.
        gate: power of the probability of the label, for "loss"; 0 takes the hardest.
        loss: from the model's output and the labels to one loss per sample, (B,); by default the cross-entropy.
        config: settings of s_val.
        head: name of the last Linear, by default the last one registered.
        mean: mean of the images' normalization (x - mean) / std, for transforms; None for [0, 1].
        std: standard deviation of that normalization.
        seed: seed of which sources candidates come from.

    Attributes:
        tally: what was offered and chosen so far, by source, class, time and a policy's operations.

    Raises:
        ValueError: if a setting is out of range, or data are missing.
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Augment | Sequence[Augment | None] | Mapping[str, Augment | None] | None,
        *,
        shares: Sequence[float] | None = None,
        draws: int = 2,
        by: Literal["loss", "influence"] | None = None,
        train: Data | None = None,
        val: Data | None = None,
        every: int = 100,
        gate: float = 4.0,
        loss: Loss | None = None,
        config: InfluenceConfig | None = None,
        head: str | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self.draws, self.every = check_count("draws", draws, 1), check_count("every", every, 1)
        self.gate = check_number("gate", gate, 0, "0 is no gate")
        self.sources = _named(sources)
        self._networks = [source for source in self.sources.values() if isinstance(source, Augmenter)]
        for networks in self._networks:
            check_units(networks.config, mean, std)
        self.shares = _shares(shares, len(self.sources))
        by = by if by is not None else "loss" if val is None else "influence"
        self.model = model
        self.reader = Reader(model, by=by, loss=loss, train=train, val=val, config=config, head=head)
        self.recorders = {name: Recorder(s) for name, s in self.sources.items() if Recorder.fits(s)}
        self._draw: dict[str, Augment | None] = {}
        for name, source in self.sources.items():
            if name in self.recorders:
                self._draw[name] = each(self.recorders[name], mean=mean, std=std)
            else:
                self._draw[name] = None if source is None else batched(source, mean=mean, std=std)
        self.seed = check_seed(seed)
        self.tally = Tally(list(self.sources), every)
        self.calls = 0
        self._warned = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return augmented copies of (B, C, H, W) with labels (B,) or (B, K), the best of the candidates for each.

        Raises:
            ValueError: if labels do not fit, or a source changes shapes, dtypes or labels.
        """
        labels = self.reader.check(images, labels, steers=False)
        if not len(images):
            return images.clone()
        for networks in self._networks if not self.calls else ():
            check_range(images, networks.config.mean, networks.config.std)
        if self.calls % self.every == 0:
            self.reader.renew()
        count = len(images)
        offers = generator(self.seed, "choice", rank(), self.calls)  # a function of the call, as in SteeredDraws
        source = torch.multinomial(self.shares, self.draws * count, replacement=True, generator=offers)
        drawn, operations = self._candidates(images, labels, source)
        repeated = labels.repeat(self.draws, *[1] * (labels.ndim - 1))
        score = self.score(drawn, repeated).view(self.draws, count)
        best = score.argmax(0)
        chosen = best * count + torch.arange(count, device=best.device)
        self._warn_if_equal(drawn.view(self.draws, *images.shape))
        classes = self._classes(labels).repeat(self.draws)
        self.tally.add(self.calls, source, chosen.cpu(), classes.cpu(), operations)
        self.calls += 1
        return drawn[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: the position of the offers, s_val and steered sources; the tally starts anew."""
        steered = {name: source.state_dict() for name, source in self._steered().items()}
        return {"seed": self.seed, "calls": self.calls, "reader": self.reader.state_dict(), "sources": steered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, with the same model and sources.

        Raises:
            ValueError: if it is no such state, or that of other sources.
        """
        check_state(self, state, "seed", "calls", "reader")
        steered, states = self._steered(), state.get("sources", {})  # which earlier commits left out
        if steered.keys() != states.keys():
            raise ValueError(
                f"sources must be those whose state this is, steered ones of the names {sorted(states)}, got "
                f"{sorted(steered)}; give the same ones"
            )
        self.seed, self.calls = state["seed"], state["calls"]
        self.reader.load_state_dict(state["reader"])
        for name, source in steered.items():
            source.load_state_dict(states[name])

    def _steered(self) -> dict[str, SteeredDraws]:
        return {name: source for name, source in self.sources.items() if isinstance(source, SteeredDraws)}

    def score(self, drawn: Tensor, labels: Tensor) -> Tensor:
        """Score candidates (B, C, H, W) with their labels; the highest score is taken. Made to be overridden."""
        score, probability = self.reader.score(drawn, labels)
        return score * probability.pow(self.gate) if self.reader.by == "loss" else score

    def transform(self) -> nn.Module:
        """Return what was found as a plain transform for single images in [0, 1], which needs no classifier.

        A source is drawn as often as it was chosen, an operation and the size of its magnitude likewise.

        Raises:
            ValueError: if a source is a function of batches, or no batch came yet.
        """
        return self.tally.transform(self.sources, self.recorders)

    def _candidates(self, images: Tensor, labels: Tensor, source: Tensor) -> tuple[Tensor, list[Any]]:
        """Draw all candidates, (draws * B, C, H, W), each from its source; and a policy's operations of each.

        Raises:
            ValueError: if a source changes shapes, dtypes or labels.
        """
        drawn = images.repeat(self.draws, 1, 1, 1)
        repeated = labels.repeat(self.draws, *[1] * (labels.ndim - 1))
        operations: list[Any] = [()] * len(drawn)
        for k, (name, draw) in enumerate(self._draw.items()):
            places = (source == k).nonzero().flatten()
            if draw is None or not len(places):
                continue
            where = places.to(images.device)
            part, kept = applied(draw, drawn[where], repeated[where])
            if part.dtype != images.dtype or not same(kept, repeated[where]):
                raise ValueError(
                    f"source {name!r} must keep the dtype of images and the labels, {images.dtype}, got {part.dtype}"
                    "; sources that mix images belong after the choice: A+Mixup in a comparison"
                )
            drawn[where] = part
            if name in self.recorders:
                for place, done in zip(places.tolist(), self.recorders[name].take(len(places)), strict=True):
                    operations[place] = (name, done)
        return drawn, operations

    def _classes(self, labels: Tensor) -> Tensor:
        """Return the class (B,) that each image counts for in the tally: the likeliest of soft labels, -1 of others."""
        if self.reader.loss is not None and (labels.ndim == 2 or labels.is_floating_point()):
            return labels.new_full((len(labels),), -1, dtype=torch.long)
        return labels.argmax(1) if labels.ndim == 2 else labels

    def _warn_if_equal(self, drawn: Tensor) -> None:
        if not self._warned and len(drawn) > 1 and bool((drawn == drawn[:1]).all()):
            self._warned = True
            warnings.warn(
                "all candidates of a batch are equal: there is nothing to choose; give sources that draw at random, or "
                "several of them",
                stacklevel=3,
            )


def _named(sources: Any) -> dict[str, Augment | None]:
    """Return the sources by name.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(sources, Mapping):
        named = dict(sources)
    else:
        several = list(sources) if isinstance(sources, (list, tuple)) else [sources]
        names = ["original" if s is None else getattr(s, "__name__", type(s).__name__) for s in several]
        seen = Counter(names)
        named = {n if seen[n] == 1 else f"{n} {k}": s for k, (n, s) in enumerate(zip(names, several, strict=True), 1)}
    if not named:
        raise ValueError("sources must hold at least one augmentation, got none; give an Augmenter or a transform")
    return named


def _shares(shares: Sequence[float] | None, count: int) -> Tensor:
    """Return the probabilities of the sources, which sum to 1.

    Raises:
        ValueError: if they do not fit.
    """
    given = torch.tensor([1.0] * count if shares is None else list(shares), dtype=torch.float64, device="cpu")
    if (
        len(given) != count
        or not bool((given >= 0).all())
        or not math.isfinite(total := float(given.sum()))
        or not total
    ):
        raise ValueError(
            f"shares must be {count} finite numbers >= 0, one for each source, with a sum above 0, got {shares}; leave "
            "them out for equal ones"
        )
    return given / total
