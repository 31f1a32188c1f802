"""The trainings of a comparison, one after the other or in several processes of this machine."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from threading import Thread, current_thread, main_thread
from typing import Any

import torch
from tqdm.auto import tqdm

from learned_aug.augmenter import Augmenter
from learned_aug.runtime.events import OnEvent
from learned_aug.training.comparison import Training

__all__ = ["Job", "Result", "Run", "results"]

Job = tuple[str, int]
"""Arm and seed."""
Result = tuple[Training, Augmenter | None]
"""What was measured, and the networks of the augmentation, where it has any."""
Run = Callable[..., Result]
"""From a job, and what is told of its steps, to its result."""


def results(run: Run, jobs: list[Job], processes: int, listener: Callable[[Job], OnEvent]) -> Iterator[Result]:
    """Yield the results of all jobs as they end, in this process or in several.

    After a failure, or Ctrl-C, those that run already still end, and are yielded, since what they cost would be lost.

    Args:
        run: runs a job; with several processes it is pickled.
        jobs: in the order in which they begin.
        processes: how many share them.
        listener: from a job to what is told of its steps, with one process.

    Raises:
        ValueError: if what several processes need cannot be pickled.
        RuntimeError: if one of several processes is killed.
        KeyboardInterrupt: at the second Ctrl-C at once, at the first when those that run have ended.
    """
    if processes <= 1:
        for job in jobs:
            yield run(job, listener(job))
        return
    threads = max(1, torch.get_num_threads() // processes)
    others = set(active_children())
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (run, threads))
    failure: BaseException | None = None
    waiting: set[Future[Result]] = set()
    left = iter(jobs)
    try:
        while True:
            if failure is None:
                # No more than can run, for what a pool has queued for its processes cannot be taken back.
                with _deaf():
                    waiting |= {pool.submit(_work, job) for job in itertools.islice(left, processes - len(waiting))}
            if not waiting:
                break
            done: set[Future[Result]] = set()
            try:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt as interrupt:
                if failure is not None:
                    raise
                failure = interrupt
                tqdm.write(f"interrupted: {len(waiting)} trainings that run end first; again drops them", sys.stderr)
            for future in done:
                if (error := future.exception()) is None:
                    yield future.result()
                elif failure is None:
                    failure = error
    except KeyboardInterrupt:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    except (AttributeError, TypeError, PicklingError, BrokenProcessPool) as error:  # of handing out the work
        failure = error
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        failure = _named(failure)
        raise failure


@contextmanager
def _deaf() -> Iterator[None]:
    """Start the processes of the body deaf to Ctrl-C, of which a terminal tells them all, also while they import."""
    if current_thread() is not main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) or signal.SIG_DFL  # None of one that is not Python's
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _named(error: BaseException) -> BaseException:
    """Say what to do about an error of the processes themselves; that of a training is left as it came."""
    named: Exception
    if isinstance(error, (AttributeError, TypeError, PicklingError)) and "pickle" in str(error):
        named = ValueError(
            f"with jobs > 1 all that is compared must be picklable, got what is not ({error}); define functions at the "
            "top of a module instead of as lambdas, or use jobs=1"
        )
    elif isinstance(error, BrokenProcessPool):
        named = RuntimeError(
            "a process of jobs= ended before its training did, as when memory runs out, or where a script has no "
            '`if __name__ == "__main__":` around its call; use fewer jobs, or jobs=1'
        )
    else:
        return error
    named.__cause__ = error
    return named


_run: Any = None


def _start(run: Run, threads: int) -> None:
    """Prepare a process for trainings; it ends with the one that started it."""
    global _run
    _run = run
    torch.set_num_threads(threads)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(job: Job) -> Result:
    result: Result = _run(job)
    return result
