"""What settings and data are, as short texts: the same in each process, and another one for another setting."""

from __future__ import annotations

import copyreg
import hashlib
import random
from enum import Enum
from functools import partial
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from learned_aug.runtime.data import Data, as_pair, labels_of, spread
from learned_aug.runtime.digest import digest, digest_of
from learned_aug.runtime.rng import forked

__all__ = ["described", "fingerprint", "structure"]

PLAIN = bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device
# Known by name alone; the state of a source of chance moves on with each draw, and is no setting.
NAMED = type, ModuleType, torch.Generator, random.Random, np.random.Generator, np.random.RandomState
OWN = frozenset(vars(nn.Module()))  # what torch keeps of a module: its mode, hooks, and what state_dict gives
# Whose modules keep in private attributes what they saw last, and no setting.
PACKAGES = "torch", "torchvision", "timm", "kornia", "learned_aug"
DEEPEST = 50  # objects within objects, beyond which their names must do


def described(value: Any) -> str:
    """Say what a setting is.

    Of a function the text is its name with a digest of its code and of the values that it holds, of a module its type
    with a digest of its attributes and weights, of data a few samples, and of another object its type with a digest of
    what pickling would keep. What a function reads by a global name is not seen.
    """
    return _Describer()(value)


def structure(module: nn.Module) -> str:
    """Return a digest of a module's parts with their settings, and of which weights there are and train."""
    return _Describer().parts(module)


def fingerprint(data: Data) -> str:
    """Say in a few words what data are: how many, and a digest of all labels that can be had alone, and some images."""
    if isinstance(data, DataLoader):
        return f"{type(data).__name__} of {fingerprint(data.dataset)}, {data.batch_size} a batch"
    if isinstance(data, IterableDataset):  # which may know how many it gives, but gives none by its index
        return type(data).__name__
    count = len(data)  # type: ignore[arg-type]
    labels = labels_of(data)
    seen = [] if labels is None else [labels]
    with forked() as reseed:
        for k in spread(count):
            reseed(0, "fingerprint", k)
            image, label = as_pair(data[k], "data")
            seen += [_tensor(image), _tensor(label)]
    return f"{count:,} samples {digest(*seen)}"


class _Describer:
    """Describes objects, each once; within itself an object is its name."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, str]] = {}  # with the object itself, so that its id stays its own
        self.depth = 0

    def __call__(self, value: Any) -> str:
        if value is None or isinstance(value, PLAIN):
            return " ".join(str(value).split())
        if id(value) not in self.known:
            self.known[id(value)] = value, _name(value)
            self.depth += 1
            try:
                text = self._text(value) if self.depth < DEEPEST else _name(value)
            except Exception:  # whatever the object's own code raises
                text = _name(value)
            finally:
                self.depth -= 1
            self.known[id(value)] = value, text
        return self.known[id(value)][1]

    def _each(self, *values: Any) -> list[str]:
        return [self(value) for value in values]

    def _text(self, value: Any) -> str:
        """Describe what is more than a plain value."""
        if isinstance(value, np.generic):
            return self(value.item())
        if isinstance(value, Tensor):
            return f"Tensor {digest(value)}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
            return f"ndarray {_sha(str(value.dtype), str(value.shape), content.hexdigest())}"
        if type(value) in (tuple, list) or isinstance(value, np.ndarray):
            return f"[{', '.join(self._each(*value))}]"
        if isinstance(value, (set, frozenset)):
            return f"[{', '.join(sorted(self._each(*value)))}]"
        if type(value) is dict:
            pairs = zip(self._each(*value), self._each(*value.values()), strict=True)
            return f"{{{', '.join(map(': '.join, pairs))}}}"
        if isinstance(value, nn.Module):
            return f"{_name(value)} {self.parts(value)} {digest_of(value)}"
        if isinstance(value, (Dataset, DataLoader)):
            return fingerprint(value)
        if isinstance(value, partial):
            return f"{self(value.func)} of {', '.join(self._each(value.args, value.keywords))}"
        if isinstance(value, FunctionType):
            held = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
            return f"{_name(value)} {_sha(*self._each(value.__code__, value.__defaults__, value.__kwdefaults__, held))}"
        if isinstance(value, CodeType):
            return _sha(value.co_code.hex(), *value.co_names, *self._each(*value.co_consts))
        if hasattr(value, "__self__") and not isinstance(value.__self__, ModuleType):  # a method
            return f"{_name(value)} of {self(value.__self__)}"
        return _name(value) if isinstance(value, NAMED) else f"{_name(value)} {_sha(*self._kept(value))}"

    def _kept(self, value: Any) -> list[str]:
        """Describe what pickling would keep of an object."""
        reduce = copyreg.dispatch_table.get(type(value))
        kept = value.__reduce_ex__(2) if reduce is None else reduce(value)
        if isinstance(kept, str):  # the name of a global
            return [kept]
        make, arguments, state, items, pairs = (*kept, *[None] * (5 - len(kept)))[:5]
        return self._each(_name(make), arguments, state, list(items or ()), list(pairs or ()))

    def parts(self, module: nn.Module) -> str:
        """Return a digest of a module's parts."""
        texts = []
        for name, part in module.named_modules():
            public = type(part).__module__.split(".")[0] in PACKAGES
            settings = {k: v for k, v in vars(part).items() if k not in OWN and not (public and k.startswith("_"))}
            weights = {**part._parameters, **part._buffers}
            shapes = [f"{k} {None if t is None else (tuple(t.shape), t.requires_grad)}" for k, t in weights.items()]
            texts += [name, _name(type(part)), self(settings), *shapes]
        return _sha(*texts)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _sha(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:6]


def _is_set(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # of a name that is bound later
        return False


def _tensor(value: Any) -> Tensor:
    """Return what a sample holds as a tensor; trainings say what is wrong with what is none."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0)
