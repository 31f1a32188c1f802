"""Find weights by name: the pretrained ones of this release, Hub repositories, and local folders.

:func:`resolve` holds the rule that both from_pretrained and save_pretrained follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.resources
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from learned_aug.config import AugmenterConfig
from learned_aug.weights import files as weights
from learned_aug.weights import hub
from learned_aug.weights.files import CONFIG_NAME, WEIGHTS_NAME, WeightsError

__all__ = ["PRETRAINED", "HubRepo", "Pretrained", "list_pretrained", "load", "local_folder", "resolve"]

LOCAL = ("./", "../", "/", "~")
HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Describes one set of weights of this release."""

    name: str
    """What ``from_pretrained`` takes."""
    data: str
    """Data set of the fit."""
    classifier: str
    """Classifier of the fit that gave these weights, or left them as they were."""
    bytes: int
    """Size of both files together."""
    license: str
    """License of the weights."""
    errors: Mapping[str, float] = dataclasses.field(hash=False)
    """Mean test error in percent of classifiers retrained with each arm: first these weights, as "fitted" or "prior",
    then others."""
    seeds: int
    """Number of classifiers retrained per arm; 0, and only then, without `errors`."""
    config_sha256: str
    """SHA-256 of config.json."""
    weights_sha256: str
    """SHA-256 of model.safetensors."""
    repo_id: str | None = None
    """Hub repository that publishes the weights, "org/name"; None if they only come with the package."""
    revision: str | None = None
    """Commit of `repo_id`, 40 hexadecimal digits; None, and only then, without `repo_id`."""

    def __post_init__(self) -> None:
        """Refuse an entry that could not be found, or whose files could be exchanged.

        Raises:
            ValueError: if a field is not of its form.
        """
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
        if not all(0 <= error <= 100 for error in self.errors.values()):
            raise ValueError(f"errors must be in [0, 100] percent, got {dict(self.errors)}")
        if self.seeds < 0 or (self.seeds > 0) != bool(self.errors):
            raise ValueError(f"seeds must count the runs of `errors`, 0 without any, got {self.seeds}")

    def __str__(self) -> str:
        """Describe the weights in one line."""
        error = "test error not measured"
        if self.errors:
            (_, own), *controls = self.errors.items()
            beside = ", ".join(f"{arm} {figure:.2f} %" for arm, figure in controls)
            error = f"test error {own:.2f} %{f' ({beside})' if beside else ''} over {self.seeds} seeds"
        return f"{self.name}: {self.data}, {self.classifier}, {error}, {self.bytes / 2**20:.1f} MiB, {self.license}"

    @property
    def pins(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by name."""
        return {CONFIG_NAME: self.config_sha256, WEIGHTS_NAME: self.weights_sha256}


PRETRAINED: tuple[Pretrained, ...] = (
    Pretrained(
        name="mnist-cnn4",
        data="MNIST, 500 labels",
        classifier="4-layer CNN",
        bytes=464422,
        license="Apache-2.0",
        errors={"prior": 2.59, "crop": 3.81, "TrivialAugmentWide": 3.38},
        seeds=10,
        config_sha256="8a0e18ad3aea8bae9793eaabd080ae3faaa9092d3b452dcb564c90c34d7aaffc",
        weights_sha256="c30f54b8e713d43a51b2bb3b91021dc58ab3906f0ee54928adba02062341aa60",
    ),
    Pretrained(
        name="cifar10-resnet56",
        data="CIFAR-10, 1,000 labels",
        classifier="ResNet-56",
        bytes=597470,
        license="Apache-2.0",
        errors={"prior": 40.05, "crop + flip": 43.83, "TrivialAugmentWide": 39.78},
        seeds=3,
        config_sha256="e605e6b2ea84aafa153a99550d80faa5242a018beba7578bd875cfb1cda32ac7",
        weights_sha256="c0951926e6236a3127e2c1fc58e00aa58d32ac864c2221bbc32549aebabf7bdb",
    ),
    Pretrained(
        name="cifar10-wrn",
        data="CIFAR-10, 1,000 labels",
        classifier="Wide-ResNet-16-2",
        bytes=597470,
        license="Apache-2.0",
        errors={"prior": 40.10, "crop + flip": 43.16, "TrivialAugmentWide": 39.50},
        seeds=3,
        config_sha256="e605e6b2ea84aafa153a99550d80faa5242a018beba7578bd875cfb1cda32ac7",
        weights_sha256="3feb31f9593db0318cb27068927c4e1475908ebb762d9920ef2ab08833a4656c",
    ),
)
"""The table: one record for each set of weights that exists, none for any other."""


class HubRepo(NamedTuple):
    """Names a Hub repository at one of its revisions."""

    repo_id: str
    """Name, "org/name"."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""


def list_pretrained() -> list[Pretrained]:
    """List the weights that ``from_pretrained`` knows by name, with data set, classifier, test errors and license."""
    return list(PRETRAINED)


def resolve(source: str | PathLike[str], *, revision: str | None = None) -> Path | Pretrained | HubRepo:
    """Tell what a name of weights stands for.

    No file or folder changes the meaning of a string: one that could mean the Hub and a folder is refused.

    Args:
        source: a name of :func:`list_pretrained`; "org/name" or "hf-hub:org/name" for a Hub repository; a path object,
            "local-dir:PATH", or a string that begins with "./", "../", "/" or "~" for a local folder.
        revision: branch, tag or commit, for a Hub repository only.

    Raises:
        ValueError: for any other string, for "org/name" while there is a folder of that name, and for a `revision`
            where there is none.
    """
    known = {entry.name: entry for entry in PRETRAINED}
    found: Path | Pretrained
    if not isinstance(source, str) or source.startswith(LOCAL) or source in (".", "..") or Path(source).is_absolute():
        found = _expanded(source)
    elif source.startswith(LOCAL_PREFIX) and source != LOCAL_PREFIX:
        found = _expanded(source.removeprefix(LOCAL_PREFIX))
    elif source in known:
        found = known[source]
    elif hub.REPO.fullmatch(repo_id := source.removeprefix(HUB_PREFIX)):
        if source == repo_id and Path(source).exists():
            raise ValueError(
                f"{source!r} could mean a Hub repository, and there is such a folder; write '{HUB_PREFIX}{source}' or "
                f"'./{source}'"
            )
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


def local_folder(folder: str | PathLike[str]) -> Path:
    """Return the folder that ``save_pretrained(folder)`` writes: the one that ``from_pretrained(folder)`` reads.

    Args:
        folder: a path object, "local-dir:PATH", or a string that begins with "./", "../", "/" or "~".

    Raises:
        ValueError: if `from_pretrained` would take the string for anything but a local folder.
    """
    with contextlib.suppress(ValueError):
        if isinstance(found := resolve(folder), Path):
            return found
    raise ValueError(
        f"from_pretrained({folder!r}) would not read a local folder {folder!r}; save to './{folder}' or to a Path "
        "(push_to_hub publishes)"
    )


def _expanded(path: str | PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{str(path)!r} names a home directory, and there is none ({error}); write the path"
        ) from error


def load(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
) -> tuple[AugmenterConfig, dict[str, Tensor], str]:
    """Read the weights that `source` names, as :func:`resolve` says, and verify them where a hash is known.

    Pretrained weights are read from the copy that came with the package, without any connection, else from the cache,
    else from their commit on the Hub; each time they are compared with the SHA-256 of this release.

    Args:
        source: a name, a Hub repository or a folder, as :func:`resolve` takes it.
        revision: branch, tag or commit of a Hub repository; by default "main".
        cache_dir: folder of Hub downloads; by default the client's own.
        token: token for private repositories; by default the one of ``hf auth login``.

    Returns:
        The configuration, the tensors in float32, and where they came from, for errors.

    Raises:
        ValueError: if `source` is no name of weights.
        WeightsError: if the weights cannot be had, or are damaged.
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
    """Return the folder of weights that came with the package, in a wheel or beside the sources; None without one."""
    package = Path(str(importlib.resources.files("learned_aug")))
    roots = [package / "pretrained"]
    if (package.parent / "pyproject.toml").is_file():  # an editable install, or a clone
        roots.append(package.parent / "pretrained")
    return next((root / name for root in roots if (root / name).is_dir()), None)
