"""The head of a classifier: which layer it is, and whether it may move freely, as influences assume."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["find_head", "first_tensor", "placement", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where a model computes, and in what: device of its first parameter, dtype of its first floating one.

    A model without parameters, as a quantized one, computes on the CPU in float32.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return device, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def first_tensor(output: Any) -> Tensor:
    """Return a model's logits: its output, the field `logits` of it, or its first tensor.

    Raises:
        TypeError: if there is none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(
        f"the model must return logits, or hold them as .logits or first, got {type(output).__name__}; wrap it in a "
        "module that returns the logits alone"
    )


def find_head(model: nn.Module, name: str | None = None) -> nn.Linear:
    """Find the Linear whose output is the model's logits.

    Args:
        model: a classifier; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through.
        name: the head's module path, such as `"fc"` or `"classifier.1"`. Default: the last registered nn.Linear, which
            `HeadTap` then verifies to be the one that runs last.

    Raises:
        ValueError: if `name` is not an nn.Linear of the model, if the model has no nn.Linear, or if the weight of the
            head is quantized or tied to a constraint.
    """
    inner = unwrap(model)
    linears = {path: module for path, module in inner.named_modules() if isinstance(module, nn.Linear)}
    if name is not None:
        if name in linears:
            return _free(linears[name], inner)
        kind = next((type(m).__name__ for path, m in inner.named_modules() if path == name), "nothing")
        raise ValueError(
            f"head={name!r} must name an nn.Linear of the model, got {kind}; "
            f"its Linear layers are {list(linears) or 'none'}"
        )
    if not linears:
        kinds = sorted({type(m).__name__ for m in inner.modules() if not any(m.children())})
        raise ValueError(
            f"expected a classifier that ends in nn.Linear, found only {', '.join(kinds)}; replace a 1x1-convolution "
            "head by pooling and an nn.Linear of its weights, and fit a quantized model before it is quantized"
        )
    return _free(list(linears.values())[-1], inner)


def _free(head: nn.Linear, model: nn.Module) -> nn.Linear:
    """Return the head, if its weight and bias may take any value, each for itself.

    Raises:
        ValueError: if one of them is tied to a constraint, masked, shared, rebuilt by a hook, or quantized.
    """
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(head, name):
            # Asked first, and without a look at the weight: spectral norm changes its state at each.
            kinds = [type(p).__name__.lstrip("_") for p in head.parametrizations[name]]  # type: ignore[index]
            if kinds == ["WeightNorm"]:  # which can give any weight
                continue
            raise ValueError(
                f"the head's {name} must be free to move, got one parametrized by {', '.join(kinds)}: influences are "
                "those of an unconstrained head; use torch.nn.utils.parametrize.remove_parametrizations on a copy of "
                "the model, and train its head on"
            )
        if name not in head._parameters and getattr(head, name) is not None and not _weight_normed(head, name):
            pruned = f"{name}_mask" in dict(head.named_buffers(recurse=False))
            remedy = "prune.remove" if pruned else "the function that undoes that hook"
            raise ValueError(
                f"the head's {name} must be free to move, got one that a hook "
                f"{'prunes' if pruned else 'rebuilds'} at each pass: influences are those of an unconstrained head; "
                f"use {remedy} on a copy of the model, and train its head on"
            )
        parameter = head._parameters.get(name)
        if parameter is None:
            continue
        if _share_memory([own for own in head._parameters.values() if own is not None]):
            raise ValueError(
                "the head's weight and bias must be free to move, got values that share their memory, as expand() "
                "leaves them: influences are those of an unconstrained head; give the head copies, and train it on"
            )
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        others = [
            path
            for path, other in tensors
            if _overlap(parameter, other) and not any(other is own for own in head.parameters())
        ]
        owners = [path for path, m in model.named_modules(remove_duplicate=False) if m is head]
        shared = [path for path, other in tensors if other is parameter]
        if others or len(shared) > len(owners):
            places = ", ".join(sorted({*others, *shared}))
            raise ValueError(
                f"the head's {name} must be its own, got one that is shared ({places}): influences are those of a head "
                "that moves alone; give the head a copy of it, and train it on"
            )
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"the head's {name} must be free to move, got one with a gradient hook, which may mask it; remove the "
                "hook from a copy of the model, and train its head on"
            )
    if not head.weight.is_floating_point():
        raise ValueError(
            f"the head's weight must be floating, got {head.weight.dtype}; fit the model before it is quantized"
        )
    if head.bias is not None and head.bias.requires_grad != head.weight.requires_grad:
        raise ValueError(
            "the head's weight and bias must both be trained or both be frozen, got one of each: influences move both; "
            "set requires_grad equally for both, and train the head on"
        )
    return head


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two parameters are one, or views of the same memory."""
    if one is other:
        return True
    (start, end), (first, last) = ((t.data_ptr(), t.data_ptr() + t.numel() * t.itemsize) for t in (one, other))
    return start < last and first < end and one.device == other.device and start != 0


def _share_memory(parameters: list[nn.Parameter]) -> bool:
    """Whether two values of parameters stand at the same place in memory."""
    if all(p.is_contiguous() for p in parameters):
        return any(_overlap(one, other) for one, other in itertools.combinations(parameters, 2))
    places = []
    for p in parameters:
        steps = (torch.arange(n, device="cpu") * step for n, step in zip(p.shape, p.stride(), strict=True))
        offsets = sum(torch.meshgrid(*steps, indexing="ij"), torch.tensor(0, device="cpu"))
        places.append((p.data_ptr() + p.itemsize * offsets).flatten())
    return len(torch.cat(places).unique()) < sum(p.numel() for p in parameters)


def _weight_normed(head: nn.Linear, name: str) -> bool:
    """Whether torch.nn.utils.weight_norm rebuilds it, which can give any weight."""
    return f"{name}_g" in head._parameters and f"{name}_v" in head._parameters
