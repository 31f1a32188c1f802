"""Weights folders: ``model.safetensors`` and ``config.json``, written atomically, checked when read.

Nothing here builds a network: what is read are a configuration and tensors.
"""

from __future__ import annotations

import json
import os
import tempfile
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from learned_aug.nets import AugmenterConfig

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "WeightsError", "check", "load", "save"]

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


class WeightsError(Exception):
    """A weights folder that cannot be used: names the file, the problem and the remedy."""


def save(folder: str | PathLike[str], config: AugmenterConfig, state: dict[str, Tensor]) -> None:
    """Write `state` and `config` to `folder`, made if need be; each file is replaced atomically.

    Raises:
        OSError: if the folder cannot be made or written; the files that were there stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(folder / WEIGHTS_NAME, safetensors.torch.save(tensors))
    write_atomic(folder / CONFIG_NAME, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was: temporary file beside it, flushed to disk, renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load(folder: str | PathLike[str]) -> tuple[AugmenterConfig, dict[str, Tensor]]:
    """Read a weights folder.

    Raises:
        WeightsError: if a file is missing or damaged.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder} has no {name}; give a folder that save_pretrained wrote")
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
        config = AugmenterConfig.from_dict(values)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; write the folder again, or get a matching release") from error
    path = folder / WEIGHTS_NAME
    try:
        # From bytes: tensors of load_file alias the file, and change or crash when it is overwritten.
        state = safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is no intact safetensors file ({error}); write or fetch it again") from error
    return config, state


def check(state: dict[str, Tensor], expected: dict[str, Tensor], folder: str | PathLike[str]) -> None:
    """Compare names, shapes and dtypes with those of a module's state, and refuse values that are not finite.

    Raises:
        WeightsError: on the first difference.
    """
    path = Path(folder) / WEIGHTS_NAME
    remedy = "the file does not belong to the config beside it: write or fetch the folder again"
    if missing := sorted(expected.keys() - state.keys()):
        raise WeightsError(f"{path} lacks {missing}; {remedy}")
    if extra := sorted(state.keys() - expected.keys()):
        raise WeightsError(f"{path} has unexpected {extra}; {remedy}")
    for name, tensor in state.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise WeightsError(
                f"{path}: {name} is {tuple(tensor.shape)} {tensor.dtype}, expected {tuple(want.shape)} {want.dtype}; "
                + remedy
            )
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity; the fit that wrote it diverged, fit again")
