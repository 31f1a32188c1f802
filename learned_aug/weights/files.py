"""Write weight files (``model.safetensors`` and ``config.json``) atomically, and check them when they are read.

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

import safetensors.torch
import torch
from torch import Tensor

from learned_aug.config import AugmenterConfig

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
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of stored tensors; all are read as float32
SEAL = "sha256 of the values"  # in the metadata of the file
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


class WeightsError(Exception):
    """Says why weights cannot be read, saved, fetched or published, and what to do about it."""


def encode(config: AugmenterConfig, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Turn a configuration and a module's state into the two files; the same weights give the same bytes.

    Args:
        config: configuration that the module was built from.
        state: tensors by name, in any of float32, float16, bfloat16 and float64; each is stored in its own dtype.

    Returns:
        Contents by file name.

    Raises:
        WeightsError: if a tensor has another dtype, or holds NaN or infinity, as :func:`parse` would refuse it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise WeightsError(
                f"{name} is {tensor.dtype}, and weights are stored in {_names(DTYPES)}; save them .float()"
            )
        if not tensor.float().isfinite().all():
            raise WeightsError(f"{name} holds NaN or infinity (in float32); the fit diverged, fit again and save that")
    return {
        CONFIG_NAME: (json.dumps(config.to_dict(), indent=2) + "\n").encode(),
        WEIGHTS_NAME: safetensors.torch.save(tensors, {SEAL: digest(tensors)}),
    }


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, dtypes and shapes, 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _check_seal(data: bytes, state: Mapping[str, Tensor], path: Path) -> None:
    """Compare the values of a file with what was written, where it says so: a flipped bit is a number like any other.

    Raises:
        WeightsError: if they differ.
    """
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") or {}
    if metadata.get(SEAL, (got := digest(state))) != got:
        raise WeightsError(
            f"{path} is not as it was written, its values have SHA-256 {got}; write or fetch it again (after a change "
            "on purpose, save it without metadata)"
        )


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write(folder: str | PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write files to a folder, which is made if it does not exist; each file is replaced atomically.

    A process that dies meanwhile leaves what was there, or no configuration: never one of other weights.

    Args:
        folder: path of the folder.
        files: contents by file name.

    Raises:
        OSError: if the folder cannot be made or written; the files that were there stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staged: dict[Path, str] = {}
    try:
        for name, data in files.items():
            staged[folder / name] = _staged(folder / name, data)
        if CONFIG_NAME in files and WEIGHTS_NAME in files:
            (folder / CONFIG_NAME).unlink(missing_ok=True)
        for path in sorted(staged, key=lambda path: path.name == CONFIG_NAME):
            os.replace(staged[path], path)
            del staged[path]
    finally:
        for name in staged.values():
            os.unlink(name)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content, or leave the file as it was.

    A temporary file beside it is written, flushed to the disk, and renamed.

    Raises:
        OSError: if the file cannot be written.
    """
    name = _staged(path, data)
    try:
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _staged(path: Path, data: bytes) -> str:
    """Write a temporary file beside `path`, with the permissions of a new one, and return its name."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
    except BaseException:
        os.unlink(name)
        raise
    return name


def read(folder: str | PathLike[str]) -> dict[str, bytes]:
    """Read the two files of a folder.

    Args:
        folder: path of a folder that save_pretrained wrote.

    Returns:
        Contents by file name.

    Raises:
        WeightsError: if a file is missing or cannot be read.
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
    """Decode the two files into a configuration and tensors.

    Args:
        files: contents by file name.
        where: folder or address that errors name.

    Returns:
        The configuration, and the tensors by name; stored floats of any precision come as float32, whatever
        :func:`torch.get_default_dtype` says.

    Raises:
        WeightsError: if a file is damaged.
    """
    path = Path(where) / CONFIG_NAME
    try:
        config = _config(files[CONFIG_NAME])
    except (ValueError, RecursionError, OverflowError) as error:
        raise WeightsError(
            f"{path} is no augmenter's configuration ({error}); write or fetch it again, or get a matching release"
        ) from error
    data = files[WEIGHTS_NAME]
    try:
        # From bytes: tensors of load_file alias the file, and change or crash when it is overwritten.
        state = safetensors.torch.load(data)
    except Exception as error:  # of many types, by the damage
        what, remedy = "no intact safetensors file", "write or fetch it again"
        if data.startswith(b"version https://git-lfs"):
            what, remedy = "a git-lfs pointer, not the weights", "run `git lfs pull`, or fetch it again"
        raise WeightsError(f"{Path(where) / WEIGHTS_NAME} is {what} ({error}); {remedy}") from error
    _check_seal(data, state, Path(where) / WEIGHTS_NAME)
    if len(state) < 2 * config.depth:  # checked before anything is built: a damaged config may ask for any number
        raise WeightsError(
            f"{path} asks for {config.depth} layers, but {WEIGHTS_NAME} holds only {len(state)} tensors; "
            "write or fetch both again"
        )
    return config, {name: tensor.float() if tensor.dtype in DTYPES else tensor for name, tensor in state.items()}


def check(state: dict[str, Tensor], expected: dict[str, Tensor], where: str | PathLike[str]) -> None:
    """Compare tensors as :func:`parse` gives them with the state of a module that is built from the configuration.

    Args:
        state: tensors by name.
        expected: state of the module, possibly on the meta device; only names and shapes count.
        where: folder or address that errors name.

    Raises:
        WeightsError: on the first name or shape that differs, tensor that is no float, or value that is not finite.
    """
    path = Path(where) / WEIGHTS_NAME
    remedy = "the file does not belong to the config beside it: write or fetch the folder again"
    if missing := sorted(expected.keys() - state.keys()):
        raise WeightsError(f"{path} lacks {missing}; {remedy}")
    if extra := sorted(state.keys() - expected.keys()):
        raise WeightsError(f"{path} has unexpected {extra}; {remedy}")
    for name, tensor in state.items():
        shape = expected[name].shape
        if tensor.shape != shape:
            raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)}, expected {tuple(shape)}; {remedy}")
        if tensor.dtype != torch.float32:
            raise WeightsError(f"{path}: {name} is {tensor.dtype}, expected {_names(DTYPES)}; {remedy}")
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity; the fit that wrote it diverged, fit again")


def _config(data: bytes) -> AugmenterConfig:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {type(values).__name__}")
    config = AugmenterConfig.from_dict(values)
    if missing := sorted(config.to_dict().keys() - values.keys()):  # a default of this release is not what was meant
        raise ValueError(f"it must have every field, got none called {', '.join(missing)}")
    return config


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
