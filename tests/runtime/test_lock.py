"""A folder is one process's: also after forks, kills, and where the file system has no locks."""

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from learned_aug.fit.checkpoint import Checkpoint, CheckpointError
from learned_aug.runtime import lock as locking
from learned_aug.runtime.lock import LOCK_NAME, FolderInUseError, lock_folder


@pytest.fixture
def other(tmp_path):
    """Another process that keeps the folder."""
    command = [sys.executable, "-m", "tests.cli.holder", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_process_shares_its_lock_and_leaves_no_file(tmp_path):
    one, two = lock_folder(tmp_path), lock_folder(str(tmp_path))
    assert one is two
    assert (tmp_path / LOCK_NAME).read_text().startswith(f"{os.getpid()} ")
    one.close()
    assert one.closed
    assert list(tmp_path.iterdir()) == []
    again = lock_folder(tmp_path)
    assert again is not one
    del one, two, again
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_the_folder_is_the_same_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert lock_folder(tmp_path / "real") is lock_folder(tmp_path / "link")


def test_another_process_is_named_and_after_kill_9_its_folder_is_free(tmp_path, other):
    with pytest.raises(FolderInUseError, match=rf"in use by process {other.pid} on .*; wait until it ends"):
        lock_folder(tmp_path)
    with pytest.raises(CheckpointError, match=rf"in use by process {other.pid}"):
        Checkpoint(tmp_path, {}).read()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK_NAME).exists()
    checkpoint = Checkpoint(tmp_path, {})
    assert checkpoint.read() is None
    checkpoint.write({"a": 1})
    checkpoint.close()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_checkpoint_of_a_folder_that_cannot_be_written_is_still_read(tmp_path, monkeypatch):
    first = Checkpoint(tmp_path, {})
    first.write({"a": 1})

    def refuse(folder):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(sys.modules[Checkpoint.__module__], "lock_folder", refuse)
    assert Checkpoint(tmp_path, {}).read() == {"a": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks everywhere")
def test_where_locks_are_missing_the_process_number_decides(tmp_path, monkeypatch, other):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(locking.fcntl, "lockf", unsupported)
    with pytest.raises(FolderInUseError, match=rf"process {other.pid}"):
        lock_folder(tmp_path)
    other.kill()
    other.wait()
    lock_folder(tmp_path).close()
    (tmp_path / LOCK_NAME).write_text("1 another-machine\n")  # which cannot be asked
    with pytest.raises(FolderInUseError, match="process 1 on another-machine"):
        lock_folder(tmp_path)


def child(folder, queue):
    try:
        lock_folder(folder)
    except FolderInUseError:
        queue.put("refused")
    else:
        queue.put("taken")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_neither_holds_nor_ends_the_lock(tmp_path):
    lock = lock_folder(tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=child, args=(tmp_path, queue))
    worker.start()
    assert queue.get() == "refused"
    worker.join()
    assert (tmp_path / LOCK_NAME).exists()
    lock.close()
