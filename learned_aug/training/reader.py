"""Reader: what the classifier in training says of augmented images, read without a trace."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import HeadTap, check_differentiable, collect, gradient_of
from learned_aug.influence.layer import find_head, first_tensor, placement, unwrap
from learned_aug.influence.problem import Head
from learned_aug.influence.s_val import InfluenceConfig, solve_s_val
from learned_aug.influence.scores import influence_up
from learned_aug.runtime.autocast import fresh_casts
from learned_aug.runtime.checks import (
    check_class_range,
    check_images,
    check_logits,
    check_targets,
    model_errors_named,
)
from learned_aug.runtime.data import Data
from learned_aug.runtime.overlap import check_disjoint
from learned_aug.runtime.stream import Stream, check_alike

__all__ = ["Loss", "Reader", "check_state"]

Loss = Callable[[Tensor, Tensor], Tensor]
CUT = (
    "the loss must depend on the images by autograd, got none: the model's forward runs a part under torch.no_grad(), "
    "inference_mode() or detach(); let gradients pass there (requires_grad_(False) freezes weights as well), or use "
    "tilt=0"
)


class Reader:
    """Scores augmented images by the classifier as it stands: by its loss, or by influence on a validation set.

    The classifier is read in eval mode, so that its batch-norm statistics and dropout stay out of it, and is in its own
    mode again afterwards. No copy is made, no gradient reaches its parameters, and no hook stays.

    Args:
        model: the classifier in training; wrappers of torch (data parallel, compiled) are looked through.
        by: "loss" scores by the loss; "influence" by minus the influence of up-weighting a draw, and needs data.
        loss: from the model's output and the labels to one loss per sample, (B,); by default the cross-entropy, for
            class indices (B,) and soft labels (B, K).
        train: (image, label) pairs without augmentation, for "influence".
        val: the hyper-validation set, for "influence"; errors on it are no longer honest.
        config: settings of s_val.
        head: name of the last Linear, by default the last one registered; for "influence".

    Raises:
        ValueError: if "influence" lacks data or a Linear head, if `train` and `val` share samples, or if "loss" is
            given data, which it does not read.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        by: Literal["loss", "influence"] = "loss",
        loss: Loss | None = None,
        train: Data | None = None,
        val: Data | None = None,
        config: InfluenceConfig | None = None,
        head: str | None = None,
    ) -> None:
        if by not in ("loss", "influence"):
            raise ValueError(f'by must be "loss" or "influence", got {by!r}')
        if by == "influence" and (train is None or val is None):
            raise ValueError(
                'by="influence" needs train= and val=, (image, label) data; leave it out to follow the loss'
            )
        if by == "loss" and not (train is None and val is None):
            raise ValueError('train= and val= are for by="influence", got by="loss"; state it, or leave them out')
        self.model, self.by, self.loss = unwrap(model), by, loss
        self.config = config if config is not None else InfluenceConfig()
        self.influence: tuple[Head, Tensor] | None = None
        self.loss_at_start: float | None = None  # of a model that knows nothing, for losses of the user's
        self._zero_seen = False
        self._classes = 0  # of the model's outputs; 0 before the first batch
        if by == "influence":
            self.tap = HeadTap(self.model, find_head(self.model, head))
            device = self.tap.head.weight.device
            self.train, self.val = (
                Stream(data, name, "snapshot", seed=0, batch_size=256, device=device)  # type: ignore[arg-type]
                for data, name in ((train, "train"), (val, "val"))
            )
            check_disjoint(train=train, val=val)  # type: ignore[arg-type]
            check_alike(train=train, val=val)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured of the model before: the loss at the start, and s_val."""
        influence = None if self.influence is None else [vars(self.influence[0]), self.influence[1]]
        return {"loss_at_start": self.loss_at_start, "influence": influence}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        check_state(self, state, "loss_at_start", "influence")
        self.loss_at_start, self.influence = state["loss_at_start"], None
        if state["influence"] is not None:
            head, ihvp = state["influence"]
            self.influence = Head(**head), ihvp

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: its first floating parameter's dtype."""
        return placement(self.model)[1]

    @property
    def device(self) -> torch.device:
        """Where the model computes: its first parameter's device."""
        return placement(self.model)[0]

    def check(self, images: Tensor, labels: Any, *, steers: bool) -> Any:
        """Refuse images and labels that do not fit; and, at the first batch, a model that cannot be followed.

        Args:
            images: (B, C, H, W), floating.
            labels: what the loss takes.
            steers: whether gradients are asked for.

        Returns:
            The labels as the loss takes them: class indices in int64.

        Raises:
            TypeError: if images are no floating tensor.
            ValueError: if they are no batch, or a gradient would pass through them; if labels are not of the form that
                the loss takes, or beyond the model's classes; if the model has a single output; or if no gradient
                reaches its images.
        """
        check_images(images)
        if images.requires_grad:
            raise ValueError(
                "images must not ask for gradients, for none passes through their augmentation; pass images.detach(), "
                "and call requires_grad_() on what comes back, or augment before the computation that trains"
            )
        if self.loss is not None and not isinstance(labels, Tensor):
            raise ValueError(
                f"labels must be a tensor with one entry per image, got {type(labels).__name__}; stack what loss= "
                "needs into one, or let loss= look it up by an index"
            )
        if isinstance(labels, Tensor) and labels.ndim > 2:
            raise ValueError(
                f"labels must be (B,) or (B, K), got {tuple(labels.shape)}: maps and boxes would stay where they are "
                "while images are warped; augment both together with LearnedAugment"
            )
        first = not self._classes
        # A look at values on an accelerator would make it wait, at each call.
        looks = first or (isinstance(labels, Tensor) and labels.device.type == "cpu")
        several = isinstance(labels, Tensor) and labels.shape[:1] != images.shape[:1]
        if several and (self.loss is not None or labels.numel() != len(images)):
            raise ValueError(
                f"labels must be one per image, {images.shape[0]}, got {tuple(labels.shape)}; pass those of this batch"
            )
        if self.by == "influence" or self.loss is None:
            labels = check_targets(labels, len(images), values=looks)
        if first and len(images):
            self._check_model(images[:16], labels[:16], steers)
        if self.loss is None and looks and self._classes:
            self._check_classes(labels)
        return labels

    def _check_classes(self, labels: Tensor) -> None:
        if labels.ndim == 1:
            check_class_range(labels, self._classes)
        elif labels.shape[1] != self._classes:
            raise ValueError(
                f"soft labels must have a column for each of the model's {self._classes} classes, got "
                f"{tuple(labels.shape)}; give the model as many outputs"
            )

    def _check_model(self, images: Tensor, labels: Any, steers: bool) -> None:
        """See at the first batch what would otherwise show after the warm-up, or never.

        Raises:
            ValueError: if the model or its head cannot be followed.
        """
        with self._evaluating(), torch.set_grad_enabled(steers):
            if self.by == "influence":
                with self.tap:
                    if steers:
                        check_differentiable(self.tap, images.to(self.dtype))
                    self._classes = self.tap(images.to(self.dtype))[1].shape[1]
                return
            images = images.detach().clone().requires_grad_(steers)
            with model_errors_named(images):
                output = first_tensor(self.model(self._input(images)))
            classes = output.shape[1] if output.ndim > 1 else 1
            if self.loss is None:
                check_logits(output, len(images), "pass loss= for outputs of another form")
                check_class_range(labels.new_zeros(1, dtype=torch.long), classes)
            else:
                self._measure_start(output, labels, self._losses(output, labels))
            if steers:
                gradient = None
                if output.requires_grad:
                    gradient = gradient_of(output.float().square().sum(), images)
                if gradient is None:
                    raise ValueError(CUT)
        self._classes = classes

    def renew(self) -> None:
        """Solve for s_val of the classifier as it stands; nothing for "loss".

        Raises:
            ConvergenceError: if the solver's tolerance is not reached.
        """
        if self.by == "loss":
            return
        self.train.dtype = self.val.dtype = self.dtype
        with self._evaluating(), torch.no_grad(), self.tap:
            train, val = (collect(self.tap, stream.once()) for stream in (self.train, self.val))
            head, solution = solve_s_val(train, val, self.tap.head, self.config)
        self.influence = head, solution.value

    def score(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Score augmented images; the highest score is the draw to prefer.

        Args:
            images: (B, C, H, W); gradients flow to it where it has any.
            labels: what the loss takes.

        Returns:
            The score (B,), differentiable, and the probability (B,) of the label, of soft ones their expected one.
        """
        if self.by == "influence" and self.influence is None:  # as after the state of a reader by the loss
            self.renew()
        with self._evaluating():
            if self.by == "loss":
                output = first_tensor(self.model(self._input(images)))
                losses = self._losses(output, labels)
                return losses, self._probability(output, labels, losses)
            with self.tap:
                features, output = self.tap(images.to(self.dtype))
        assert self.influence is not None
        head, ihvp = self.influence
        losses = self._losses(output, labels)
        seen = head(features.to(ihvp.dtype), labels)
        score = -influence_up(ihvp, seen, self.config.label_smoothing)
        return score, self._probability(output, labels, losses)

    def gradient(self, score: Tensor, masks: Tensor) -> Tensor:
        """Take the gradient of the scores with respect to the masks whose draws they are.

        Raises:
            ValueError: if no gradient reaches the images, as through ``torch.no_grad()`` in the model's forward.

        Warns:
            UserWarning: once, if it is zero for all of a batch: steering then does nothing.
        """
        if not score.requires_grad:
            raise ValueError(CUT)
        gradient = gradient_of(score.sum(), masks)
        if gradient is None:
            gradient = torch.zeros_like(masks)
        if not self._zero_seen and not bool(gradient.any()):
            self._zero_seen = True
            warnings.warn(
                "the gradient of the loss with respect to the draws is zero for a whole batch: steering does nothing "
                "there; check whether the model rounds, clamps or detaches its images",
                stacklevel=4,
            )
        return gradient

    def _input(self, images: Tensor) -> Tensor:
        """Return a copy of images in the model's dtype, which the model may write to."""
        dtype = self.dtype
        return images.clone() if images.dtype == dtype else images.to(dtype)

    def _losses(self, output: Tensor, labels: Tensor) -> Tensor:
        losses = self._loss_of(output, labels)
        if bool(losses.isnan().any()):
            raise ValueError(
                "the classifier's loss must be a number, got NaN on augmented images: its training has diverged; lower "
                "the learning rate, or check its weights"
            )
        return losses

    def _probability(self, output: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        """Return the probability of the labels (B,), detached; of another loss a figure that behaves like it."""
        losses = losses.detach()
        if self.loss is not None:
            # As of a cross-entropy, which starts at log K: so scale and reduction of the loss do not matter.
            start = self._measure_start(output, labels, losses)
            return (-math.log(max(2, self._classes)) * losses / start).exp().clamp(max=1)
        if labels.ndim == 2:
            return (output.detach().float().softmax(1) * labels).sum(1)
        return losses.neg().exp()

    @torch.no_grad()
    def _measure_start(self, output: Tensor, labels: Tensor, losses: Tensor) -> float:
        """Return the mean loss of outputs of zero, log K of a cross-entropy, whatever the model has learned before."""
        if self.loss_at_start is None:
            tiny = torch.finfo(torch.float32).tiny
            start = float(self._loss_of(torch.zeros_like(output), labels).mean())
            if not tiny < start < math.inf:  # as of a cosine: then that of the first images
                start = max(float(losses.mean()), tiny)
            self.loss_at_start = start
        return self.loss_at_start

    def _loss_of(self, output: Tensor, labels: Tensor) -> Tensor:
        if self.loss is None:
            logits = output.float()
            return F.cross_entropy(logits, labels.to(logits.dtype) if labels.ndim == 2 else labels, reduction="none")
        losses = self.loss(output, labels)
        if losses.shape != output.shape[:1]:
            raise ValueError(
                f"loss must give one value per sample, ({output.shape[0]},), got {tuple(losses.shape)}; use "
                'reduction="none" and a mean over what is not the batch'
            )
        return losses.float()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with fresh_casts():
                yield
        finally:
            for module in training:
                module.training = True


def check_state(owner: object, state: Any, *names: str) -> None:
    """Refuse a state that is not what the `state_dict()` of such an object gave.

    Raises:
        ValueError: with what it lacks.
    """
    lacks = [name for name in names if not isinstance(state, Mapping) or name not in state]
    if lacks:
        raise ValueError(
            f"state must be what {type(owner).__name__}.state_dict() gave, got {type(state).__name__} without "
            f"{', '.join(lacks)}; load that of the same kind of object"
        )
