"""Augmenter: the whole map from an image to its augmented copy, on batches."""

from __future__ import annotations

from os import PathLike
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug import weights
from learned_aug.functional import flow_field, recolor, resize_field, smooth, warp
from learned_aug.nets import SLOPE, AugmenterConfig, Encoder, Fields, Generator

__all__ = ["Augmented", "Augmenter"]


class Augmented(NamedTuple):
    """What :meth:`Augmenter.augment` did to a batch."""

    images: Tensor
    """(B, C, H, W), the augmented copies."""
    flow: Tensor
    """(B, 2, H, W), (x, y), pixels: output pixel q shows the input at q + flow(q); 0 without a spatial field."""
    delta: Tensor
    """(B, C, H, W), what the colour filter added, in the units of the images; 0 without one."""


class Stage(nn.Module):
    """One encoder with its generator."""

    def __init__(self, config: AugmenterConfig, *, warp: bool, color: bool) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.generator = Generator(config, warp=warp, color=color)


class Augmenter(nn.Module):
    """E, dropout on tau, G and the two transformations, for floating batches (B, C, H, W).

    Every sample gets its own draw. The dropout is drawn explicitly, so it is on after :meth:`eval` too. Images are
    expected in the value range of the fit: in [0, 1], normalised as ``config.mean`` and ``config.std`` state. Any size
    works: E sees a resized copy, and the fields are interpolated.

    Parameters start frozen, so that augmenting builds no graph: call ``requires_grad_()`` to train E and G. Gradients to
    the input flow whenever it requires them.

    A new Augmenter is random; :meth:`calibrate_` gives it a stated strength, :func:`learned_aug.fit` trains it.

    Args:
        config: see :class:`AugmenterConfig`.
        generator: for the initial weights; by default torch's global one.
    """

    def __init__(self, config: AugmenterConfig | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else AugmenterConfig()
        self.stages = nn.ModuleList(Stage(self.config, warp=w, color=c) for w, c in self.config.stages)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                # torch's default shrinks the signal, and then tau no longer depends on the image.
                mode = "fan_in" if isinstance(module, nn.Conv2d) else "fan_out"
                nn.init.kaiming_normal_(module.weight, SLOPE, mode, generator=generator)
                nn.init.zeros_(module.bias)
        self.requires_grad_(False)

    def draw_masks(
        self, batch: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Dropout masks for tau, (batch, stages, tau_dim): 0 or 1 / (1 - p). Independent of ``training``.

        Args:
            batch: number of samples.
            generator: by default torch's global one for `device`.
            device: of the result; by default that of the parameters.
        """
        device = next(self.parameters()).device if device is None else device
        keep = 1 - self.config.tau_dropout
        shape = (batch, len(self.stages), self.config.tau_dim)
        # Drawn where the generator lives, so that a CPU generator gives the same masks on every device.
        source = device if generator is None else generator.device
        return (torch.rand(shape, generator=generator, device=source) < keep).to(device, torch.float32) / keep

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Augmented copies of `images`, a fresh draw for each.

        Args:
            images: (B, C, H, W), floating.
            masks: from :meth:`draw_masks`, to repeat a draw; by default fresh ones.
            strength: scales all fields, a number or one per sample (B,); 0 gives the images back.
            generator: for the fresh masks.

        Returns:
            (B, C, H, W), a new tensor in the dtype of `images`.

        Raises:
            TypeError: if `images` is not a floating tensor.
            ValueError: if its shape does not fit, or (checked on the CPU only) it holds NaN or infinity.
        """
        return self.augment(images, masks, strength=strength, generator=generator).images

    def augment(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Augmented:
        """As :meth:`forward`, and also the flow and the colour change."""
        self._check(images)
        if masks is None:
            masks = self.draw_masks(len(images), generator=generator, device=images.device)
        if isinstance(strength, Tensor) and strength.ndim == 1:
            strength = strength[:, None, None, None]
        dtype = torch.promote_types(images.dtype, torch.float32)
        out, size = images, (images.shape[-2], images.shape[-1])
        flow = torch.zeros(len(images), 2, *size, dtype=dtype, device=images.device)
        delta = torch.zeros_like(images)
        for stage, mask in zip(self.stages, masks.unbind(1), strict=True):
            fields = stage.generator(self._encode(stage, out) * mask)
            if fields.warp_bias is not None:
                flow = self._flow(fields, size) * strength
                out = warp(out, flow)
            if fields.color_bias is not None:
                weight, bias = (resize_field(f.to(images.dtype) * strength, size) for f in fields[2:])
                recolored = recolor(out, weight, bias)
                out, delta = recolored, recolored - out
        return Augmented(out, flow, delta)

    def _encode(self, stage: Stage, images: Tensor) -> Tensor:
        side = (self.config.size, self.config.size)
        small = images.to(next(stage.parameters()).dtype)
        if small.shape[-2:] != side:
            small = F.interpolate(small, side, mode="bilinear", antialias=True)
        codes: Tensor = stage.encoder(small)
        return codes

    def _flow(self, fields: Fields, size: tuple[int, int]) -> Tensor:
        """Flow in pixels of an image of `size` from fields in pixels of the training size."""
        side = self.config.size
        flow = flow_field(fields.warp_weight, fields.warp_bias, (side, side))
        if self.config.fields == "pixel" and not self.config.pooled:
            flow = smooth(flow)
        height, width = ((length - 1) / (side - 1) for length in size)
        return resize_field(flow, size) * flow.new_tensor([width, height])[:, None, None]

    def _check(self, images: Tensor) -> None:
        c = self.config.channels
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"images must be a floating tensor, got {got}; scale integers first, as with "
                "torchvision.transforms.v2.functional.to_dtype(images, torch.float32, scale=True), or use LearnedAugment"
            )
        if images.ndim != 4 or images.shape[1] != c:
            hint = "; add a batch dimension with images[None]" if images.ndim == 3 else ""
            raise ValueError(f"images must be (B, {c}, H, W), got {tuple(images.shape)}{hint}")
        # On a GPU the check would stall the stream; NaN stays visible in the result there.
        if images.device.type == "cpu" and not torch.compiler.is_compiling() and not images.isfinite().all():
            index = int(images.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
            raise ValueError(f"images must be finite, got NaN or infinity first in sample {index}; check its source")

    @torch.no_grad()
    def calibrate_(
        self,
        images: Tensor,
        *,
        pixels: float = 1.0,
        color: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> Augmenter:
        """Scale the last layer of G to a stated strength, and centre its fields.

        Afterwards the flows of two masks of one image differ by `pixels` on average over images and positions, and the
        raw fields have mean zero over images and masks: no constant warp. Starting from small weights instead does not
        work: they stay small.

        Args:
            images: (B, C, H, W) typical inputs; about a hundred suffice.
            pixels: mean length of the difference of two flows, in units of 1/32 of the image side.
            color: mean absolute difference of two colour changes, in units of the range [0, 1] before normalisation.
            generator: for the masks.

        Returns:
            self.

        Raises:
            ValueError: if the bounds of the fields do not allow such a strength.
        """
        self._check(images)
        std = sum(self.config.std) / len(self.config.std)
        targets = {"pixels": pixels * self.config.size / 32, "color": color / std}
        masks = self.draw_masks(2 * len(images), generator=generator, device=images.device).unbind(1)
        for stage, mask in zip(self.stages, masks, strict=True):
            codes = self._encode(stage, images).repeat(2, 1) * mask
            last, center = stage.generator.deconvs[-1], stage.generator.center
            warped = 6 * stage.generator.warp  # the first output channels
            for name, part in (("pixels", slice(0, warped)), ("color", slice(warped, len(center)))):
                if part.start == part.stop:
                    continue
                for _ in range(20):  # a fixed point: the spread grows with the scale, at first in proportion
                    center.copy_(stage.generator.raw(codes).mean(0))
                    spread = self._spread(stage.generator(codes), images)[name]
                    if abs(spread / targets[name] - 1) < 1e-3:
                        break
                    last.weight[:, part] *= targets[name] / spread
                    last.bias[part] *= targets[name] / spread
                else:
                    raise ValueError(
                        f"{name}={pixels if name == 'pixels' else color} cannot be reached: the bounded fields gave "
                        f"{spread:.3g} of {targets[name]:.3g}; ask for less"
                    )
        return self

    def _spread(self, fields: Fields, images: Tensor) -> dict[str, float]:
        """Mean difference of the first and second half of `fields` as a flow (pixels) and as a colour change."""
        side = (self.config.size, self.config.size)
        spread = {}
        if fields.warp_bias is not None:
            one, two = self._flow(fields, side).chunk(2)
            spread["pixels"] = float((one - two).norm(dim=1).mean())
        if fields.color_bias is not None:
            small = F.interpolate(images, side, mode="bilinear", antialias=True).repeat(2, 1, 1, 1)
            one, two = (recolor(small, *(resize_field(f, side) for f in fields[2:])) - small).chunk(2)
            spread["color"] = float((one - two).abs().mean())
        return spread

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json`` to `folder`, which is made if need be.

        Each file is replaced atomically: a failure leaves the old one, or none.

        Raises:
            OSError: if the folder cannot be written.
        """
        weights.save(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Augmenter:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            WeightsError: if a file is missing, damaged, or does not fit.
        """
        config, state = weights.load(folder)
        augmenter = cls(config)
        weights.check(state, augmenter.state_dict(), folder)
        augmenter.load_state_dict(state)
        return augmenter

    def extra_repr(self) -> str:
        """The configuration, shown by ``repr``."""
        return str(self.config)
