"""LearnedAugment: an Augmenter as a torchvision v2 transform, for whatever a pipeline carries."""

from __future__ import annotations

import math
import warnings
from os import PathLike
from typing import Any, NamedTuple, cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from learned_aug.augmenter import Augmenter
from learned_aug.config import Strength
from learned_aug.draw import Draw
from learned_aug.functional import warp_boxes, warp_mask, warp_points, warp_rotated_boxes
from learned_aug.functional.fields import at_least_float32
from learned_aug.runtime.checks import LARGEST, SLACK, range_remedy

__all__ = ["LearnedAugment"]

IMAGES: tuple[type, ...] = (PIL.Image.Image, tv_tensors.Image, tv_tensors.Video)
LABELS: tuple[type, ...] = (tv_tensors.Mask, tv_tensors.BoundingBoxes)
if hasattr(tv_tensors, "KeyPoints"):  # from torchvision 0.23 on
    LABELS += (tv_tensors.KeyPoints,)
MODES = {1: "L", 3: "RGB"}
DEEP = ("I", "F")  # PIL's modes of more than 8 bits begin so


class LearnedAugment(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Augment images as an :class:`Augmenter` has learned, each call with a fresh draw, and their labels with them.

    Takes any structure of samples that torchvision's v2 transforms take. In it:

    * PIL images (RGB, L), tv_tensors ``Image``, or the first other tensor, (..., C, H, W): warped and recolored, in
      uint8 or floating with values in [0, 1]. Type, dtype and range stay. Leading dimensions are a batch, of which
      every sample gets its own draw (torchvision's own transforms draw once for a batch).
    * ``Video`` (..., T, C, H, W): one draw for all frames, made from the middle one.
    * ``Mask`` (..., H, W): warped alike, nearest pixel.
    * ``BoundingBoxes``, all formats: the box around the warped box, clamped as its ``clamping_mode`` says.
    * ``KeyPoints``: warped alike; those that leave the canvas lie outside, as with torchvision's transforms.
    * All else, labels above all, passes, as do boxes and points that are not finite.

    Several images in a sample (a stereo pair) get the draw of the first. Put it before ``Normalize``: images are
    normalized inside as the augmenter was fitted, and come back in [0, 1].

    Randomness comes from torch's global generator, as in torchvision: DataLoader workers differ, a seed repeats.

    Args:
        augmenter: fitted networks, or random ones of :func:`learned_aug.prior`.
        p: probability with which a sample is augmented.
        strength: scales the learned fields; 0 gives the input back.

    Raises:
        TypeError: when called without an image, with an image as an array, or with a label where the image should be.
        ValueError: when called with images whose channels, mode, range, size or device do not fit.
        RuntimeError: in a DataLoader worker with the augmenter on a GPU.
    """

    def __init__(self, augmenter: Augmenter, *, p: float = 1.0, strength: float = 1.0) -> None:
        super().__init__()
        if not isinstance(augmenter, Augmenter):
            raise TypeError(
                f"augmenter must be an Augmenter, got {type(augmenter).__name__}; random networks need images to be "
                "calibrated on: learned_aug.prior(images, config=...)"
            )
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p must be in [0, 1], got {p}")
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength}")
        self.augmenter = augmenter
        self.p, self.strength = p, strength
        self._in_range = self._warned = False  # whether a floating image was, and whether a later one was not

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        p: float = 1.0,
        strength: float = 1.0,
        affine: Strength = None,
        warp: Strength = None,
        color: Strength = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> LearnedAugment:
        """Read pretrained weights, a Hub repository, or a folder, as :meth:`Augmenter.from_pretrained` does.

        Args:
            source: see there.
            p: see the class.
            strength: see the class.
            affine: strength in place of that of the weights, as for :meth:`Augmenter.set_strengths_`.
            warp: likewise.
            color: likewise.
            revision: of a Hub repository.
            cache_dir: of Hub downloads.
            token: for private repositories.

        Raises:
            ValueError: if `source` is no such name.
            WeightsError: if the weights cannot be had, are damaged, or do not fit.
        """
        augmenter = Augmenter.from_pretrained(
            source,
            affine=affine,
            warp=warp,
            color=color,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
        )
        return cls(augmenter, p=p, strength=strength)

    def forward(self, *inputs: Any) -> Any:
        """Transform a sample of any structure."""
        with torch.no_grad():
            return super().forward(*inputs)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuse what torchvision would pass by in silence.

        Raises:
            TypeError: for arrays in the place of images, and where there is no image.
        """
        for item in flat_inputs:
            if isinstance(item, np.ndarray) and item.ndim > 1:
                raise TypeError(
                    f"got an array of shape {item.shape}, which transforms pass by; make it an image with "
                    "v2.ToImage() or PIL.Image.fromarray, or a tv_tensors.Mask"
                )
        if image_of(flat_inputs) is None:
            names = sorted({type(item).__name__ for item in flat_inputs})
            raise TypeError(f"expected an image (PIL, tv_tensors.Image or Video, or a tensor), got {names}")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the fields for the image among the inputs; an empty dictionary if chance or `strength` says so."""
        image = image_of(flat_inputs)
        lead = _lead(image)
        if len(flat_inputs) > 1:
            check_companions(flat_inputs, image, tuple(tv.get_size(image)), lead)
        pixels = self._pixels(image)
        if not pixels.numel():  # such as a video without frames
            return {}
        # Before chance has its say: what is refused is refused at once, and not in the middle of an epoch.
        self._check_range(pixels)
        for item in flat_inputs:
            if item is not image and isinstance(item, IMAGES):
                self._check_range(self._pixels(item))
        chosen = None if self.p == 1 else torch.rand(math.prod(lead)) < self.p
        if self.strength == 0 or (chosen is not None and not chosen.any()):
            return {}
        normal = self._normalize(_unit(pixels))
        video = isinstance(image, tv_tensors.Video)
        seen = normal[..., normal.shape[-4] // 2, :, :, :] if video else normal
        strength: float | Tensor = self.strength
        if lead and chosen is not None:
            strength = strength * chosen.to(normal.device)  # a strength of 0 gives the bits of the input back
        draw = self.augmenter.draw(seen.reshape(-1, *normal.shape[-3:]), strength=strength)
        if draw.coarse_flow is None and draw.coarse_color is None:
            return {}
        config = self.augmenter.config
        if config.normalizes:
            draw = draw.unnormalized(config.mean, config.std, config.channels)
        return {"drawn": _Drawn(draw, lead)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the draw to one input."""
        if not params:
            return inpt
        drawn: _Drawn = params["drawn"]
        if isinstance(inpt, PIL.Image.Image):
            return _to_pil(self._augment(inpt, drawn))
        if _is_plain(inpt):
            return as_type_of(inpt, self._augment(inpt, drawn))
        if isinstance(inpt, (tv_tensors.Image, tv_tensors.Video)):
            return tv_tensors.wrap(self._augment(inpt, drawn), like=inpt)
        if not isinstance(inpt, LABELS) or drawn.draw.coarse_flow is None:
            return inpt
        plain = cast(Tensor, inpt).as_subclass(Tensor)
        if isinstance(inpt, tv_tensors.Mask):
            flow = drawn.draw.coarse_flow.to(plain.device)
            images = math.prod(drawn.lead)
            # One image, also as a batch, may have any number of masks.
            masks = plain[None] if images == 1 else plain.reshape(images, *plain.shape[len(drawn.lead) :])
            return tv_tensors.wrap(warp_mask(masks, flow, smooth=drawn.draw.smooth).view(plain.shape), like=inpt)
        finite = plain.isfinite().all(-1, keepdim=True)
        if whole := bool(finite.all()):
            known = cast(Tensor, inpt)
        else:
            known = tv_tensors.wrap(plain.where(finite, plain.new_zeros(())), like=inpt)
        warp = _warp_boxes if isinstance(inpt, tv_tensors.BoundingBoxes) else _warp_points
        warped = warp(known, drawn.draw)
        return tv_tensors.wrap(warped if whole else torch.where(finite, warped, plain), like=inpt)

    def check_mode(self, image: PIL.Image.Image) -> None:
        """Refuse a PIL image that does not fit the augmenter.

        Raises:
            ValueError: if it has more than 8 bits, other channels, or no pixels.
        """
        channels = self.augmenter.config.channels
        if image.mode.startswith(DEEP):
            raise ValueError(
                f"the augmenter takes PIL images of 8 bits, got {image.mode}; scale it first to 0..255 by the largest "
                "value that it may hold, floats in [0, 1] by 255, 16 bits by 1/257: "
                "PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)), as image.convert() cuts "
                "values off at 255"
            )
        if 0 in image.size:
            raise ValueError(
                f"images must have pixels, got a PIL image of {image.width} x {image.height}; leave it out"
            )
        if image.mode != (mode := MODES.get(channels)):
            remedy = f"use image.convert({mode!r})" if mode else "give tensors"
            raise ValueError(f"the augmenter takes {channels} channels, got a PIL image {image.mode}; {remedy}")

    def params_of(self, params: dict[str, Any], index: int) -> dict[str, Any]:
        """Return what :meth:`make_params` drew for one sample of a batch, for what goes with its image.

        Args:
            params: of a batch with one leading dimension.
            index: of the sample.
        """
        if not params:
            return params
        drawn: _Drawn = params["drawn"]
        return {"drawn": _Drawn(drawn.draw.sample(index), ())}

    def _pixels(self, image: Any) -> Tensor:
        """The tensor (..., C, H, W), uint8 or floating, of an image that fits the augmenter.

        Raises:
            ValueError: if it has other channels, more than 8 bits (PIL), or is on another device.
            RuntimeError: in a DataLoader worker with the augmenter on a GPU.
        """
        channels, device = self.augmenter.config.channels, self.augmenter.device
        if device.type == "cuda" and torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                "the augmenter is on a GPU, which DataLoader workers should not use; keep LearnedAugment on the CPU "
                "here, or apply the Augmenter to whole batches in the main process"
            )
        if isinstance(image, PIL.Image.Image):
            self.check_mode(image)
            flat = torch.from_numpy(np.frombuffer(bytearray(image.tobytes()), np.uint8))
            values = flat.view(image.height, image.width, channels).permute(2, 0, 1)
        else:
            values = cast(Tensor, image).as_subclass(Tensor)
            if values.shape[-3] != channels or 0 in values.shape[-2:]:
                raise ValueError(
                    f"the augmenter takes images (..., {channels}, H, W), got {tuple(values.shape)}; convert them, as "
                    "with v2.Grayscale or v2.RGB, or fit an augmenter for them"
                )
        if values.device != device:
            raise ValueError(f"the image is on {values.device}, the augmenter on {device}; move one of them with .to()")
        return values

    def _check_range(self, pixels: Tensor) -> None:
        """Refuse floating images that are not in [0, 1]: a data set, not an image of it.

        Raises:
            TypeError: for integers other than uint8.
            ValueError: for the first image that this transform sees, or for values that are not finite.

        Warns:
            UserWarning: once, for a later image; its values are kept.
        """
        if pixels.dtype == torch.uint8 or pixels.device.type != "cpu" or not pixels.numel():
            return
        if not pixels.is_floating_point() or pixels.itemsize < 2:
            raise TypeError(
                f"images must be uint8 or floating, got {pixels.dtype}; divide them by {LARGEST}, or convert 8-bit "
                "data with .to(torch.uint8)"
            )
        low, high = (float(value) for value in pixels.aminmax())
        if low >= -SLACK and high <= 1 + SLACK:
            self._in_range = True
            return
        what = range_remedy(
            low, high, "put LearnedAugment before Normalize, or apply the Augmenter to normalized batches"
        )
        text = f"floating images must be in [0, 1], got {low:.3g} to {high:.3g}; {what}"
        if not self._in_range or not math.isfinite(high - low):
            raise ValueError(text)
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text}; earlier images were in it, so this one is augmented as it is", stacklevel=5)

    def _augment(self, image: Any, drawn: _Drawn) -> Tensor:
        # Read again, not kept from make_params: the memory may hold another frame by now.
        values = self._pixels(image)
        batch = values.reshape(-1, *values.shape[-3:])
        draw = drawn.draw
        if len(batch) != draw.batch:  # frames of videos
            draw = draw.repeat(len(batch) // draw.batch)
        return draw.apply(batch).reshape(values.shape)

    def _normalize(self, batch: Tensor) -> Tensor:
        config = self.augmenter.config
        return (batch - _column(config.mean, batch)) / _column(config.std, batch) if config.normalizes else batch

    def extra_repr(self) -> str:
        """One line; the networks are not shown."""
        config = self.augmenter.config
        return f"p={self.p}, strength={self.strength}, channels={config.channels}, size={config.size}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class _Drawn(NamedTuple):
    """One call's randomness; no pixels."""

    draw: Draw
    lead: tuple[int, ...]
    """Leading dimensions of the batch."""


def _is_plain(item: Any) -> bool:
    """Whether torchvision takes it for a plain tensor: subclasses too, but none of its own."""
    return isinstance(item, Tensor) and not isinstance(item, tv_tensors.TVTensor)


def as_type_of(like: Tensor, values: Tensor) -> Tensor:
    """A tensor of the same subclass and with the same attributes."""
    if type(like) is Tensor:
        return values
    out = values.as_subclass(type(like))
    vars(out).update(vars(like))
    return out


def image_of(flat_inputs: list[Any]) -> Any:
    """The image that the fields are drawn for, chosen as torchvision chooses what to transform; None without one."""
    tensor = None
    for item in flat_inputs:
        if isinstance(item, IMAGES):
            return item
        if tensor is None and _is_plain(item):
            tensor = item
    return tensor


def _lead(image: Any) -> tuple[int, ...]:
    """Leading dimensions of a batch: one draw for each entry; () for a single image or video.

    Raises:
        TypeError: for a tensor that has too few dimensions to be an image.
    """
    if isinstance(image, PIL.Image.Image):
        return ()
    needed = 4 if isinstance(image, tv_tensors.Video) else 3
    if image.ndim < needed:
        raise TypeError(
            f"images must have at least {needed} dimensions, got {tuple(image.shape)}; if this tensor is a label, put "
            "the image first or wrap it with v2.ToImage()"
        )
    return tuple(image.shape[:-needed])


def check_companions(flat_inputs: list[Any], image: Any, size: tuple[int, ...], lead: tuple[int, ...]) -> None:
    """Check that what is transformed together has one size, one batch and, of PIL images, one mode.

    Raises:
        ValueError: if it has not.
    """
    for item in flat_inputs:
        if not isinstance(item, (*IMAGES, *LABELS)):
            continue
        name = type(item).__name__
        if isinstance(item, PIL.Image.Image) and item.mode != getattr(image, "mode", item.mode):
            raise ValueError(
                f"PIL images of a sample must have one mode, got {image.mode} and {item.mode}; if one is a mask, wrap "
                "it: tv_tensors.Mask(v2.functional.pil_to_tensor(mask))"
            )
        if (other := tuple(tv.get_size(item))) != size:
            raise ValueError(
                f"a sample must have one size, got {size} and {other} ({name}); resize it as a whole before"
            )
        if isinstance(item, IMAGES):
            fits = _lead(item) == lead
        else:
            alike = isinstance(item, tv_tensors.Mask) and tuple(item.shape[: len(lead)]) == lead
            fits = alike or math.prod(lead) == 1
        if not fits:
            raise ValueError(
                f"{name} {tuple(getattr(item, 'shape', ()))} does not go with a batch {lead} of images, "
                "which are drawn one by one; transform samples before they are collated"
            )


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def _unit(pixels: Tensor) -> Tensor:
    """Values in [0, 1], float32 at least."""
    if pixels.dtype == torch.uint8:
        # Not pixels / 255, which takes 10 times as long; not .to(), whose memory torch 2.6 may freeze.
        return torch.empty_like(pixels, dtype=torch.float32).copy_(pixels).mul_(1 / 255)
    return at_least_float32(pixels)


def _to_pil(image: Tensor) -> PIL.Image.Image:
    channels, height, width = image.shape
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return PIL.Image.frombytes(MODES[channels], (width, height), pixels)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return (values if dtype.is_floating_point else values.round()).to(dtype)


def _warp_points(points: Tensor, draw: Draw) -> Tensor:
    plain = points.as_subclass(Tensor)
    flow = cast(Tensor, draw.coarse_flow).to(plain.device)
    warped, _ = warp_points(plain.reshape(1, -1, 2), flow, draw.size, smooth=draw.smooth)
    return _cast(warped, plain.dtype).view(plain.shape)


def _warp_boxes(boxes: tv_tensors.BoundingBoxes, draw: Draw) -> Tensor:
    plain = boxes.as_subclass(Tensor)
    flow = cast(Tensor, draw.coarse_flow).to(plain.device)
    values = at_least_float32(plain)
    upright = boxes.format.value in ("XYXY", "XYWH", "CXCYWH")
    corners = tv_tensors.BoundingBoxFormat["XYXY" if upright else "XYXYXYXY"]
    values = tv.convert_bounding_box_format(values, old_format=boxes.format, new_format=corners)
    if upright:
        values = warp_boxes(values[None], flow, draw.size, smooth=draw.smooth)[0][0]
    else:
        rotated = values.reshape(1, -1, 4, 2)
        values = warp_rotated_boxes(rotated, flow, draw.size, smooth=draw.smooth)[0][0].flatten(-2)
    values = tv.convert_bounding_box_format(values, old_format=corners, new_format=boxes.format)
    clamped = tv.clamp_bounding_boxes(tv_tensors.wrap(values, like=boxes)).as_subclass(Tensor)
    return _cast(clamped, plain.dtype)
