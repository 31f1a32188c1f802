"""Augmenter: the whole map from an image to its augmented copy, on batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.draw import Augmented, Draw, Trace
from learned_aug.functional import flow_field, resize_field, smooth
from learned_aug.nets import AugmenterConfig, Code, Encoder, Fields, Generator, bias_of, initialize
from learned_aug.weights.mixin import PretrainedMixin

__all__ = ["Augmenter"]

CALIBRATION = 2**21  # pixels, at most, of a calibration: dense fields take 200 bytes each and more


class EncoderGenerator(nn.Module):
    """One encoder with its generator."""

    def __init__(self, config: AugmenterConfig, *, warp: bool, color: bool) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.generator = Generator(config, warp=warp, color=color)


class Augmenter(PretrainedMixin):
    """E, dropout on tau, G and the two transformations, for floating batches (B, C, H, W).

    Every sample gets its own draw. The dropout is drawn explicitly, so it is on after :meth:`eval` too. Images are
    expected in the value range of the fit: in [0, 1], normalized as ``config.mean`` and ``config.std`` state. Any size
    works: E sees a resized copy, and the fields are interpolated.

    Parameters start frozen, so that augmenting builds no graph: call ``requires_grad_()`` to train E and G. Gradients
    to the input flow whenever it requires them.

    A new Augmenter is random; :meth:`calibrate_` gives it a stated strength, :func:`learned_aug.fit` trains it.

    Args:
        config: see :class:`AugmenterConfig`.
        generator: for the initial weights; by default torch's global one.
    """

    def __init__(self, config: AugmenterConfig | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else AugmenterConfig()
        self.stages = nn.ModuleList(EncoderGenerator(self.config, warp=w, color=c) for w, c in self.config.stages)
        initialize(self, generator)
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return cast(EncoderGenerator, self.stages[0]).generator.scale.device

    def draw_noise(
        self, batch: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """What makes draws differ, uniform in [0, 1), (batch, stages, tau_dim). Independent of ``training``.

        A unit of tau is kept where its noise is below its probability of being kept: 1 - p for fixed dropout, what E
        gives for the image for a learned one. Equal noise gives the corresponding draw on another image.

        Args:
            batch: number of samples.
            generator: by default torch's global one for `device`.
            device: of the result; by default that of the parameters.
        """
        device = self.device if device is None else device
        shape = (batch, len(self.config.stages), self.config.tau_dim)
        # Drawn where the generator lives, so that a CPU generator gives the same noise on every device.
        source = device if generator is None else generator.device
        noise = torch.empty(shape, device=source).uniform_(generator=generator)
        return noise if source == device else noise.to(device)

    def forward(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Augmented copies of `images`, a fresh draw for each.

        Args:
            images: (B, C, H, W), floating.
            noise: from :meth:`draw_noise`, to repeat a draw; by default fresh.
            strength: scales all fields, a number or one per sample (B,); 0 gives the images back.
            generator: for fresh noise.

        Returns:
            (B, C, H, W), a new tensor in the dtype of `images`.

        Raises:
            TypeError: if `images` is not a floating tensor.
            ValueError: if its shape does not fit, or (checked on the CPU only) it holds NaN or infinity.
        """
        return self.draw(images, noise, strength=strength, generator=generator).apply(images)

    def augment(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Augmented:
        """As :meth:`forward`, and also the flow and the color change."""
        draw = self.draw(images, noise, strength=strength, generator=generator)
        warped = draw.warp(images)
        out = draw.recolor(warped)
        flow = draw.flow()
        if flow is None:
            flow = out.new_zeros(len(images), 2, *draw.size)
        return Augmented(out.to(images.dtype), flow, (out - warped).to(images.dtype))

    def draw(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        strength: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """The fields that :meth:`forward` applies, with the same arguments and errors."""
        self._check(images)
        if noise is None:
            noise = self.draw_noise(images.shape[0], generator=generator, device=images.device)
        return self._unroll(images, noise, None, strength)[0]

    def trace(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        strength: float | Tensor = 1.0,
    ) -> Trace:
        """As :meth:`draw`, with what is between an image and its fields.

        Args:
            images: (B, C, H, W), floating.
            noise: from :meth:`draw_noise`; or
            masks: (B, stages, tau_dim), what tau is multiplied with; differentiable.
            strength: as of :meth:`forward`.
        """
        self._check(images)
        draw, used, logits = self._unroll(images, noise, masks, strength)
        return Trace(draw, torch.stack(used, 1), torch.stack(logits, 1) if logits else None)

    def _unroll(
        self, images: Tensor, noise: Tensor | None, masks: Tensor | None, strength: float | Tensor
    ) -> tuple[Draw, list[Tensor], list[Tensor]]:
        """The draw, and the masks and the logits (none for fixed dropout) of each stage."""
        given = noise if masks is None else masks
        if given is None or given.shape != (expected := (len(images), len(self.stages), self.config.tau_dim)):
            got = None if given is None else tuple(given.shape)
            raise ValueError(f"noise must be (B, stages, tau_dim) = {expected}, got {got}; use draw_noise")
        if isinstance(strength, Tensor) and strength.ndim:
            if strength.shape != images.shape[:1]:
                raise ValueError(
                    f"strength must be a number or one per sample, ({len(images)},), got {tuple(strength.shape)}"
                )
            strength = strength[:, None, None, None]
        draw = Draw((images.shape[-2], images.shape[-1]))
        used: list[Tensor] = []
        logits: list[Tensor] = []
        for k, stage in enumerate(self._stages()):
            code = self._encode(stage, images if k == 0 else draw.apply(images))
            mask = self.strike(given[:, k], code.keep) if masks is None else given[:, k]
            draw = self._extend(draw, stage.generator(code.tau * mask.to(code.tau.dtype)), strength)
            used.append(mask)
            if code.keep is not None:
                logits.append(code.keep)
        return draw, used, logits

    def strike(self, noise: Tensor, logits: Tensor | None = None) -> Tensor:
        """Masks of dropout, 0 or 1 / (1 - p), that noise makes.

        Args:
            noise: from :meth:`draw_noise`, of any shape.
            logits: what E adds to those of keeping each unit; None for fixed dropout.
        """
        prior = 1 - self.config.tau_dropout
        if logits is None or prior == 1:
            return (noise < prior) / prior
        return (noise < torch.sigmoid(logits + math.log(prior / (1 - prior)))) / prior

    @contextmanager
    def grown_to(self, level: float) -> Iterator[None]:
        """While open, full-resolution fields (``fields="pixel"``) are no finer than 2 ** level points along a side.

        For progressive growing: fields are averaged to as many points and interpolated back; between whole levels the
        finer one is blended in, so that it grows without a jump. Control grids are as coarse as they are, and stay.

        Args:
            level: 0 or more; from log2 of the training size on all is as usual.
        """
        generators = [stage.generator for stage in self._stages() if self.config.fields == "pixel"]
        try:
            for generator in generators:
                generator.level = level
            yield
        finally:
            for generator in generators:
                generator.level = math.inf

    def _stages(self) -> list[EncoderGenerator]:
        return cast(list[EncoderGenerator], list(self.stages))

    def _encode(self, stage: EncoderGenerator, images: Tensor) -> Code:
        """Codes of images of any size."""
        side = self.config.encoder_side
        code: Code = stage.encoder(_resize(images.to(stage.generator.scale.dtype), side))
        # The codes see every pixel, and are cheap to look through. On a GPU that would stall the stream.
        tau = code.tau.detach()
        if tau.device.type == "cpu" and not torch.compiler.is_compiling() and not math.isfinite(tau.sum()):
            index = int(tau.isfinite().all(1).logical_not().long().argmax())
            raise ValueError(
                f"images must be finite and of ordinary size, got NaN, infinity or overflow, first in sample {index}; "
                "check its source"
            )
        return code

    def _extend(self, draw: Draw, fields: Fields, strength: float | Tensor = 1.0) -> Draw:
        """Add what one stage's fields, in pixels of the training size, do to images of the draw's size."""
        side = self.config.size
        if fields.warp is not None:
            flow = flow_field(fields.warp[:, :4], fields.warp[:, 4:], (side, side))
            if self.config.fields == "pixel" and not self.config.pooled:
                flow = smooth(flow)
            if draw.size != (side, side):
                height, width = ((length - 1) / (side - 1) for length in draw.size)
                flow = flow * flow.new_tensor([width, height])[:, None, None]
            draw = draw._replace(coarse_flow=_scaled(flow, strength))
        if fields.color is not None:
            draw = draw._replace(coarse_color=_scaled(fields.color, strength))
        return draw

    def _check(self, images: Tensor) -> None:
        c = self.config.channels
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"images must be a floating tensor, got {got}; use LearnedAugment, or scale integers first, as with "
                "torchvision.transforms.v2.functional.to_dtype(images, torch.float32, scale=True)"
            )
        if images.ndim != 4 or images.shape[1] != c or 0 in images.shape[2:]:
            hint = "; add a batch dimension with images[None]" if images.ndim == 3 else ""
            raise ValueError(f"images must be (B, {c}, H, W), got {tuple(images.shape)}{hint}")

    @torch.no_grad()
    def calibrate_(
        self,
        images: Tensor,
        *,
        warp: float = 0.0625,
        color: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> Augmenter:
        """Scale the last layer of G to a stated strength, and center its fields.

        Afterwards the flows of two draws for one image differ by `warp` on average over images and positions, and the
        raw fields have mean zero over images and draws: no constant warp. Starting from small weights instead does not
        work: they stay small.

        Args:
            images: (B, C, H, W) typical inputs; about a hundred suffice. Of large ones the first are used, 32 or more.
            warp: mean length of the difference of two flows, a share of the image side.
            color: mean absolute difference of two color changes, a share of the range [0, 1] before normalization.
            generator: source of the noise; by default torch's global generator.

        Returns:
            self.

        Raises:
            ValueError: if the bounds of the fields do not allow such a strength, or two draws do not differ at all; the
                weights are then as before.
        """
        self._check(images)
        std = sum(self.config.std) / len(self.config.std)
        asked = {"warp": warp, "color": color}
        targets = {"warp": warp * self.config.size, "color": color / std}
        before = copy.deepcopy(self.state_dict())
        images = images[: max(32, CALIBRATION // self.config.size**2)]
        images = _resize(images, self.config.size).repeat(2, 1, 1, 1)
        noise = self.draw_noise(len(images), generator=generator, device=images.device)
        draw = Draw((self.config.size, self.config.size))
        for k, stage in enumerate(self._stages()):
            code = self._encode(stage, draw.apply(images))
            raw = stage.generator.raw(code.tau * self.strike(noise[:, k], code.keep))
            last, center = cast(nn.ConvTranspose2d, stage.generator.deconvs[-1]), stage.generator.center
            parts = {"warp": slice(0, 6)} if stage.generator.warp else {}
            parts |= {"color": slice(-12, None)} if stage.generator.color else {}
            for name, part in parts.items():
                # A fixed point: the spread grows with the scale, at first in proportion, near the bound slowly.
                for _ in range(100):
                    center.copy_(raw.mean(0))
                    drawn = self._extend(draw, stage.generator.fields(raw))
                    spread = _flow_spread(drawn) if name == "warp" else _color_spread(drawn, images)
                    reached = abs(spread / targets[name] - 1) < 1e-3
                    if reached or spread == 0:
                        break
                    # The last layer is linear: its raw fields need not be computed anew.
                    for scaled in (last.weight[:, part], bias_of(last)[part], raw[:, part]):
                        scaled *= targets[name] / spread
                if not reached:
                    self.load_state_dict(before)
                    raise ValueError(
                        f"{name}={asked[name]} cannot be reached: two draws differed by "
                        f"{asked[name] * spread / targets[name]:.3g}; ask for less, give other images, or raise "
                        "tau_dropout"
                    )
            draw = drawn
        return self

    def extra_repr(self) -> str:
        """The configuration, shown by ``repr``."""
        return str(self.config)


def _scaled(field: Tensor, strength: float | Tensor) -> Tensor:
    return field if isinstance(strength, float) and strength == 1 else field * strength


def _resize(images: Tensor, side: int) -> Tensor:
    # Means of neighbors, as often as halves fit, at a fraction of the time of an interpolation.
    for dim in (-2, -1):
        length = images.shape[dim]
        factor = 1
        while length % (2 * factor) == 0 and length // (2 * factor) >= side:
            factor *= 2
        if factor > 1:
            first, second, *rest = images.unflatten(dim, (-1, factor)).unbind(dim)
            images = first + second
            for part in rest:  # in place: fresh memory would cost more than the sums
                images.add_(part)
            images.div_(factor)
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _flow_spread(draw: Draw) -> float:
    """Mean distance of the flows of the first and the second half of the draws, pixels."""
    one, two = resize_field(cast(Tensor, draw.coarse_flow), draw.size).chunk(2)
    return float((one - two).norm(dim=1).mean())


def _color_spread(draw: Draw, images: Tensor) -> float:
    """Mean difference of what the first and the second half of the draws make of the images' colors."""
    one, two = draw.recolor(images).chunk(2)
    return float((one - two).abs().mean())
