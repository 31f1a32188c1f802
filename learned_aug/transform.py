"""LearnedAugment: an Augmenter as a torchvision v2 transform, for whatever a pipeline carries."""

from __future__ import annotations

from os import PathLike
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from learned_aug.augmenter import Augmenter
from learned_aug.nets import AugmenterConfig

__all__ = ["LearnedAugment"]


class LearnedAugment(v2.Transform):
    """Augment images as an :class:`Augmenter` has learned, each call with a fresh draw.

    Takes PIL images (RGB, L), tensors and tv_tensors images, (..., C, H, W) in uint8 or floating with values in [0, 1],
    singly, in batches (every sample gets its own draw) and nested in any sample structure, whose labels stay as they
    are. Results have the type, dtype and range of the input. Put it before ``Normalize``: images are normalised inside
    as the augmenter was fitted, and come back in [0, 1].

    Randomness comes from torch's global generator, as in torchvision: DataLoader workers differ, a seed repeats.

    Args:
        augmenter: fitted, or a configuration for a random one.
        p: probability with which a sample is augmented.
        strength: scales the learned fields; 0 gives the input back.
    """

    def __init__(self, augmenter: Augmenter | AugmenterConfig, *, p: float = 1.0, strength: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.augmenter = augmenter if isinstance(augmenter, Augmenter) else Augmenter(augmenter)
        self.p, self.strength = p, strength

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], *, p: float = 1.0, strength: float = 1.0) -> LearnedAugment:
        """Read a folder that :meth:`Augmenter.save_pretrained` wrote.

        Raises:
            WeightsError: if a file is missing, damaged, or does not fit.
        """
        return cls(Augmenter.from_pretrained(folder), p=p, strength=strength)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image; others pass."""
        if isinstance(inpt, PIL.Image.Image):
            return tv.to_pil_image(self._augment(tv.pil_to_tensor(inpt)))
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(self._augment(inpt.as_subclass(Tensor)), like=inpt)
        if isinstance(inpt, Tensor) and not isinstance(inpt, tv_tensors.TVTensor):
            return self._augment(inpt)
        return inpt

    @torch.no_grad()
    def _augment(self, images: Tensor) -> Tensor:
        config = self.augmenter.config
        batch = images.reshape(-1, *images.shape[-3:])
        x = tv.to_dtype(batch, torch.float32, scale=True)
        mean, std = (x.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
        x = self.augmenter((x - mean) / std, strength=self.strength) * std + mean
        x = x.clamp(0, 1)
        if not images.is_floating_point():
            x = (x * 255).round()
        return x.to(images.dtype).reshape(images.shape)

    def extra_repr(self) -> str:
        """One line; the networks are not shown."""
        return f"p={self.p}, strength={self.strength}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
