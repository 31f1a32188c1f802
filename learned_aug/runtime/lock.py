"""One process per folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import weakref
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FolderInUseError", "FolderLock", "lock_folder", "locked_here"]

LOCK_NAME = ".learned-aug.lock"
FAR = 2**30  # byte that is locked where a lock hides what it covers (Windows)

_held: weakref.WeakValueDictionary[tuple[int, str], FolderLock] = weakref.WeakValueDictionary()


class FolderInUseError(OSError):
    """A folder that another process works in."""


class FolderLock:
    """Keeps a folder for this process until it is closed, collected, or the process ends; see :func:`lock_folder`."""

    def __init__(self, folder: Path) -> None:
        self._file = _acquire(folder)
        self._finalizer = weakref.finalize(self, _release, self._file, folder / LOCK_NAME, os.getpid())

    def close(self) -> None:
        """Give the folder back."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether the folder was given back."""
        return not self._finalizer.alive


def lock_folder(folder: str | os.PathLike[str]) -> FolderLock:
    """Keep a folder for this process; a second call in the same process gives the same lock.

    The operating system ends the lock with the process, also after ``kill -9``: what a dead process left is taken over.

    Args:
        folder: a folder that exists and can be written.

    Raises:
        FolderInUseError: if another process holds it, with its number and machine.
        OSError: if the lock file cannot be written.
    """
    key = os.getpid(), os.path.realpath(folder)
    lock = _held.get(key)
    if lock is None or lock.closed:
        lock = _held[key] = FolderLock(Path(key[1]))
    return lock


def locked_here(folder: str | os.PathLike[str]) -> bool:
    """Whether this process keeps a folder already; who then asks for its lock should not close it."""
    lock = _held.get((os.getpid(), os.path.realpath(folder)))
    return lock is not None and not lock.closed


def _acquire(folder: Path) -> IO[str]:
    path = folder / LOCK_NAME
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open as long as the lock
        try:
            _lock(file)
            # Its holder may have deleted the file between the two lines above.
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                with contextlib.suppress(OSError):  # of a full disk: the lock holds without its text
                    file.seek(0)
                    file.truncate()
                    file.write(f"{os.getpid()} {socket.gethostname()}\n")
                    file.flush()
                return file
        except BlockingIOError as error:
            number, _, host = _holder(file).partition(" ")
            file.close()
            raise FolderInUseError(
                f"{folder} is in use by process {number or 'unknown'} on {host or 'an unknown machine'}; wait until it "
                "ends, stop it, or give another folder"
            ) from error
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[str]) -> None:
    """Lock a file for this process alone.

    Raises:
        BlockingIOError: if another process holds it.
    """
    if sys.platform == "win32":
        try:
            os.lseek(file.fileno(), FAR, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, "locked") from error
    else:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, "locked") from error
            # A file system without locks, as some network ones are: ask the process's number instead.
            number, _, host = _holder(file).partition(" ")
            here = host == socket.gethostname()
            if number.isdigit() and int(number) != os.getpid() and (not here or _alive(int(number))):
                raise BlockingIOError(errno.EAGAIN, "locked") from error


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(300).strip()


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _release(file: IO[Any], path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has a copy of this object, and none of the lock
        with contextlib.suppress(OSError):  # of Windows, where an open file stays; it is taken over as it is
            path.unlink(missing_ok=True)
    file.close()
