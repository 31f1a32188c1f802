"""Weight files: ``model.safetensors`` and ``config.json``, written atomically, checked when read.

Nothing here builds a network or opens a connection: what is read are a configuration and tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from learned_aug.nets import AugmenterConfig

__all__ = [
    "CONFIG_NAME",
    "NAMES",
    "WEIGHTS_NAME",
    "WeightsError",
    "check",
    "encode",
    "parse",
    "read",
    "sha256",
    "write",
]

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
NAMES = (CONFIG_NAME, WEIGHTS_NAME)  # the small one first: what is wrong with it is found before the other is fetched
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


class WeightsError(Exception):
    """Weights that cannot be read, fetched or published: names the file, the problem and the remedy."""


def encode(config: AugmenterConfig, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The two files, by name: the same bytes for the same weights."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return {
        CONFIG_NAME: (json.dumps(config.to_dict(), indent=2) + "\n").encode(),
        WEIGHTS_NAME: safetensors.torch.save(tensors),
    }


def sha256(data: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write(folder: str | PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write `files` to `folder`, made if need be; each is replaced atomically.

    Raises:
        OSError: if the folder cannot be made or written; the files that were there stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomic(folder / name, data)


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


def read(folder: str | PathLike[str]) -> dict[str, bytes]:
    """The two files of a folder, by name.

    Raises:
        WeightsError: if one is missing or cannot be read.
    """
    files = {}
    for name in NAMES:
        path = Path(folder) / name
        if not path.is_file():
            pickled = sorted(p.name for p in path.parent.glob("*") if p.suffix in PICKLED)
            hint = f", only {pickled}, and pickled files are never loaded" if pickled else ""
            raise WeightsError(f"{folder} has no {name}{hint}; give a folder that save_pretrained wrote")
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error}); check its permissions and the disk") from error
    return files


def parse(files: Mapping[str, bytes], where: str | PathLike[str]) -> tuple[AugmenterConfig, dict[str, Tensor]]:
    """What the two files hold; `where` they come from is for the errors.

    Raises:
        WeightsError: if one is damaged.
    """
    path = Path(where) / CONFIG_NAME
    try:
        values = json.loads(files[CONFIG_NAME])
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
        config = AugmenterConfig.from_dict(values)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is no augmenter's configuration ({error}); write or fetch it again, or get a matching release"
        ) from error
    data = files[WEIGHTS_NAME]
    try:
        # From bytes: tensors of load_file alias the file, and change or crash when it is overwritten.
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        what, remedy = "no intact safetensors file", "write or fetch it again"
        if data.startswith(b"version https://git-lfs"):
            what, remedy = "a git-lfs pointer, not the weights", "run `git lfs pull`, or fetch it again"
        raise WeightsError(f"{Path(where) / WEIGHTS_NAME} is {what} ({error}); {remedy}") from error
    if len(state) < 2 * config.depth:  # checked before anything is built: a damaged config may ask for any number
        raise WeightsError(
            f"{path} asks for {config.depth} layers, but {WEIGHTS_NAME} holds only {len(state)} tensors; "
            "write or fetch both again"
        )
    return config, state


def check(state: dict[str, Tensor], expected: dict[str, Tensor], where: str | PathLike[str]) -> None:
    """Compare names, shapes and dtypes with those of a module's state, and refuse values that are not finite.

    Raises:
        WeightsError: on the first difference.
    """
    path = Path(where) / WEIGHTS_NAME
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
