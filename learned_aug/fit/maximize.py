"""Stage 3: E and G learn to make images that lower the validation loss, as the influence predicts it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from learned_aug.augmenter import Augmented, Augmenter
from learned_aug.fit.config import MaximizeConfig
from learned_aug.fit.diagnostics import divergence_named, draw_distance, require_finite
from learned_aug.fit.events import Event, OnEvent
from learned_aug.fit.head import HeadProblem, HeadTap
from learned_aug.fit.influence import predicted_val_drop
from learned_aug.fit.s_val import predicted_influence

__all__ = ["maximize"]

REMEDY = "lower MaximizeConfig.lr"


def maximize(
    augmenter: Augmenter,
    tap: HeadTap,
    batches: Iterator[tuple[Tensor, Tensor]],
    head: HeadProblem,
    ihvp: Tensor,
    config: MaximizeConfig,
    *,
    generator: torch.Generator,
    on_event: OnEvent,
) -> None:
    """Train E and G, in place, against a fixed s_val.

    Minimises E[I] / std(I) + label_weight E[hinge] + trust_weight distance. I is the influence of replacing an image by
    its augmented copy (Eq. 18), its std that of the first batch. hinge = max(0, CE - label_margin) keeps the user's
    model sure of the label. distance, to the E and G of the start under the same masks, keeps the warps from running
    off together: I is linear in the distribution of the images, so that alone it would make all draws alike.

    Args:
        augmenter: pretrained or calibrated; its draws must differ.
        tap: open, on the borrowed model.
        batches: endless (images, labels), as the model is trained on them.
        head: as in :func:`predicted_influence`.
        ihvp: s_val, (K, D + 1).
        config: settings.
        generator: for the masks.
        on_event: gets "maximize" events: predicted_val_drop (Eq. 15, nats, mean over the images replaced one at a time;
            positive is good), cross_entropy (nats) and misclassified (share) of the user's model on the augmented
            images, and moved, the distance of the trust term.
    """
    if not config.steps:
        return
    start = copy.deepcopy(augmenter)
    optimizer = torch.optim.Adam(augmenter.parameters(), config.lr)
    scale: tuple[Tensor, Tensor] | None = None
    augmenter.requires_grad_(True)
    try:
        for step in range(config.steps):
            images, labels = next(batches)
            masks = augmenter.draw_masks(len(images), generator=generator, device=images.device)
            with divergence_named("maximize", REMEDY):
                out = augmenter.augment(images, masks)
            anchor = start.augment(images, masks)
            influence, logits = predicted_influence(tap, head, ihvp, images, out.images, labels)
            if scale is None:
                if len(images) < 2:
                    raise ValueError("train must give batches of at least 2 images, got 1; raise the batch size")
                other = start.augment(images, generator=generator)
                both = Augmented(*(torch.cat(pair) for pair in zip(anchor, other, strict=True)))
                scale = influence.detach().std().clamp_min(1e-12), draw_distance(both).clamp_min(1e-12)
            moved = _distance(out, anchor, scale[1])
            cross_entropy = F.cross_entropy(logits, labels, reduction="none")
            hinge = F.relu(cross_entropy - config.label_margin)
            loss = influence.mean() / scale[0] + config.label_weight * hinge.mean() + config.trust_weight * moved
            require_finite(loss, "maximize", REMEDY)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(augmenter.parameters(), config.clip)
            optimizer.step()
            metrics = {
                "predicted_val_drop": float(predicted_val_drop(influence.detach().mean(), head.n_train)),
                "cross_entropy": float(cross_entropy.detach().mean()),
                "misclassified": float((logits.argmax(1) != labels).float().mean()),
                "moved": float(moved.detach()),
            }
            on_event(Event("maximize", step + 1, config.steps, metrics))
    finally:
        augmenter.zero_grad()
        augmenter.requires_grad_(False)


def _distance(out: Augmented, anchor: Augmented, spread: Tensor) -> Tensor:
    """Mean squared distance of the flows and of the colours, each in units of the start's spread."""
    flow = (out.flow - anchor.flow).square().sum(1).mean() / spread[0].square()
    color = (out.delta - anchor.delta).square().mean() / spread[1].square()
    return flow + color
