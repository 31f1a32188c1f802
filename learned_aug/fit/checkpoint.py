"""Checkpoints: a tree of tensors and plain values in one file, replaced atomically, of which the last two are kept.

A file is three lines (what it is, the SHA-256 of the rest, the tree as JSON) and the tensors as safetensors: nothing in
it is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from learned_aug.influence.solvers import Solver
from learned_aug.runtime.data import Data, apply_baseline, labels_of
from learned_aug.runtime.digest import digest, digest_of
from learned_aug.runtime.lock import FolderInUseError, FolderLock, lock_folder, locked_here
from learned_aug.runtime.rng import forked
from learned_aug.runtime.stream import glance
from learned_aug.weights.files import write_atomic

__all__ = ["Checkpoint", "CheckpointError", "fingerprint"]

MAGIC = b"learned-aug checkpoint 1"
NAMES = ("fit-0.ckpt", "fit-1.ckpt")
TENSOR = "__tensor__"


class CheckpointError(Exception):
    """A checkpoint that cannot be used: names the folder, the problem and the remedy."""


class Checkpoint:
    """The two last states of a run, in a folder of its own, which it keeps for its process from the first reading on.

    Args:
        folder: made if need be.
        fingerprint: name to value of all that a state depends on; a state of another is refused.

    Raises:
        OSError: if the folder cannot be made.
    """

    def __init__(self, folder: str | PathLike[str], fingerprint: dict[str, str]) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self._generation = 0
        self._lock: FolderLock | None = None
        self._owns_lock = False

    def close(self) -> None:
        """Give the folder back to other processes, if it was not kept before."""
        if self._lock is not None and self._owns_lock:
            self._lock.close()

    def read(self) -> dict[str, Any] | None:
        """Return the latest state that is whole, None if there is none.

        Raises:
            CheckpointError: if it is of another run, with all differences; if there are files, but none is whole; or
                if another process works in the folder.

        Warns:
            UserWarning: if a file is torn, and the one before it is used.
        """
        self._keep()
        states, torn = [], []
        for path in (self.folder / name for name in NAMES):
            if path.exists():
                try:
                    states.append(decode(path.read_bytes()))
                except ValueError as error:
                    torn.append(f"{path.name}: {error}")
        # Left by a process that was killed while it wrote.
        for path in (path for name in NAMES for path in self.folder.glob(f".{name}.*")):
            path.unlink(missing_ok=True)
        if torn and not states:
            raise CheckpointError(
                f"{self.folder} must hold at least one whole checkpoint, got {'; '.join(torn)}; delete the folder to "
                "start again"
            )
        if not states:
            return None
        if torn:
            warnings.warn(f"{self.folder}: {torn[0]}; the checkpoint before it is used", stacklevel=2)
        latest = max(states, key=lambda state: state["generation"])
        self._compare(latest["fingerprint"])
        self._generation = latest["generation"]
        state: dict[str, Any] = latest["state"]
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Save `state`, dicts with string keys, lists, tensors and plain values, in place of the one before the last.

        Raises:
            OSError: if it cannot be written, as on a full disk; the last one stays.
        """
        generation = self._generation + 1
        data = encode({"generation": generation, "fingerprint": self.fingerprint, "state": state})
        path = self.folder / NAMES[generation % 2]
        try:
            write_atomic(path, data)
        except OSError as error:
            raise OSError(
                error.errno,
                f"a checkpoint of {len(data) / 1e6:.1f} MB could not be written ({error.strerror}); the last one is "
                "intact: free space, or fix the folder's permissions, and call again to resume",
                str(path),
            ) from error
        self._generation = generation

    def _keep(self) -> None:
        """Keep the folder for this process, where it can be written.

        Raises:
            CheckpointError: if another process works in it.
            OSError: if the lock cannot be made for another reason than permissions.
        """
        if self._lock is not None and not self._lock.closed:
            return
        owns = not locked_here(self.folder)
        try:
            self._lock, self._owns_lock = lock_folder(self.folder), owns
        except FolderInUseError as error:
            raise CheckpointError(f"the checkpoint folder {error}; wait for it, or give another folder") from error
        except OSError as error:
            # A finished fit may be read back from where nothing can be written; write() says so itself.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    def _compare(self, saved: dict[str, str]) -> None:
        now = self.fingerprint
        names = [name for name in [*now, *(saved.keys() - now.keys())] if saved.get(name) != now.get(name)]
        if names:
            nothing = "nothing"
            changes = "; ".join(f"{n} was {saved.get(n, nothing)}, is {now.get(n, nothing)}" for n in names)
            raise CheckpointError(
                f"the checkpoint in {self.folder} is of another fit: {changes}. Call with what it was to resume it; to "
                "start a new fit, give another checkpoint_dir or delete this one"
            )


def encode(tree: dict[str, Any]) -> bytes:
    """Return the bytes of a file that holds a tree of tensors and plain values."""
    tensors: dict[str, Tensor] = {}

    def plain(node: Any) -> Any:
        if isinstance(node, Tensor):
            name = str(len(tensors))
            tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {TENSOR: name}
        if isinstance(node, dict):
            return {key: plain(value) for key, value in node.items()}
        return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node

    body = json.dumps(plain(tree)).encode() + b"\n" + safetensors.torch.save(tensors)
    return b"\n".join([MAGIC, hashlib.sha256(body).hexdigest().encode(), body])


def decode(data: bytes) -> dict[str, Any]:
    """Read what :func:`encode` wrote; tuples come back as lists.

    Raises:
        ValueError: if it is another kind of file, or not as it was written.
    """
    magic, _, rest = data.partition(b"\n")
    checksum, _, body = rest.partition(b"\n")
    if magic != MAGIC:
        raise ValueError(f"it must begin with {MAGIC.decode()!r}, got {magic[:40]!r}, of another release or program")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError(f"it is torn: its {len(body)} bytes are not those that were written")
    text, _, blob = body.partition(b"\n")
    tensors = safetensors.torch.load(blob)

    def restored(node: Any) -> Any:
        if isinstance(node, dict):
            return tensors[node[TENSOR]] if TENSOR in node else {k: restored(v) for k, v in node.items()}
        return [restored(value) for value in node] if isinstance(node, list) else node

    tree: dict[str, Any] = restored(json.loads(text))
    return tree


def fingerprint(
    model: nn.Module,
    data: dict[str, Data],
    baseline: Callable[[Tensor], Tensor] | None,
    seed: int,
    **settings: Any,
) -> dict[str, str]:
    """Return all that decides a fit, from name to value, as text.

    Args:
        model: all its parameters and buffers count.
        data: data sets or loaders by name; their number of images, all labels that can be had alone, and some images
            count.
        baseline: what it makes of some images of "train" counts.
        seed: seed of the draws of `baseline`.
        settings: configurations, each of whose fields counts, and plain values.
    """
    out = {"learned-aug": version("learned-aug"), "torch": torch.__version__}
    for name, value in settings.items():
        out.update(_fields(name, value))
    for name, source in data.items():
        images, labels = glance(source, name, seed)
        out[f"number of {name} images"] = _length(source)
        all_labels = labels_of(source.dataset if isinstance(source, DataLoader) else source)
        out[f"{name} labels (digest)"] = "unknown" if all_labels is None else digest(all_labels)
        out[f"{name} images (digest of some)"] = digest(images, labels)
        if name == "train":
            out["baseline (digest of some images)"] = "none"
            if baseline is not None:
                with forked() as reseed:
                    drawn = apply_baseline(baseline, images, name, lambda k: reseed(seed, "glance", k))
                out["baseline (digest of some images)"] = digest(drawn)
    out["model (digest of its state)"] = digest_of(model)
    return out


def _fields(name: str, value: Any) -> dict[str, str]:
    if not dataclasses.is_dataclass(value) or isinstance(value, (type, Solver)):
        return {name: repr(value)}
    parts = (_fields(f"{name}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    return {key: text for part in parts for key, text in part.items()}


def _length(data: Data) -> str:
    try:
        return str(len(data.dataset if isinstance(data, DataLoader) else data))  # type: ignore[arg-type]
    except TypeError:  # of an IterableDataset
        return "unknown"
