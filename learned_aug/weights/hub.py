"""Files of a Hub repository: fetched, verified and cached; and published.

The client's own download waits minutes for a dead network and checks sizes alone. Weights are small, so here they are
read into memory, with a limit on the time without progress, compared with the hash that the Hub states, and only then
stored in the client's cache, in its layout. `huggingface_hub` is imported when first needed: it takes a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from learned_aug.weights.files import WeightsError, sha256, write_atomic

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

__all__ = ["Fetched", "fetch", "push"]

T = TypeVar("T")
TIMEOUT = 5.0  # seconds to connect, and for each read
PATIENCE = 8.0  # seconds without any progress; bounds what TIMEOUT does not, as the resolution of names
SLOWEST = 10_000  # bytes per second, once PATIENCE is over
UPLOAD_PATIENCE = 600.0  # seconds for a commit, whose progress is not seen
MAX_BYTES = 2**29  # of a file; an augmenter has a few megabytes
REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
ETAG = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
LIBRARY = "learned-aug"


class _UnreachableError(WeightsError):
    """No answer, or none that says anything about the file: a cached copy may stand in."""


class Fetched(NamedTuple):
    """Files of one commit."""

    commit: str
    """40 hexadecimal digits."""
    files: dict[str, bytes]
    """By name."""


def fetch(
    repo_id: str,
    names: Sequence[str],
    *,
    revision: str | None = None,
    pins: Mapping[str, str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Fetched:
    """Files of a repository, all of one commit, from the client's cache or from the Hub.

    A commit that is in the cache takes no request, a branch or tag one. Every copy is compared with the hash the Hub
    gave for it (git's SHA-1 or SHA-256) and with `pins`; a cached copy that differs is fetched once more. Where the Hub
    cannot be reached, the cached copy of a branch or tag serves, with a warning unless in offline mode.

    Args:
        repo_id: "org/name".
        names: of the files.
        revision: branch, tag or commit of 40 hexadecimal digits; by default "main".
        pins: SHA-256 by file name, where known beforehand.
        cache_dir: by default the client's own.
        token: a token, False for none; by default the one of ``hf auth login``.

    Raises:
        WeightsError: if a file cannot be had as it should be; nothing incomplete is left behind.
        ValueError: if `repo_id` or `revision` is no possible name.
    """
    revision = "main" if revision is None else revision
    if not revision or ".." in revision or revision.startswith("/"):
        raise ValueError(f"revision must be a branch, a tag or a commit of 40 hexadecimal digits, got {revision!r}")
    _check_repo(repo_id)
    pins = {} if pins is None else pins
    cache = _Cache(repo_id, cache_dir)
    known: dict[str, HfFileMetadata] = {}
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            known[names[0]] = metadata = _head(repo_id, names[0], revision, token)
            commit = str(metadata.commit_hash)
        except _UnreachableError as error:
            cached_commit = cache.commit(revision)
            if cached_commit is None:
                raise
            commit = cached_commit
            if not _offline():
                warnings.warn(f"{error}. Using the cached commit {commit}.", stacklevel=4)
    files = {}
    for name in names:
        cached = cache.read(commit, name)
        if cached is not None and _fault(cached.data, cached.etag, pins.get(name)) is None:
            files[name] = cached.data
            continue
        try:
            metadata = known[name] if name in known else _head(repo_id, name, commit, token)
            files[name] = data = _download(repo_id, name, metadata, pins.get(name), token)
        except _UnreachableError as error:
            if cached is None:
                raise
            raise WeightsError(
                f"{cached.path} is damaged; fetch it again when the Hub can be reached: {error}"
            ) from error
        cache.write(commit, name, data, metadata.etag)
    if commit != revision:
        cache.point(revision, commit)
    return Fetched(commit, files)


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
    """Publish files as one commit; the repository and the branch are made if need be.

    Args:
        repo_id: "org/name".
        files: by name.
        message: of the commit.
        defaults: files that are written only where the repository has none of that name.
        private: whether the repository is; by default that of the account for a new one, as it is for an old one.
        revision: branch, by default "main".
        token: as for :func:`fetch`.

    Returns:
        The commit, 40 hexadecimal digits: what to pin as ``revision=``.

    Raises:
        WeightsError: if the Hub refuses, fails or does not answer, or `private` does not describe the repository there.
        ValueError: if `repo_id` is no possible name.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _check_repo(repo_id)
    api = HfApi(token=token, library_name=LIBRARY)
    wanted = dict(files)

    def prepare() -> Iterator[None]:
        """One request a step."""
        api.create_repo(repo_id, private=private, exist_ok=True)
        yield
        if private is not None and bool(api.model_info(repo_id).private) != private:
            raise WeightsError(
                f"{repo_id} exists and is {'public' if private else 'private'}, but private={private} was asked for; "
                "change its visibility on the Hub, or take another name"
            )
        yield
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        for name, data in ({} if defaults is None else defaults).items():
            yield
            if not api.file_exists(repo_id, name, revision=revision):
                wanted.setdefault(name, data)

    def commit() -> str:
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in wanted.items()]
        try:
            return str(api.create_commit(repo_id, operations, commit_message=message, revision=revision).oid)
        except RuntimeError as error:  # the client's wrapper of what stopped an upload
            raise error.__cause__ or error from None

    with _explained(repo_id, None, revision):
        for _ in _watched(PATIENCE, prepare()):
            pass
        return _within(UPLOAD_PATIENCE, commit)


def _check_repo(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a Hub repository ({error}); write it 'org/name'") from error
    if not REPO.fullmatch(repo_id):
        raise ValueError(f"a Hub repository is named 'org/name', got {repo_id!r}; put your user name before it")


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _head(repo_id: str, name: str, revision: str, token: str | bool | None) -> HfFileMetadata:
    """What the Hub says about a file, in one request."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _explained(repo_id, name, revision):
        url = hf_hub_url(repo_id, name, revision=revision)
        metadata = _within(
            PATIENCE, lambda: get_hf_file_metadata(url, token=token, timeout=TIMEOUT, library_name=LIBRARY)
        )
    label = f"{repo_id}/{name} at {revision}"
    if metadata.commit_hash is None or metadata.etag is None or not COMMIT.fullmatch(metadata.commit_hash):
        raise _UnreachableError(
            f"{label}: {url} does not answer as a Hub does; check HF_ENDPOINT, and whether a proxy or a login page is "
            "in between"
        )
    if COMMIT.fullmatch(revision) and metadata.commit_hash != revision:
        raise WeightsError(
            f"{label}: the Hub answered with commit {metadata.commit_hash}; check HF_ENDPOINT, try again"
        )
    if metadata.size is not None and metadata.size > MAX_BYTES:
        raise WeightsError(
            f"{label} has {metadata.size} bytes, more than any augmenter ({MAX_BYTES}); check the repository's name"
        )
    return metadata


def _download(repo_id: str, name: str, metadata: HfFileMetadata, pin: str | None, token: str | bool | None) -> bytes:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    commit = str(metadata.commit_hash)

    def chunks() -> Iterator[bytes]:
        url = hf_hub_url(repo_id, name, revision=commit)
        headers = build_hf_headers(token=token, library_name=LIBRARY)
        session = get_session()
        with session.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield from response.iter_bytes()

    data, begin = bytearray(), time.monotonic()
    limit = MAX_BYTES if metadata.size is None else metadata.size
    with _explained(repo_id, name, commit):
        for chunk in _watched(PATIENCE, chunks()):
            data += chunk
            if len(data) > limit:
                break
            if len(data) < SLOWEST * (time.monotonic() - begin - PATIENCE):
                raise TimeoutError(f"slower than {SLOWEST} bytes per second")
    found = f"{repo_id}/{name} at {commit} came with"
    if len(data) > limit or len(data) < (metadata.size or 0):
        more = " or more" if len(data) > limit else ""
        raise WeightsError(
            f"{found} {len(data)}{more} bytes, expected {limit}; try again, or check for a proxy in between"
        )
    if (fault := _fault(bytes(data), metadata.etag, pin)) is not None:
        raise WeightsError(f"{found} {fault}; try again, or check for a proxy in between")
    return bytes(data)


def _fault(data: bytes, etag: str | None, pin: str | None) -> str | None:
    """How `data` differs from what its hashes say; None if it does not."""
    if pin is not None and (got := sha256(data)) != pin:
        return f"SHA-256 {got}, expected {pin}"
    if etag is None or not ETAG.fullmatch(etag):
        return None  # no hash that we know
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    # The Hub states git's SHA-1, for large files SHA-256; mirrors may state the plain SHA-1.
    if etag in (git, sha256(data), hashlib.sha1(data).hexdigest()):
        return None
    return f"hash {git if len(etag) == 40 else sha256(data)}, expected {etag}"


class _Cached(NamedTuple):
    path: Path
    data: bytes
    etag: str | None
    """Known where the file system has symbolic links."""


class _Cache:
    """The client's cache of a repository.

    snapshots/<commit>/<name> links to blobs/<etag>, and refs/<branch> holds a commit.
    """

    def __init__(self, repo_id: str, cache_dir: str | PathLike[str] | None) -> None:
        from huggingface_hub import constants

        root = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
        self.folder = root / f"models--{repo_id.replace('/', '--')}"

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or tag had when last seen."""
        try:
            text = (self.folder / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def read(self, commit: str, name: str) -> _Cached | None:
        path = self.folder / "snapshots" / commit / name
        try:
            return _Cached(path, path.read_bytes(), Path(os.readlink(path)).name if path.is_symlink() else None)
        except OSError:
            return None

    def write(self, commit: str, name: str, data: bytes, etag: str | None) -> None:
        blob = self.folder / "blobs" / (etag if etag is not None and ETAG.fullmatch(etag) else sha256(data))
        path = self.folder / "snapshots" / commit / name
        with self._writing():
            blob.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(blob, data)
            # A link cannot replace another: it is made under a name of its own and renamed.
            with tempfile.TemporaryDirectory(prefix=".link.", dir=path.parent) as folder:
                link = Path(folder) / name
                try:
                    link.symlink_to(Path("..", "..", "blobs", blob.name))
                except OSError:  # not on this file system: the client, too, keeps a plain file then
                    link = blob
                os.replace(link, path)

    def point(self, revision: str, commit: str) -> None:
        path = self.folder / "refs" / revision
        if self.commit(revision) != commit:
            with self._writing():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, commit.encode())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A cache that cannot be written, as on a full or read-only disk, costs a download each time, no more."""
        try:
            yield
        except OSError as error:
            warnings.warn(f"{self.folder} cannot be written ({error}): nothing is cached; set cache_dir=", stacklevel=6)


@contextlib.contextmanager
def _explained(repo_id: str, name: str | None, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into a WeightsError that names file, problem and remedy."""
    from huggingface_hub import constants, errors

    label = f"{repo_id}{'' if name is None else '/' + name} at {'main' if revision is None else revision}"
    login = "log in with `hf auth login`, or pass token="
    instead = "or keep the weights with save_pretrained" if name is None else "or give a local folder as './folder'"
    try:
        yield
    except WeightsError:
        raise
    except errors.OfflineModeIsEnabled as error:
        problem = "cannot be published" if name is None else "is not in the cache, and cannot be fetched"
        raise _UnreachableError(f"{label} {problem} while HF_HUB_OFFLINE is set; unset it, {instead}") from error
    except errors.LocalTokenNotFoundError as error:
        raise WeightsError(f"{label}: token=True, but none is stored; {login}") from error
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{label}: access is granted one by one; ask for it on {constants.ENDPOINT}/{repo_id}, and {login}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(f"{label}: no such repository, or a private one; check the name, or {login}") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{label}: the repository has no such branch, tag or commit; see "
            f"{constants.ENDPOINT}/{repo_id}/commits/main"
        ) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(
            f"{label}: the repository has no such file, so it holds no augmenter that can be read (pickled weights "
            "never are); give one that push_to_hub wrote"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise WeightsError(f"{label}: the token is not valid (401); {login}") from error
        if status == 403:
            raise WeightsError(f"{label}: the token does not permit this (403); {login} that does") from error
        if status == 429 or status >= 500:
            raise _UnreachableError(f"{label}: the Hub failed ({status}); try again in a while") from error
        raise WeightsError(f"{label}: the Hub refused ({status}: {_first_line(error)}); check the name") from error
    except Exception as error:  # the client's transport errors are no OSError, and their package depends on its version
        raise _UnreachableError(
            f"{label}: {constants.ENDPOINT} could not be reached or did not answer ({_first_line(error)}); check the "
            f"network, the proxy and HF_ENDPOINT, {instead}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, which is abandoned after `seconds`."""
    return next(_watched(seconds, (call() for _ in range(1))))


def _watched(seconds: float, items: Iterator[T]) -> Iterator[T]:
    """`items`, drawn in a thread that is abandoned when the next one takes longer than `seconds`.

    The client's own limits leave out the resolution of names, and start anew with each byte of a header.
    """
    results: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    abandoned = threading.Event()

    def draw() -> None:
        try:
            for item in items:
                if abandoned.is_set():
                    break
                results.put((item,))
            results.put(None)
        except BaseException as error:  # of any kind: it is raised again below, in the caller's thread
            results.put(error)

    threading.Thread(target=draw, daemon=True).start()
    try:
        while (result := results.get(timeout=seconds)) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result[0]
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    finally:
        abandoned.set()
