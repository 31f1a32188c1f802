"""Runs a function in several processes that form a process group."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _start(rank: int, worker: Callable[..., Any], folder: Path, count: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = (folder / "rendezvous").as_uri()
    dist.init_process_group("gloo", store, timedelta(seconds=60), rank=rank, world_size=count)
    try:
        torch.save(worker(*args), folder / f"rank{rank}.pt")
    finally:
        time.sleep(0.1)  # torch 2.6 hangs if gloo's group is destroyed while its thread still frees the last tensor
        dist.destroy_process_group()


def run_processes(worker: Callable[..., Any], folder: Path, *args: Any, count: int = 2) -> list[Any]:
    """What `worker(*args)`, a function of a module, returns in each of `count` processes of a gloo group on the CPU.

    None for a process that ended itself. `folder` must be new for each call.
    """
    mp.spawn(_start, (worker, folder, count, args), count)
    files = [folder / f"rank{rank}.pt" for rank in range(count)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]
