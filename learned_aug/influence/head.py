"""The head of a user's classifier: its last Linear, and the features that enter it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.layer import first_tensor, unwrap
from learned_aug.runtime.autocast import fresh_casts
from learned_aug.runtime.checks import check_class_range, check_labels, model_errors_named

__all__ = ["HeadBatch", "HeadTap", "borrowed", "check_differentiable", "collect", "gradient_of"]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Lend the user's model in eval mode and frozen, given back as it came, also when the body raises.

    Restored on exit: every module's `training` flag, every parameter's `requires_grad` and `grad`, every buffer bit for
    bit. Parameter values are not copied: the body must not write to them. Hooks are their owners' to remove (`HeadTap`
    does).

    Raises:
        ValueError: if the parameters were made in inference mode.
    """
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "the model's parameters were made in torch.inference_mode(), where no gradient can pass; build or load the "
            "model outside of it"
        )
    training = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for module, _ in training:  # not eval(), where some layers merge their weights, and exported ones refuse it
            module.training = False
        for p, _, _ in parameters:
            p.requires_grad_(False)
        with fresh_casts():
            yield model
    finally:
        for module, mode in training:
            module.training = mode
        for p, requires_grad, grad in parameters:
            p.requires_grad_(requires_grad)
            p.grad = grad
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
                module._buffers[name] = buffer


class HeadTap:
    """Calls a model and reads what enters its head, through a forward hook that is removed on exit.

        with borrowed(model), HeadTap(model, find_head(model)) as tap:
            features, logits = tap(images)

    The first call verifies that the closed form applies: the model is in eval mode, its output is
    `features @ weight.T + bias` of the head, with other weights as well, and a sample's features depend neither on
    chance (active dropout) nor on the rest of its batch. This costs one more pass over half of that batch. A compiled
    model runs uncompiled here.

    Args:
        model: the classifier; wrappers are looked through, as in `find_head`.
        head: last nn.Linear of the model.
    """

    def __init__(self, model: nn.Module, head: nn.Linear) -> None:
        self.model = unwrap(model)
        self.head = head
        if not any(module is head for module in self.model.modules()):
            raise ValueError("head must be a module of the model, got one of another model; use find_head(model)")
        self._seen: list[Tensor] = []
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._verified = False

    def __enter__(self) -> HeadTap:
        self._hook = self.head.register_forward_hook(self._record, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._seen.clear()

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self._seen.append(args[0] if args else kwargs["input"])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of a batch.

        Args:
            images: (B, ...), on the model's device.

        Returns:
            features (B, D) and logits (B, K), both differentiable with respect to `images`.

        Raises:
            ValueError: if the model's output is not the output of its head, with the reason.
            TypeError: if the model's output holds no tensor.
        """
        features, output = self._forward(images)
        if not self._verified:
            self._verify(images, features.detach(), output.detach())
            self._verified = True
        return features, output

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._hook is None:
            raise RuntimeError("HeadTap is not open; use it as `with HeadTap(model, head) as tap:`")
        self._seen.clear()
        version = self.head.weight._version
        named = nullcontext() if self._verified else model_errors_named(images)
        with named, torch.compiler.set_stance("force_eager"):  # compiled code would not know the hook
            output = self.model(images.clone())  # which a model may write to
        if not torch.is_inference_mode_enabled() and self.head.weight._version != version:
            raise ValueError(
                "the head's weight must stay as it is, got one that a hook or the model's forward writes to at each "
                "pass: influences are those of a head that is free to move; take that out on a copy of the model"
            )
        calls = len(self._seen)
        if calls != 1:
            raise ValueError(
                f"the head must run once per forward pass, ran {calls} times; "
                f'pass head="name" of the nn.Linear that gives the logits{self._others()}'
            )
        features = self._seen.pop()
        output = first_tensor(output)
        if features.ndim != 2 or features.shape[0] != images.shape[0]:
            raise ValueError(
                f"features that enter the head must be (B, D) with B = {images.shape[0]}, got {tuple(features.shape)}; "
                "the head must see one vector per image: pool or flatten before it"
            )
        return features, output

    @contextmanager
    def _moved_head(self) -> Iterator[list[nn.Parameter]]:
        """While open, the head has other values, far from its own, which are given; none if they are rebuilt.

        The parameters themselves get other memory, for whoever else holds them; their own waits untouched.
        """
        own = [p for name in ("weight", "bias") if (p := self.head._parameters.get(name)) is not None]
        if "weight" not in self.head._parameters:
            own = []
        source = torch.Generator().manual_seed(0)
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for p in own:
                value = p.data
                noise = torch.randn(p.shape, generator=source, dtype=torch.float32, device="cpu").to(value)
                kept.append((p, value))
                p.data = value + noise * (1 + 4 * value.abs().max())
            with fresh_casts():
                yield own
        finally:
            for p, value in kept:
                p.data = value

    def _others(self) -> str:
        paths = [p for p, m in self.model.named_modules() if isinstance(m, nn.Linear) and m is not self.head]
        return f"; other nn.Linear: {', '.join(paths[-5:])}" if paths else ""

    @torch.no_grad()
    def _verify(self, images: Tensor, features: Tensor, output: Tensor) -> None:
        if any(module.training for module in self.model.modules()):
            raise ValueError(
                "the model is in train mode, where dropout and batch norm make features random; "
                "use `with borrowed(model):` or model.eval()"
            )
        expected = F.linear(
            features.float(), self.head.weight.float(), None if self.head.bias is None else self.head.bias.float()
        )
        if output.shape != expected.shape:
            raise ValueError(
                f"the model's output must be its head's, {tuple(expected.shape)}, got {tuple(output.shape)}; the head "
                f'is not the last layer: pass head="name" of the nn.Linear that gives the logits{self._others()}'
            )
        if (gap := _gap(output.float(), expected)) > 0.02:
            raise ValueError(
                f"the model's output must be its head's logits, they differ by {gap:.1%} of their size: something "
                "after the head changes them (a scale, softmax or sigmoid? the mean of several heads?), or another "
                f'layer is the last one; return the logits of one head, or pass head="name"{self._others()}'
            )
        if not all(bool(p.isfinite().all()) for p in self.head.parameters(recurse=False)):
            raise ValueError(
                "the head's weight and bias must be finite, got NaN or infinity: the training has diverged; lower its "
                "learning rate and train again"
            )
        with self._moved_head() as moved:
            given = [p.detach().clone() for p in moved]
            half, output = self._forward(images[: (len(images) + 1) // 2])
            # Written to through .data, which no version counts, or read as something else than what they are.
            written = not all(map(torch.equal, moved, given))
        if given and (written or _gap(output.float(), F.linear(half.float(), *(v.float() for v in given))) > 0.02):
            raise ValueError(
                f"the head's {' and '.join(('weight', 'bias')[: len(given)])} must be free to move, got a model that "
                f"{'writes to' if written else 'changes'} them at each pass, as a hook that masks or normalizes does: "
                "influences are those of an unconstrained head; take that out on a copy of the model, and train its "
                "head on"
            )
        if (gap := _gap(half.float(), features[: len(half)].float())) > 0.02:
            raise ValueError(
                f"two passes over the same images gave features that differ by {gap:.1%} of their size: active "
                "dropout or other randomness, normalization over the batch, or a head whose weight is used before it "
                "too; features must depend on their image alone"
            )


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of `b`; NaNs count as equal, `collect` names them."""
    return float(
        (a - b).nan_to_num(0.0, 0.0, 0.0).abs().max() / b.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp_min(1e-30)
    )


def check_differentiable(tap: HeadTap, images: Tensor) -> None:
    """Refuse a model through which no gradient reaches its images.

    Args:
        tap: open, on the borrowed model.
        images: (B, C, H, W), some typical ones.

    Raises:
        ValueError: if the features that enter the head do not depend on the images by autograd.

    Warns:
        UserWarning: if the gradient is zero for all of the images.
    """
    with torch.enable_grad():
        images = images[:16].detach().clone().requires_grad_()
        features, _ = tap(images)
        gradient = None
        if features.requires_grad:  # as where the model is not frozen, whether or not they depend on the images
            weights = torch.linspace(-1, 1, features.shape[1], device=features.device, dtype=features.dtype)
            gradient = gradient_of((features * weights).sum(), images)
    if gradient is None:
        raise ValueError(
            "features must depend on the images by autograd, got none: the model's forward runs a part under "
            "torch.no_grad(), inference_mode() or detach(); let gradients pass there (requires_grad_(False) freezes "
            "weights as well)"
        )
    if not bool(gradient.any()):
        warnings.warn(
            "the gradient of the model's features with respect to its images is zero: nothing can be learned from it; "
            "check whether the model rounds, thresholds or detaches its images",
            stacklevel=4,
        )


def gradient_of(value: Tensor, inputs: Tensor) -> Tensor | None:
    """Return the gradient of a scalar with respect to `inputs`, None if it does not depend on them.

    Raises:
        ValueError: if a part of the model is checkpointed in the form that gives no such gradient.
        RuntimeError: whatever else autograd raises.
    """
    try:
        (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ValueError(
            "gradients must pass the model to its images alone, got torch.utils.checkpoint with use_reentrant=True, "
            "which refuses that; use use_reentrant=False"
        ) from error
    return gradient


class HeadBatch(NamedTuple):
    """What the head sees of a batch: features (B, D), logits (B, K) and labels (B,), class indices."""

    features: Tensor
    logits: Tensor
    labels: Tensor


@torch.no_grad()
def collect(
    tap: HeadTap,
    batches: Iterable[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None = None,
    *,
    count: int = 0,
    keep_logits: bool = True,
) -> HeadBatch:
    """Collect features, logits and labels of a data set, streamed through the model without grad.

    Args:
        tap: an open `HeadTap`, which also says on which device the model is.
        batches: pairs of images (B, ...) and class indices (B,), in the order that the result keeps.
        dtype: dtype of the stored features, by default as the model gives them; see `InfluenceConfig.cache_dtype`.
        count: how many samples will come, where that is known, so that memory is taken once. If more come, it doubles.
        keep_logits: False if the head will be another, as in `HeadProblem.from_batch`, which computes its own: logits
            are then (N, 0).

    Raises:
        ValueError: if there is no batch, if labels are not class indices of the head, or if features or logits are not
            finite, with the index of the first such sample.
    """
    columns = _Rows(count), _Rows(count), _Rows(count)
    start = 0
    for images, labels in batches:
        device = tap.head.weight.device
        with nullcontext() if start else model_errors_named(images):
            features, logits = tap(images.to(device))
        labels = labels.to(device)
        check_class_range(check_labels(labels, logits.shape[0]), logits.shape[1], start)
        batch = HeadBatch(features if dtype is None else features.to(dtype), logits, labels.long())
        check_finite(batch, start)
        for column, rows in zip(columns, batch if keep_logits else batch._replace(logits=logits[:, :0]), strict=True):
            column.append(rows)
        start += len(labels)
    if not start:
        raise ValueError("batches must hold at least one batch of (images, labels), got none; check the loader")
    return HeadBatch(*(column.tensor[:start] for column in columns))


class _Rows:
    """A tensor to which rows are appended, with room for `count` at first."""

    def __init__(self, count: int) -> None:
        self.count, self.used = count, 0
        self.tensor = torch.empty(0)

    def append(self, rows: Tensor) -> None:
        end = self.used + len(rows)
        if not self.used or end > len(self.tensor):
            more = rows.new_empty(max(end, 2 * self.used or self.count), *rows.shape[1:])
            if self.used:
                more[: self.used] = self.tensor[: self.used]
            self.tensor = more
        self.tensor[self.used : end] = rows
        self.used = end


def check_finite(batch: HeadBatch, start: int = 0) -> None:
    """Refuse features and logits that are not finite.

    Args:
        batch: what the head sees.
        start: index of the batch's first sample.

    Raises:
        ValueError: naming the first such sample.
    """
    for what, values in (("features", batch.features), ("logits", batch.logits)):
        wrong = (~values.isfinite().all(1)).nonzero()
        if len(wrong):
            raise ValueError(
                f"{what} must be finite; sample {start + int(wrong[0])} is the first of {len(wrong)} in its batch that "
                "are not: check its image, the model's weights, and float16 for overflow, which bfloat16 does not have"
            )
