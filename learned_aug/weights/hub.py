"""Download files of a Hub repository and check their hashes; publish files there.

`huggingface_hub` downloads and caches. Alone it waits minutes for a dead network and checks nothing but sizes, so here
each of its calls gets a deadline, and each file is compared with its hash at every load. The client is imported when
it is first needed, because its import takes a while.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from learned_aug.weights.files import WeightsError, sha256, write_atomic

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileMetadata

__all__ = ["Fetched", "UnreachableError", "fetch", "push"]

T = TypeVar("T")
TIMEOUT = 5.0  # seconds for each read of an answer about a file
PATIENCE = 8.0  # seconds for a call of the client: bounds its retries too, and the resolution of names
SLOWEST = 1_000_000  # bytes per second that a download needs beyond PATIENCE
UPLOAD_PATIENCE = 600.0  # seconds for a commit, whose progress is not seen
MAX_BYTES = 2**29  # of a file; an augmenter has a few megabytes
# The client's rules, but with an organization or user always.
REPO = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/(?=.{1,96}$)\w([\w.-]*\w)?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")


class UnreachableError(WeightsError):
    """Says that no answer came, or none that tells anything about the file: a cached copy may stand in."""


class Fetched(NamedTuple):
    """Holds files of one commit of a repository."""

    commit: str
    """40 hexadecimal digits."""
    files: dict[str, bytes]
    """Contents by file name."""


def fetch(
    repo_id: str,
    names: Sequence[str],
    *,
    revision: str | None = None,
    pins: Mapping[str, str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Fetched:
    """Read files of a repository, all of one commit, from the client's cache or from the Hub.

    A commit that is in the cache takes no request, a branch or tag takes one. Every copy is compared with the hash that
    the Hub gave for it (git's SHA-1 or SHA-256) and with `pins`; a cached copy that differs is downloaded once more.
    Where the Hub cannot be reached, the cached commit of a branch or tag serves, with a warning unless in offline mode.

    Args:
        repo_id: name of the repository, "org/name".
        names: file names, without folders.
        revision: branch, tag, or commit of 40 hexadecimal digits; by default "main".
        pins: expected SHA-256 by file name, where known beforehand.
        cache_dir: folder of downloads; by default the client's own.
        token: a token, or False for none; by default the one of ``hf auth login``.

    Raises:
        UnreachableError: if the Hub cannot be reached, and the cache does not have the files.
        WeightsError: if a file cannot be had for another reason, or differs from its hash.
        ValueError: if `repo_id` or `revision` is no possible name.
    """
    from huggingface_hub import constants

    revision = "main" if revision is None else revision
    if not revision or ".." in revision or revision.startswith("/"):
        raise ValueError(f"revision must be a branch, a tag or a commit of 40 hexadecimal digits, got {revision!r}")
    folder = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    try:
        repo = _Repo(repo_id, _api(repo_id, token), folder.expanduser())
    except RuntimeError as error:
        raise WeightsError(f"{repo_id}: no home directory for {folder}; set HF_HOME, or pass cache_dir=") from error
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = str(repo.head(names[0], revision).commit_hash)
        except UnreachableError as error:
            if (cached := repo.cached(names[0], revision)) is None:
                raise
            commit = cached.parent.name
            if not constants.HF_HUB_OFFLINE:
                warnings.warn(f"{error}. Using the cached commit {commit}.", stacklevel=4)
    fetched = Fetched(commit, {name: repo.read(name, commit, (pins or {}).get(name)) for name in names})
    if commit != revision and (path := repo.cached(names[0], commit)) is not None:
        with contextlib.suppress(OSError):  # a cache on a read-only disk still serves those who name the commit
            reference = path.parents[2] / "refs" / revision  # where the client keeps it, too
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(reference, commit.encode())
    return fetched


def push(
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    message: str,
    defaults: Mapping[str, bytes] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Publish files as one commit; repository and branch are made if they do not exist.

    Args:
        repo_id: name of the repository, "org/name".
        files: contents by file name.
        message: first line of the commit.
        defaults: files that are written only where the repository has none of that name.
        private: whether the repository is private; by default as it is, or the account's setting for a new one.
        revision: branch to write to; by default "main".
        token: a token; by default the one of ``hf auth login``.

    Returns:
        The commit, 40 hexadecimal digits: what to pin as ``revision=``.

    Raises:
        WeightsError: if the Hub refuses, fails or does not answer, or if `private` is not what the repository is.
        ValueError: if `repo_id` is no possible name.
    """
    from huggingface_hub import CommitOperationAdd

    api, wanted = _api(repo_id, token), dict(files)
    ask = functools.partial(_ask, f"{repo_id} at {revision or 'main'}", instead="or keep them with save_pretrained")

    def commit() -> str:
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in wanted.items()]
        return str(api.create_commit(repo_id, operations, commit_message=message, revision=revision).oid)

    ask(PATIENCE, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if private is not None and bool(ask(PATIENCE, lambda: api.model_info(repo_id)).private) != private:
        raise WeightsError(
            f"{repo_id} exists and is {'public' if private else 'private'}, but private={private} was asked for; "
            "change its visibility on the Hub, or take another name"
        )
    if revision is not None:
        ask(PATIENCE, functools.partial(api.create_branch, repo_id, branch=revision, exist_ok=True))
    for name, data in (defaults or {}).items():
        if not ask(PATIENCE, functools.partial(api.file_exists, repo_id, name, revision=revision)):
            wanted.setdefault(name, data)
    return ask(UPLOAD_PATIENCE, commit)


def _api(repo_id: str, token: str | bool | None) -> HfApi:
    from huggingface_hub import HfApi

    if not REPO.fullmatch(repo_id):
        raise ValueError(f"a Hub repository is named 'org/name', got {repo_id!r}; put your user name before it")
    return HfApi(token=token, library_name="learned-aug")


class _Repo(NamedTuple):
    """Reads files of one repository."""

    repo_id: str
    api: HfApi
    cache: Path

    def read(self, name: str, commit: str, pin: str | None) -> bytes:
        """Return a file from the cache, else from the Hub, once it agrees with its hashes.

        Raises:
            UnreachableError: if the file is not in the cache, and the Hub cannot be reached.
            WeightsError: if the file cannot be had for another reason, or differs from its hashes.
        """
        cached, label = self.cached(name, commit), f"{self.repo_id}/{name} at {commit}"
        if cached is not None:
            with contextlib.suppress(OSError):  # a copy that cannot be read is as good as none
                data = cached.read_bytes()
                # The link leads to blobs/<hash>; a disk without symbolic links does not tell the Hub's hash.
                if _fault(data, Path(os.readlink(cached)).name if cached.is_symlink() else None, pin) is None:
                    return data

        def load(force: bool) -> bytes:
            if force and (old := self.cached(name, commit)) is not None and not old.is_symlink():
                old.unlink(missing_ok=True)  # the client replaces what a link leads to, but no plain file
            path = self.api.hf_hub_download(
                self.repo_id, name, revision=commit, cache_dir=self.cache, etag_timeout=TIMEOUT, force_download=force
            )
            data = Path(path).read_bytes()
            if fault := _fault(data, metadata.etag, pin):
                raise OSError(fault)
            return data

        def download() -> bytes:
            try:
                return load(force=cached is not None)
            except OSError:  # half a file, or another commit's, that the cache had and the client took for good
                return load(force=True)

        try:
            metadata = self.head(name, commit)
            return _ask(label, PATIENCE + (metadata.size or 0) / SLOWEST, download)
        except UnreachableError as error:
            if cached is None:
                raise
            raise WeightsError(f"{cached} is damaged; fetch it again when the Hub can be reached: {error}") from error

    def cached(self, name: str, revision: str) -> Path | None:
        """Return where the cache has a file of a commit, or of the one that a branch or tag had when last seen."""
        from huggingface_hub import try_to_load_from_cache

        with contextlib.suppress(OSError, ValueError):  # such as a reference that is no text
            found = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache, revision=revision)
            if isinstance(found, str) and COMMIT.fullmatch(Path(found).parent.name):
                return Path(found)
        return None

    def head(self, name: str, revision: str) -> HfFileMetadata:
        """Ask for a file's commit, hash and size: the client's download hides most of what may go wrong.

        Raises:
            UnreachableError: if there is no answer, or it is not that of a Hub.
            WeightsError: if the Hub refuses, or the file is too large.
        """
        from huggingface_hub import hf_hub_url

        label, url = f"{self.repo_id}/{name} at {revision}", hf_hub_url(self.repo_id, name, revision=revision)
        metadata = _ask(label, PATIENCE, lambda: self.api.get_hf_file_metadata(url=url, timeout=TIMEOUT))
        commit = metadata.commit_hash or ""
        if metadata.etag is None or not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise UnreachableError(
                f"{label}: {url} does not answer as a Hub does, with commit {commit!r} and hash {metadata.etag!r}; "
                "check HF_ENDPOINT, and for a proxy or a login page"
            )
        if (size := metadata.size or 0) > MAX_BYTES:
            raise WeightsError(f"{label} has {size} bytes, more than any augmenter; check the repository's name")
        return metadata


def _fault(data: bytes, etag: str | None, pin: str | None) -> str | None:
    """Say how `data` differs from its hashes; None if it does not, or if no hash of a known kind is given."""
    if pin is not None and (got := sha256(data)) != pin:
        return f"SHA-256 {got}, expected {pin}"
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    # The Hub states git's SHA-1, for large files SHA-256; mirrors may state the plain SHA-1.
    if etag is None or len(etag) not in (40, 64) or etag in (git, sha256(data), hashlib.sha1(data).hexdigest()):
        return None
    return f"hash {git if len(etag) == 40 else sha256(data)}, expected {etag}"


def _ask(label: str, seconds: float, call: Callable[[], T], instead: str = "or give a local folder as './folder'") -> T:
    """Return what a call of the client returns, or abandon it to its thread after `seconds`.

    The client's own limits leave out the resolution of names, and start anew with each byte of a header.

    Raises:
        WeightsError: with `label`, problem and remedy, for whatever goes wrong.
    """
    from huggingface_hub import constants, errors

    result: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # of any kind: it is raised in the caller's thread
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout=seconds)
    except futures.TimeoutError:
        error: BaseException = RuntimeError(f"no answer within {seconds:.3g} s")
    except Exception as raised:
        wrapper = isinstance(raised, (errors.LocalEntryNotFoundError, ValueError, RuntimeError))  # of the client
        error = (wrapper and not isinstance(raised, errors.HfHubHTTPError) and raised.__cause__) or raised
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    why, login = next(iter(str(error).splitlines()), type(error).__name__), "run `hf auth login`, or pass token="
    fits = functools.partial(isinstance, error)
    offline, failed = fits(errors.OfflineModeIsEnabled), status == 429 or status >= 500
    network = f"check network (on a slow line, `hf download` first), proxy and HF_ENDPOINT, {instead}"
    problems = (  # the first that holds, with its remedy; the client's transport errors are no OSError
        (offline, "out of reach while HF_HUB_OFFLINE is set", f"unset it, {instead}"),
        (fits(errors.LocalTokenNotFoundError), "token=True, but none is stored", login),
        (fits(errors.GatedRepoError), "access is granted one by one", f"ask on the repository's page, and {login}"),
        (fits(errors.RepositoryNotFoundError), "no such repository, or a private one", f"check the name, or {login}"),
        (fits(errors.RevisionNotFoundError), "no such branch, tag or commit", "see the repository's page for those"),
        (fits(errors.EntryNotFoundError), "no such file (pickled ones are never read)", "name what push_to_hub wrote"),
        (failed, f"the Hub failed ({status})", "try again in a while"),
        (status == 401, "the token is not valid (401)", login),
        (status == 403, "the token does not permit this (403)", login),
        (status > 0, f"the Hub refused ({status}: {why})", "check the name"),
        (getattr(error, "errno", None), f"the cache failed ({why})", "set HF_HOME, or pass cache_dir="),
        (fits(OSError), f"came damaged ({why})", "try again, or check for a proxy in between"),
        (True, f"{constants.ENDPOINT} could not be reached or did not answer ({why})", network),
    )
    what, remedy = next((what, remedy) for holds, what, remedy in problems if holds)
    kind = UnreachableError if offline or failed or remedy is network else WeightsError
    raise kind(f"{label}: {what}; {remedy}") from error
