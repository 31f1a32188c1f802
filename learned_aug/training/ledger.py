"""The folder of a comparison: its settings, and a file for each training that is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from learned_aug.augmenter import Augmenter
from learned_aug.runtime.lock import FolderLock, lock_folder
from learned_aug.training.comparison import Training
from learned_aug.weights.files import write_atomic

__all__ = ["Ledger", "networks_of"]

SETTINGS = "settings.json"
DAMAGED = "{} must be what compare wrote, got other or damaged contents; delete it"


class Ledger:
    """Keeps finished trainings in a folder, which is this process's own meanwhile; without a folder it keeps nothing.

    Args:
        folder: made if need be.
        settings: what all trainings in it must agree in.

    Raises:
        ValueError: if the folder holds trainings of other settings, with what differs.
        OSError: if it cannot be written, or another process works in it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, settings: Mapping[str, str]) -> None:
        self.folder = None if folder is None else Path(folder)
        self._lock: FolderLock | None = None
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} must be a folder, got a file of that name; give another one")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.folder)
        path = self.folder / SETTINGS
        if path.exists():
            self._compare(_read(path), settings)
        else:
            write_atomic(path, _json(settings))

    def _compare(self, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
        # A hyper-validation set may come with a later arm.
        names = [n for n in {**saved, **now} if saved.get(n) != now.get(n) and not (n == "val" and n not in saved)]
        if "val" in saved and "val" not in now:
            names.remove("val")
        if names:
            changes = "; ".join(f"{n} was {saved.get(n, 'not set')}, is {now.get(n, 'not set')}" for n in names)
            self.close()
            raise ValueError(
                f"the trainings in {self.folder} must be of these settings, got others: {changes}; call with what it "
                "was to go on, or give another folder"
            )
        if now.keys() - saved.keys():
            assert self.folder is not None
            write_atomic(self.folder / SETTINGS, _json({**saved, **now}))

    def read(self, arm: str, seed: int, what: str) -> Training | None:
        """Return a finished training, None if it is none.

        Args:
            arm: its name.
            seed: its seed.
            what: what the arm is.

        Raises:
            ValueError: if the arm of that name was another one, or the file is damaged.
        """
        if self.folder is None or not (path := self.folder / f"{_stem(arm, seed)}.json").exists():
            return None
        kept = _read(path)
        if kept["what"] != what:
            raise ValueError(
                f"the arm {arm!r} in {self.folder} must be the same, was {kept['what']}, is {what}; give it another "
                "name, or give another folder"
            )
        try:
            training = Training(**kept["training"])
        except TypeError as error:
            raise ValueError(DAMAGED.format(path)) from error
        who, *figures = (training.arm, training.seed), *dataclasses.astuple(training)[2:]
        if who != (arm, seed) or not all(isinstance(figure, float) for figure in figures):
            raise ValueError(DAMAGED.format(path))
        return training

    def write(self, training: Training, what: str, networks: Augmenter | None) -> None:
        """Keep a training, and the networks that it drew from."""
        if self.folder is None:
            return
        stem = _stem(training.arm, training.seed)
        if networks is not None:
            networks.save_pretrained(self.folder / stem)
        entry = {"training": dataclasses.asdict(training), "what": what}
        write_atomic(self.folder / f"{stem}.json", _json(entry))

    def close(self) -> None:
        """Give the folder back to other processes."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def networks_of(folder: str | os.PathLike[str], arm: str) -> Path | None:
    """Return the folder of the networks that an arm of a comparison drew from, None if it has none."""
    found = sorted(Path(folder).glob(f"{_stem(arm, 0).rsplit('-', 1)[0]}-*/config.json"))
    return found[0].parent if found else None


def _read(path: Path) -> dict[str, Any]:
    """Read a file of the folder.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        read: Any = json.loads(path.read_bytes())
    except ValueError:
        read = None
    if not isinstance(read, dict) or not (path.name == SETTINGS or read.keys() >= {"what", "training"}):
        raise ValueError(DAMAGED.format(path))
    return read


def _stem(arm: str, seed: int) -> str:
    name = re.sub(r"[^\w.+-]+", "_", arm)[:60]
    return f"{name}-{hashlib.sha256(arm.encode()).hexdigest()[:6]}-{seed}"


def _json(values: object) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
