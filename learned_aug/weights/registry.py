"""Names of weights: the pretrained ones of this release, Hub repositories, and local folders."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import re
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from learned_aug.nets import AugmenterConfig
from learned_aug.weights import files as weights
from learned_aug.weights import hub
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME, WeightsError

__all__ = ["PRETRAINED", "HubRepo", "Pretrained", "list_pretrained", "load", "resolve"]

LOCAL = ("./", "../", "/", "~")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One set of weights of this release.

    Attributes:
        name: what ``from_pretrained`` takes.
        data: data set of the fit.
        classifier: that it was fitted to.
        bytes: of both files.
        license: of the weights.
        error: test error of classifiers retrained with it, beside its controls, with spread and number of runs.
        config_sha256: of config.json.
        weights_sha256: of model.safetensors.
        repo_id: where it is published, "org/name"; None if it only comes with the package.
        revision: the commit there, 40 hexadecimal digits; None, and only then, without `repo_id`.
    """

    name: str
    data: str
    classifier: str
    bytes: int
    license: str
    error: str
    config_sha256: str
    weights_sha256: str
    repo_id: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse an entry that could not be found, or whose files could be exchanged."""
        patterns = {
            "name": r"[a-z0-9][a-z0-9.-]*",
            "repo_id": hub.REPO.pattern,
            "revision": "[0-9a-f]{40}",
            "config_sha256": "[0-9a-f]{64}",
            "weights_sha256": "[0-9a-f]{64}",
        }
        if self.repo_id is None and self.revision is None:
            del patterns["repo_id"], patterns["revision"]
        for field, pattern in patterns.items():
            if not re.fullmatch(pattern, getattr(self, field) or ""):
                raise ValueError(f"{field} must match {pattern}, got {getattr(self, field)!r}")

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.name}: {self.data}, {self.classifier}, {self.error}, {self.bytes / 2**20:.1f} MiB, {self.license}"
        )

    @property
    def pins(self) -> dict[str, str]:
        """SHA-256 by file name."""
        return {CONFIG_NAME: self.config_sha256, WEIGHTS_NAME: self.weights_sha256}


PRETRAINED: tuple[Pretrained, ...] = (
    Pretrained(
        name="mnist-cnn4",
        data="MNIST, 500 labels",
        classifier="4-layer CNN of width 16",
        bytes=904853,
        license="Apache-2.0",
        error="test error 3.23 % (untrained control 3.13 %, crop 3.39 %)",
        config_sha256="5986f783188e6536603f106f345386f6aa9e409fee8730909fcbaeac33f6400e",
        weights_sha256="db24f499a7c3e635f98a95ad7e4ff0ace1062f0b369f6e0d2a3443258c8f0d9d",
    ),
    Pretrained(
        name="cifar10-resnet56",
        data="CIFAR-10, 1,000 labels",
        classifier="ResNet-56",
        bytes=990149,
        license="Apache-2.0",
        error="test error 47.67 % (untrained control 48.35 %, crop + flip 49.16 %)",
        config_sha256="e5afe140501181b6bb325dd1256ce204f26a2392fa5af5bd4db5aa1145cff476",
        weights_sha256="20662eac575463ba7468e0056a47aebe2153eed12a2645f4f8f178b413882fcc",
    ),
    Pretrained(
        name="cifar10-wrn",
        data="CIFAR-10, 1,000 labels",
        classifier="Wide-ResNet-10-2",
        bytes=990149,
        license="Apache-2.0",
        error="test error 40.17 % (untrained control 40.41 %, crop + flip 41.05 %)",
        config_sha256="e5afe140501181b6bb325dd1256ce204f26a2392fa5af5bd4db5aa1145cff476",
        weights_sha256="c96516aced599d443f1b9180265c4af7fbc698df787f2050b8f6e4da400c5c2c",
    ),
)
"""The table: one record for each set of weights that exists, none for any other."""


class HubRepo(NamedTuple):
    """A Hub repository, at a branch, tag or commit; None is its main branch."""

    repo_id: str
    revision: str | None


def list_pretrained() -> list[Pretrained]:
    """The weights that ``from_pretrained`` knows by name, each with data set, classifier, size, license and error."""
    return list(PRETRAINED)


def resolve(source: str | PathLike[str], *, revision: str | None = None) -> Path | Pretrained | HubRepo:
    """What a name stands for; looks at the name alone, so that no file or folder can change its meaning.

    Args:
        source: a bare name, of :func:`list_pretrained` alone; "org/name" or "hf-hub:org/name", a Hub repository; a
            path object, or a string that begins with "./", "../", "/" or "~", a local folder.
        revision: for a Hub repository only.

    Raises:
        ValueError: for any other name, and for a `revision` where there is none.
    """
    known = {entry.name: entry for entry in PRETRAINED}
    found: Path | Pretrained
    if not isinstance(source, str) or source.startswith(LOCAL):
        found = Path(source).expanduser()
    elif source in known:
        found = known[source]
    elif hub.REPO.fullmatch(repo_id := source.removeprefix("hf-hub:")):
        return HubRepo(repo_id, revision)
    else:
        close = difflib.get_close_matches(source, known)
        hints = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
        hints += [f"the local folder is './{source}'."] if source and Path(source).is_dir() else []
        raise ValueError(
            f"no pretrained weights are called {source!r}; {' '.join(hints)}{' ' if hints else ''}Known names: "
            f"{sorted(known) if known else 'none in this release'}. A Hub repository is written 'org/name', a local "
            "folder './folder' or as a Path"
        )
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} is for Hub repositories, got {str(source)!r}, which has none; leave it out"
        )
    return found


def load(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
) -> tuple[AugmenterConfig, dict[str, Tensor], str]:
    """Read the weights that `source` names, as :func:`resolve` says, verified where a hash is known.

    Pretrained weights are read from the copy that came with the package, without any connection, else from the cache,
    else from their commit on the Hub; each time they are compared with the SHA-256 of this release.

    Returns:
        The configuration, the tensors, and where they came from, for errors.

    Raises:
        ValueError: if `source` is no name of weights.
        WeightsError: if they cannot be had, or are damaged.
    """
    found = resolve(source, revision=revision)
    if isinstance(found, Path):
        files, where = weights.read(found), str(found)
    elif isinstance(found, Pretrained) and (folder := bundle(found.name)) is not None:
        files, where = weights.read(folder), str(folder)
        for name, pin in found.pins.items():
            if (got := weights.sha256(files[name])) != pin:
                remedy = "install learned-aug again"
                if found.repo_id is not None:
                    copy = f"from_pretrained({found.repo_id!r}, revision={found.revision!r})"
                    remedy += f", or use the published copy, {copy}"
                raise WeightsError(f"{folder / name} has SHA-256 {got}, expected {pin}; {remedy}")
    elif found.repo_id is None:
        raise WeightsError(
            f"the weights {str(source)!r} come with the package, whose folder pretrained/ lacks them; install "
            "learned-aug again"
        )
    else:
        pins = found.pins if isinstance(found, Pretrained) else None
        fetched = hub.fetch(
            found.repo_id, weights.NAMES, revision=found.revision, pins=pins, cache_dir=cache_dir, token=token
        )
        files, where = fetched.files, f"hf-hub:{found.repo_id}@{fetched.commit}"
    return *weights.parse(files, where), where


def bundle(name: str) -> Path | None:
    """The folder of weights that came with the package, in a wheel or beside the sources; None if there is none."""
    package = Path(str(importlib.resources.files("learned_aug")))
    roots = [package / "pretrained"]
    if (package.parent / "pyproject.toml").is_file():  # an editable install, or a clone
        roots.append(package.parent / "pretrained")
    return next((root / name for root in roots if (root / name).is_dir()), None)
