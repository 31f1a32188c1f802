"""Classifiers by name, and the checkpoints that trainers write of them."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from learned_aug.digits import all_conv
from learned_aug.influence.layer import first_tensor

__all__ = ["build_model", "check_model", "load_checkpoint"]

# Inserted into the names of parameters by torch's wrappers.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Of a trainer's averaged copies, which are read only where there is nothing else.
AVERAGED = ("ema", "averaged", "swa", "teacher")
# Classifiers of torchvision that are trained with further heads, which do nothing in eval mode.
AUXILIARY = {"GoogLeNet": ("aux1.", "aux2."), "Inception3": ("AuxLogits.",)}
DEPTH = 3  # of dictionaries in a checkpoint


def build_model(name: str, classes: int, channels: int = 3) -> nn.Module:
    """Build a fresh classifier of torchvision, such as "resnet18", of timm, as "timm:resnet18", or the demo's "cnn4".

    Those of torchvision with auxiliary heads, googlenet and inception_v3, are built without them.

    Args:
        name: name of the classifier.
        classes: number of its outputs.
        channels: channels of the images; other than 3, the first convolution is made anew for them.

    Raises:
        ValueError: if there is no such classifier.
        ImportError: for one of timm where that is not installed.
    """
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"{name} needs timm; install it with pip install timm") from error
        try:
            model: nn.Module = timm.create_model(name.removeprefix("timm:"), num_classes=classes, in_chans=channels)
        except RuntimeError as error:
            raise ValueError(f"timm has no classifier {name!r} ({error}); see timm.list_models()") from error
        return model
    if name == "cnn4":
        return all_conv(channels=channels, classes=classes)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(
            f"torchvision has no classifier {name!r}; it has {', '.join(known)}; timm's are timm:NAME, "
            "and cnn4 is a small one for 28 or 32 px"
        )
    # init_weights: torch's own first weights, which take no minute to draw.
    plain = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, num_classes=classes, **plain)
    if channels != 3:
        conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        conv.in_channels = channels
        conv.weight = nn.Parameter(conv.weight.new_empty(conv.out_channels, channels, *conv.kernel_size))
        conv.reset_parameters()
    return model


def check_model(model: nn.Module, name: str, *, classes: int, channels: int, size: int) -> None:
    """Run a classifier on two blank images, to learn before the work whether it takes them.

    Raises:
        ValueError: if it does not, or gives something else than a logit for each class.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            shape = tuple(first_tensor(model(torch.zeros(2, channels, size, size, device=device))).shape)
    except Exception as error:  # of many types, by the model
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} does not take images of {channels} x {size} x {size} ({text}); change --size or --gray"
        ) from error
    finally:
        model.train(training)
    if shape != (2, classes):
        raise ValueError(f"{name} must give logits (2, {classes}) for two images, got {shape}; give another --model")


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load the weights of this very architecture from what a trainer wrote by torch.save or safetensors.

    The state_dict may lie in dictionaries, beside an optimizer's and the trainer's arguments, and its names may have a
    prefix, as those of Lightning, DataParallel and torch.compile have; the one whose names are the model's is taken,
    averaged copies last. Pickled code is never run: beside tensors and plain values, only an allow-list of inert types
    is read.

    Args:
        model: the classifier, changed in place.
        path: file with the weights.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read.
        ValueError: if it holds no state_dict of the model, with what it holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give the file that holds the classifier's state_dict")
    read = _read(path)
    states = dict(_states(read))
    expected = model.state_dict()
    if not states:
        raise ValueError(
            f"{path} holds {_kind(read)}, no state_dict; save one with torch.save(model.state_dict(), ...)"
        )
    spare = AUXILIARY.get(type(model).__name__, ())
    found: dict[str, dict[str, Tensor]] = {}
    for where, state in states.items():
        clean = {k: v for k, v in _unwrapped(state).items() if not k.startswith(spare)} if spare else _unwrapped(state)
        found |= {f"{where}[{prefix!r}...]" if prefix else where: part for prefix, part in _parts(clean, expected)}
    plain = {where: part for where, part in found.items() if not any(word in where.lower() for word in AVERAGED)}
    chosen = plain or found
    if len(chosen) > 1:
        first, *others = chosen.values()
        if any(not _equal(first, other) for other in others):
            raise ValueError(
                f"{path} holds {len(chosen)} states of such a model, {', '.join(sorted(chosen))}; save one alone"
            )
    if not chosen:
        _explain(path, read, states, expected)
    state = next(iter(chosen.values()))
    if bad := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(f"{path} holds NaN or infinity in {bad[0]}; its training diverged, give an earlier one")
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    """Return what a file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, or holds types that are not on the allow-list.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
        with torch.serialization.safe_globals(_inert()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many types, by the damage
        unknown = _unknown_types(path)
        text = " ".join(str(error).split("WeightsUnpickler error:")[-1].split())[:120]
        what = f"it holds {', '.join(unknown)}, which could run code" if unknown else text or "it is empty"
        raise ValueError(
            f"{path} holds no plain state_dict ({what}); save one with torch.save(model.state_dict(), ...)"
        ) from error


def _inert() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """List what trainers put beside the weights and what cannot run code when it is read."""
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.empty(0).__reduce__()[0]
    known: list[Any] = [
        argparse.Namespace,
        types.SimpleNamespace,
        (_plain_dict, "collections.defaultdict"),
        dict,
        list,
        datetime.date,
        datetime.datetime,
        datetime.timedelta,
        datetime.timezone,
        np.dtype,
        np.ndarray,
        *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"},
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    for module in ("pathlib", "pathlib._local"):
        # Paths of the machine that wrote the checkpoint, as those that any machine knows.
        for kind, pure in (("Posix", pathlib.PurePosixPath), ("Windows", pathlib.PureWindowsPath)):
            known += [(pure, f"{module}.{kind}Path"), (pure, f"{module}.Pure{kind}Path")]
    return known


def _plain_dict(*factory: object) -> dict[object, object]:
    """Stand for defaultdict, of which torch reads no items."""
    return {}


def _unknown_types(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(_inert()):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)[:3]
    except Exception:  # no checkpoint of torch's newer format
        return []


def _states(node: Any, where: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the dictionaries of named tensors in a checkpoint, with the keys that lead to them."""
    if not isinstance(node, Mapping):
        return
    if tensors := {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}:
        yield where or "itself", tensors
    if depth:
        for key, value in node.items():
            yield from _states(value, f"{where}.{key}" if where else str(key), depth - 1)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        state = {name.replace(wrapper, ""): tensor for name, tensor in state.items()}
    return state


def _parts(state: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the parts of a state that have exactly the model's names and forms, with the prefix of their names."""
    first = next(iter(expected))
    for prefix in [name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")]:
        part = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        if part.keys() == expected.keys() and all(_fits(v, expected[name]) for name, v in part.items()):
            yield prefix, part


def _fits(one: Tensor, other: Tensor) -> bool:
    """Whether shapes are equal, and both or none floating: the integers of a quantized model are no weights."""
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def _explain(path: Path, read: Any, states: dict[str, dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    """Say how the state that resembles the model's most differs from it.

    Raises:
        ValueError: always, but for a bug.
        AssertionError: if there is no difference.
    """

    def shared(state: dict[str, Tensor]) -> int:
        return len(state.keys() & expected.keys())

    def form(tensor: Tensor) -> str:
        return f"{'' if tensor.is_floating_point() else f'{tensor.dtype} '}{tuple(tensor.shape)}"

    candidates = {}
    for where, state in states.items():
        clean = _unwrapped(state)
        prefixes = {"", *(f"{'.'.join(name.split('.')[:k])}." for name in clean for k in (1, 2))}
        for prefix in prefixes:
            part = {k.removeprefix(prefix): v for k, v in clean.items() if k.startswith(prefix)}
            candidates[where, prefix] = part
    (where, _), state = max(candidates.items(), key=lambda item: (shared(item[1]), len(item[1])))
    place = "it" if where == "itself" else f"its {where!r}"
    keys = "" if where == "itself" and shared(state) else f" ({_kind(read)})"
    shapes = [
        f"{name} {form(state[name])}, not {form(expected[name])}"
        for name in sorted(state.keys() & expected.keys())
        if not _fits(state[name], expected[name])
    ]
    for what, names in (
        ("lacks", sorted(expected.keys() - state.keys())),
        ("has unknown", sorted(state.keys() - expected.keys())),
        ("has", shapes),
    ):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            raise ValueError(
                f"{path} does not fit{keys}: {place} {what} {', '.join(names[:2])}{more}; check the model's name, its "
                "number of classes (the folders) and of channels"
            )
    raise AssertionError("the state must differ from the model's, got one that fits; please report this as a bug")


def _kind(read: Any) -> str:
    if isinstance(read, Mapping):
        keys = list(map(str, read))
        return f"a dict of {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}" if keys else "an empty dict"
    return f"a {type(read).__name__}"
