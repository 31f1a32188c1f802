"""Augmenter: the whole map from an image to its augmented copy, on batches."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn

from learned_aug.calibration import calibrate
from learned_aug.config import FAMILIES, UNITS, AugmenterConfig, Strength
from learned_aug.draw import Augmented, Draw, Trace
from learned_aug.functional import affine_flow, flow_field, pooled, shrunk, smooth
from learned_aug.functional.fields import at_least_float32, same_size
from learned_aug.nets import Code, Encoder, Fields, Generator, initialize
from learned_aug.runtime.checks import check_images, check_strength
from learned_aug.weights.mixin import PretrainedMixin

__all__ = ["Augmenter"]


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

    Parameters start frozen, so that augmenting builds no graph: call :meth:`requires_grad_` to train E and G. Gradients
    to the input flow whenever it requires them.

    A new Augmenter is random; :meth:`calibrate_` gives it a stated strength, :func:`learned_aug.fit` trains it.

    Args:
        config: see :class:`AugmenterConfig`.
        generator: for the initial weights; by default torch's global one.
    """

    def __init__(self, config: AugmenterConfig | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else AugmenterConfig()
        with torch.random.fork_rng(devices=[]):  # torch's own initial weights, which are not kept, draw from it
            self.stages = nn.ModuleList(EncoderGenerator(self.config, warp=w, color=c) for w, c in self.config.stages)
        self.float()  # under any default dtype
        initialize(self, generator)
        self.requires_grad_(False)

    def requires_grad_(self, requires_grad: bool = True) -> Augmenter:
        """Let gradients reach the networks, or not; `learning` says which.

        Only this method does: that of a model which holds the augmenter sets its parameters' flags, which the next call
        takes back, so that no classifier's loss trains an augmenter by accident.
        """
        self.learning = requires_grad
        super().requires_grad_(requires_grad)
        return self

    @property
    def _weight(self) -> Tensor:
        """A parameter that stands for all."""
        return cast(nn.ConvTranspose2d, cast(EncoderGenerator, self.stages[0]).generator.deconvs[0]).weight

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._weight.device

    def draw_noise(
        self, batch: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw what makes draws differ, uniform in [0, 1), (batch, stages, noise_dim). Independent of ``training``.

        A unit of tau is kept where its noise is below its probability of being kept: 1 - p for fixed dropout, what E
        gives for the image for a learned one. Where the configuration has ranges of strengths, the last three columns
        place each family's strength in its range. Equal noise gives the corresponding draw on another image.

        Args:
            batch: number of samples.
            generator: source of the noise; by default torch's global generator of `device`.
            device: device of the result; by default that of the parameters.
        """
        device = self.device if device is None else device
        shape = (batch, len(self.config.stages), self.config.noise_dim)
        # Drawn where the generator lives, so that a CPU generator gives the same noise on every device.
        source = device if generator is None else generator.device
        noise = torch.empty(shape, device=source, dtype=torch.float32).uniform_(generator=generator)
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
        out = draw.recolor(warped, images)
        flow = draw.flow()
        if flow is None:
            flow = out.new_zeros(images.shape[0], 2, *draw.size)
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
        # Compiled code cannot take the flags back.
        thawed = torch.compiler.is_compiling() and self._is_thawed() and not images.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not thawed):
            return self._unroll(images, noise, None, None, strength).draw

    def trace(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        strengths: Tensor | None = None,
        strength: float | Tensor = 1.0,
    ) -> Trace:
        """As :meth:`draw`, with what is between an image and its fields.

        Args:
            images: (B, C, H, W), floating.
            noise: from :meth:`draw_noise`; or
            masks: (B, stages, tau_dim), what tau is multiplied with; differentiable.
            strengths: (B, 3), with `masks`: the strength of each family, in the order of ``config.FAMILIES``;
                differentiable. By default the middle of each range.
            strength: factor on all of them, as of :meth:`forward`.

        Raises:
            TypeError, ValueError: as :meth:`forward`, and if masks or strengths do not fit.
        """
        self._check(images)
        return self._unroll(images, noise, masks, strengths, strength)

    def _unroll(
        self,
        images: Tensor,
        noise: Tensor | None,
        masks: Tensor | None,
        strengths: Tensor | None,
        strength: float | Tensor,
    ) -> Trace:
        config, batch = self.config, images.shape[0]
        name, columns = ("noise", config.noise_dim) if masks is None else ("masks", config.tau_dim)
        given = noise if masks is None else masks
        expected = (batch, len(self.stages), columns)
        if given is None or given.shape != expected:
            got = None if given is None else tuple(given.shape)
            raise ValueError(f"{name} must be (B, stages, {columns}) = {expected}, got {got}; see draw_noise")
        if isinstance(strength, Tensor) and strength.ndim:
            if strength.shape != images.shape[:1]:
                raise ValueError(
                    f"strength must be a number or one per sample, ({batch},), got {tuple(strength.shape)}"
                )
            strength = strength[:, None, None, None]
        if masks is None:
            strengths = self.strengths(given)
        elif strengths is None:
            strengths = self.strengths(given.new_full((batch, 1, len(FAMILIES)), 0.5))
        elif strengths.shape != (batch, len(FAMILIES)):
            raise ValueError(f"strengths must be (B, 3) = ({batch}, 3), got {tuple(strengths.shape)}; see Trace")
        check_strength(strength)
        draw = self.empty_draw((images.shape[-2], images.shape[-1]))
        used: list[Tensor] = []
        logits: list[Tensor] = []
        for k, pair in enumerate(self.pairs()):
            code = self.encode(pair, images if k == 0 else draw.apply(images))
            mask = self.mask(given[:, k, : config.tau_dim], code.keep) if masks is None else given[:, k]
            fields = pair.generator(code.tau, mask)
            draw = self.extend(draw, fields, strengths, strength)
            used.append(mask)
            if code.keep is not None:
                logits.append(code.keep)
        return Trace(draw, torch.stack(used, 1), strengths, torch.stack(logits, 1) if logits else None)

    def _is_thawed(self) -> bool:
        """Whether a model that holds the augmenter set the flags of its parameters, or those of a part."""
        parts = (part for pair in self.pairs() for part in (pair.encoder, pair.generator))
        return not self.learning and any(next(part.parameters()).requires_grad for part in parts)

    def empty_draw(self, size: tuple[int, int]) -> Draw:
        """Return a draw that changes nothing yet, for images of a size (H, W)."""
        low, high = self.config.bounds
        return Draw(size, low=low, high=high, smooth=self.config.version > 1)

    def strengths(self, noise: Tensor) -> Tensor | None:
        """Place the strengths of the families in their ranges, as noise says.

        Args:
            noise: (B, stages, noise_dim), from :meth:`draw_noise`.

        Returns:
            (B, 3), in the order of ``config.FAMILIES`` and the units of the configuration; None for weights of
            version 1.
        """
        ranges = [s if isinstance(s, tuple) else (s, s) for s in self.config.strengths]
        if self.config.version == 1:
            return None
        low, high = noise.new_tensor(ranges).unbind(1)
        if not self.config.draws_strength:
            return low.expand(noise.shape[0], -1)
        # Of two E/G pairs, the first warps and the second recolors.
        place = torch.cat([noise[:, 0, -3:-1], noise[:, -1, -1:]], dim=1)
        return torch.lerp(low, high, place)

    def mask(self, noise: Tensor, logits: Tensor | None = None) -> Tensor:
        """Make masks of dropout, 0 or 1 / (1 - p), of noise.

        Args:
            noise: uniform in [0, 1), of any shape: the first tau_dim columns of :meth:`draw_noise`.
            logits: what E adds to those of keeping each unit; None for fixed dropout.
        """
        prior = 1 - self.config.tau_dropout
        if logits is None or prior == 1:
            kept = noise < prior
        else:
            kept = noise < torch.sigmoid(logits + math.log(prior / (1 - prior)))
        return kept.to(noise.dtype) / prior  # of no default dtype

    def set_strengths_(self, *, affine: Strength = None, warp: Strength = None, color: Strength = None) -> Augmenter:
        """Change the strength of families, as that of loaded weights.

        Args:
            affine: strength of the affine map of the whole image, a share of the image side: a number, a range
                (low, high), or 0 for none; None leaves it as it is.
            warp: strength of the local warp, likewise.
            color: strength of the color filter, a share of the range [0, 1], likewise.

        Returns:
            self.

        Raises:
            ValueError: if a strength is out of range, or the weights are of version 1, which have no unit.
        """
        given = {"affine": affine, "warp": warp, "color": color}
        asked: dict[str, Any] = {name: strength for name, strength in given.items() if strength is not None}
        self._configure(dataclasses.replace(self.config, **asked))
        return self

    def _configure(self, config: AugmenterConfig) -> None:
        self.config = config
        for pair in self.pairs():
            pair.generator.config = config

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        affine: Strength = None,
        warp: Strength = None,
        color: Strength = None,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> Augmenter:
        """Read pretrained weights, a Hub repository, or what :meth:`save_pretrained` wrote.

        Args:
            source: a name of :func:`learned_aug.list_pretrained`; "org/name" or "hf-hub:org/name", a Hub repository; a
                path object, "local-dir:PATH", or a string that begins with "./", "../", "/" or "~", a local folder.
            affine: strength in place of that of the weights, as for :meth:`set_strengths_`.
            warp: likewise.
            color: likewise.
            revision: branch, tag or commit of a Hub repository; by default "main". Pin the commit for what must not
                change: 40 hexadecimal digits, read from the cache without a request.
            cache_dir: folder of Hub downloads; by default the Hub client's own.
            token: token for private repositories; by default the one of ``hf auth login``.

        Raises:
            ValueError: if `source` is no such name, or a strength is out of range.
            WeightsError: if the weights cannot be had, are damaged, or do not fit.
        """
        loaded = super().from_pretrained(source, revision=revision, cache_dir=cache_dir, token=token)
        return loaded.set_strengths_(affine=affine, warp=warp, color=color)

    @contextmanager
    def grown_to(self, level: float) -> Iterator[None]:
        """While open, full-resolution fields (``fields="pixel"``) are no finer than 2 ** level points along a side.

        For progressive growing: fields are averaged to as many points and interpolated back; between whole levels the
        finer one is blended in, so that it grows without a jump. Control grids are as coarse as they are, and stay.

        Args:
            level: 0 or more; from log2 of the training size on all is as usual.
        """
        generators = [pair.generator for pair in self.pairs() if self.config.fields == "pixel"]
        try:
            for generator in generators:
                generator.level = level
            yield
        finally:
            for generator in generators:
                generator.level = math.inf

    def pairs(self) -> list[EncoderGenerator]:
        """Return the E/G pairs, in the order in which they are applied."""
        return cast(list[EncoderGenerator], list(self.stages))

    def encode(self, stage: EncoderGenerator, images: Tensor) -> Code:
        """Codes of images of any size.

        Raises:
            ValueError: if an image holds NaN, infinity or numbers that overflow (checked on the CPU only).
        """
        shrink = pooled if self.config.encoder == "linear" else shrunk
        small = shrink(at_least_float32(images), self.config.encoder_side).to(self._weight.dtype)
        code: Code = stage.encoder(small)
        # The codes see every pixel, and are cheap to look through. On a GPU that would stall the stream.
        tau = code.tau.detach()
        if tau.device.type == "cpu" and not torch.compiler.is_compiling() and not math.isfinite(tau.sum()):
            index = int(tau.isfinite().all(1).logical_not().long().argmax())
            raise ValueError(
                f"images must be finite and of ordinary size, got NaN, infinity or overflow, first in sample {index}; "
                "check its source"
            )
        return code

    def extend(self, draw: Draw, fields: Fields, strengths: Tensor | None, strength: float | Tensor = 1.0) -> Draw:
        """Add what one pair's fields, in pixels of the training size, do to images of the draw's size."""
        side = self.config.size

        factors = None if strengths is None else strengths[:, :, None, None, None]

        def scaled(field: Tensor, family: int) -> Tensor:
            if factors is not None:
                field = field * (factors[:, family] * (1 / UNITS[FAMILIES[family]]))
            return field if isinstance(strength, float) and strength == 1 else field * strength

        flow: Tensor | None = None
        if fields.warp is not None:
            flow = flow_field(fields.warp[:, :4], fields.warp[:, 4:], (side, side))
            if self.config.fields == "pixel" and not self.config.pooled:
                flow = smooth(flow)
            flow = scaled(flow, 1)
        if fields.affine is not None:
            points = (2, 2) if flow is None else (flow.shape[-2], flow.shape[-1])
            whole = affine_flow(scaled(fields.affine, 0).flatten(1), points, (side, side))
            flow = whole if flow is None else flow + whole
        if flow is not None:
            if not same_size(draw.size, (side, side)):
                (x, y), (height, width) = flow.split(1, dim=1), draw.size
                flow = torch.cat([x * (width - 1), y * (height - 1)], dim=1) / (side - 1)
            draw = Draw(draw.size, flow, draw.coarse_color, draw.low, draw.high, draw.smooth)
        if fields.color is not None:
            draw = Draw(draw.size, draw.coarse_flow, scaled(fields.color, 2), draw.low, draw.high, draw.smooth)
        return draw

    def _check(self, images: Tensor) -> None:
        if self._is_thawed() and not torch.compiler.is_compiling():
            self.requires_grad_(False)
        check_images(images, self.config.channels)

    @torch.no_grad()
    def calibrate_(self, images: Tensor, *, generator: torch.Generator | None = None) -> Augmenter:
        """Center the fields and bring each family of changes to its unit, so that strengths mean what they say.

        Afterwards two draws for one image differ on average by the strength that they are drawn at: by a share of the
        image side for the affine map and the warp, mean distance of their flows over positions; by a share of the range
        [0, 1] for the color filter, mean absolute difference. The raw fields have mean zero over images and draws: no
        constant warp.

        Args:
            images: (B, C, H, W) typical inputs; about a hundred suffice, of few each is drawn more often. Of large ones
                the first are used, 32 or more.
            generator: source of the noise; by default torch's global generator.

        Returns:
            self.

        Raises:
            ValueError: if two draws do not differ, as for constant images, or a unit cannot be reached; the weights are
                then as before. Also for weights of version 1, which have no unit.
        """
        self._check(images)
        config = self.config
        if config.version == 1:
            raise ValueError("weights of version 1 have no unit of strength; calibrate an Augmenter(AugmenterConfig())")
        if not images.shape[0]:
            raise ValueError("images must hold at least one image, got an empty batch; give some typical ones")
        before = copy.deepcopy(self.state_dict())
        # All families, those that are switched off too: they may be switched on later.
        units: dict[str, Any] = dict(UNITS)
        self._configure(dataclasses.replace(config, **units))
        try:
            calibrate(self, images, generator)
        except ValueError:
            self.load_state_dict(before)
            raise
        finally:
            self._configure(config)
        return self

    def extra_repr(self) -> str:
        """The configuration, shown by ``repr``."""
        return str(self.config)
