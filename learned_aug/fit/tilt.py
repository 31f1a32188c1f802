"""The tilt of dropout along a gradient, and the gate that holds it back: what fits and steered draws share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["tilted", "unit_rms"]


def unit_rms(x: Tensor) -> Tensor:
    """Scale each sample of `x` (B, ...) to root mean square 1; zeros stay zeros."""
    return (F.normalize(x.flatten(1), dim=1, eps=1e-30) * math.sqrt(x[0].numel())).view_as(x)


def tilted(gradient: Tensor, probability: Tensor, *, tilt: float, gate: float) -> Tensor:
    """Return logits of keeping each unit of tau that make draws follow a gradient where the classifier is right.

    Kept near the dropout that it came from, the distribution of independent masks that raises a score has logits in
    proportion to the score's gradient (see :class:`~learned_aug.fit.dropout.LearningDropout`). The gate is a power of
    the probability of the label, image by image: what the classifier still gets wrong is made no harder.

    Args:
        gradient: (B, stages, tau_dim), of the score with respect to the masks.
        probability: (B,), that the classifier gives the label at the draw whose gradient it is.
        tilt: root mean square of the logits where the probability is 1; negative follows the reverse.
        gate: power of the probability; 0 is no gate.

    Returns:
        (B, stages, tau_dim).
    """
    return unit_rms(gradient) * (tilt * probability.pow(gate))[:, None, None]
