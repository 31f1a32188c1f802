"""What a setting is, as a short text: the same in each process, and another one for another setting."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from enum import Enum
from functools import partial
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learned_aug.runtime.digest import digest

__all__ = ["described", "structure"]

PLAIN = bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device
# Known by name alone; the state of a source of chance moves on with each draw, and is no setting.
NAMED = type, ModuleType, torch.Generator, random.Random, np.random.Generator, np.random.RandomState
OWN = frozenset(vars(nn.Module()))  # what torch keeps of a module: its mode, hooks, and what state_dict gives
PACKAGES = "torch", "torchvision", "learned_aug"  # whose modules keep no setting in a private attribute


def described(value: Any) -> str:
    """Say what a setting is.

    Of a function the text is its name with a digest of its code and of the values that it holds, of a module its type
    with a digest of its attributes and weights, of another object its type with a digest of what pickling would keep.
    What a function reads by a global name is not seen.
    """
    return _Describer()(value)


def structure(module: nn.Module) -> str:
    """Return a digest of a module's parts with their settings and the shapes of their weights."""
    return _Describer().parts(module)


class _Describer:
    """Describes objects, each once: within itself an object is its name."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, str]] = {}  # with the object itself, so that its id stays its own

    def __call__(self, value: Any) -> str:
        if value is None or isinstance(value, PLAIN):
            return " ".join(str(value).split())
        if isinstance(value, np.generic):
            return self(value.item())
        if isinstance(value, Tensor):
            return f"Tensor {digest(value)}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"ndarray {_sha(str(value.dtype), str(value.shape), value.tobytes().hex())}"
        if id(value) not in self.known:
            self.known[id(value)] = value, _name(value)
            self.known[id(value)] = value, self.described(value)
        return self.known[id(value)][1]

    def all(self, *values: Any) -> list[str]:
        """Describe each of several."""
        return [self(value) for value in values]

    def described(self, value: Any) -> str:
        """Describe an object that consists of others."""
        if isinstance(value, (tuple, list, np.ndarray)):
            return f"[{', '.join(self.all(*value))}]"
        if isinstance(value, (set, frozenset)):
            return f"[{', '.join(sorted(self.all(*value)))}]"
        if isinstance(value, Mapping):
            pairs = zip(self.all(*value), self.all(*value.values()), strict=True)
            return f"{{{', '.join(map(': '.join, pairs))}}}"
        if isinstance(value, nn.Module):
            weights = [t for t in value.state_dict().values() if isinstance(t, Tensor)]
            return f"{_name(value)} {self.parts(value)} {digest(*weights)}"
        if isinstance(value, partial):
            return f"{self(value.func)} of {', '.join(self.all(value.args, value.keywords))}"
        if isinstance(value, (MethodType, BuiltinMethodType)):
            return f"{_name(value)} of {self(value.__self__)}"
        if isinstance(value, FunctionType):
            held = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
            return f"{_name(value)} {_sha(*self.all(value.__code__, value.__defaults__, value.__kwdefaults__, held))}"
        if isinstance(value, CodeType):
            return _sha(value.co_code.hex(), *value.co_names, *self.all(*value.co_consts))
        state = None if isinstance(value, NAMED) else _state(value)
        return f"{_name(value)} {_sha(self(state))}" if state else _name(value)

    def parts(self, module: nn.Module) -> str:
        """Return a digest of a module's parts."""
        texts = []
        for name, part in module.named_modules():
            public = type(part).__module__.split(".")[0] in PACKAGES
            settings = {k: v for k, v in vars(part).items() if k not in OWN and not (public and k.startswith("_"))}
            weights = {**part._parameters, **part._buffers}
            shapes = [f"{key} {None if t is None else tuple(t.shape)}" for key, t in weights.items()]
            texts += [name, _name(type(part)), self(settings), *shapes]
        return _sha(*texts)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _state(value: Any) -> Any:
    """Return what pickling would keep of an object; None of what it cannot."""
    try:
        get = getattr(value, "__getstate__", None)  # which object has from Python 3.11 on
        return getattr(value, "__dict__", None) if get is None else get()
    except Exception:  # whatever the object's own code raises
        return None


def _sha(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:6]


def _is_set(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a name that is bound later
        return False
