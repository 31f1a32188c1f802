"""The few collective operations of a fit in several processes; in one process they do nothing.

They run on the default process group of torch.distributed, which the caller starts (`torchrun` and
`torch.distributed.init_process_group`); gloo and nccl both serve. Every process must call them in the same order.

**Scaling.** Each of R processes has the mean over its own batch, the batches being of one size, and the global loss is
the mean of theirs, L = 1/R sum_r l_r. What all batches share enters through `all_mean`, whose gradient is a mean over
processes too. The gradient of L is then the mean of what `backward()` leaves on each process, `average_gradients_`, and
equals that of one process on all the batches. It is also what DistributedDataParallel computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_mean", "all_sum_", "average_gradients_", "broadcast_", "from_first", "rank", "span", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, from 0; process 0 writes files and reports."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return R, the number of processes."""
    return dist.get_world_size() if _active() else 1


@contextmanager
def _peers_named() -> Iterator[None]:
    """Say what a failed collective means: as a rule another process has ended.

    Raises:
        RuntimeError: for the body's.
    """
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"process {rank()} of {world_size()} waited for the others in vain ({str(error).splitlines()[0]}): one has "
            "died, or did not get here before the process group's timeout. The first error in the others' output is "
            "the cause; fix that and start all of them again, with the same checkpoint_dir if there is one"
        ) from error


def all_sum_(tensor: Tensor) -> Tensor:
    """Replace `tensor` on each process by the sum over all, without grad; the same bits everywhere.

    Raises:
        RuntimeError: if another process has died or does not answer within the process group's timeout.
    """
    if _active():
        with _peers_named():
            dist.all_reduce(tensor)
    return tensor


class _AllMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_sum_(x.detach().clone()) / world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_sum_(grad.contiguous().clone()) / world_size()


def all_mean(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over processes; differentiable, with the gradients averaged over processes as well.

    Raises:
        RuntimeError: if the processes cannot reach each other, as for :func:`all_sum_`.
    """
    mean: Tensor = _AllMean.apply(tensor) if _active() else tensor
    return mean


def average_gradients_(parameters: Iterable[Tensor]) -> None:
    """Replace each `grad` by its mean over processes; those that are None must be None on all.

    Raises:
        RuntimeError: if the processes cannot reach each other, as for :func:`all_sum_`.
    """
    if not _active():
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:  # together: one message costs less than many
        mean = all_sum_(torch.cat([grad.flatten() for grad in grads])) / world_size()
        for grad, part in zip(grads, mean.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def broadcast_(*tensors: Tensor) -> None:
    """Replace tensors on each process by those of process 0, in place.

    Raises:
        RuntimeError: if the processes cannot reach each other, as for :func:`all_sum_`.
    """
    if _active():
        with torch.no_grad(), _peers_named():
            for tensor in tensors:
                same = tensor.contiguous()
                dist.broadcast(same, 0)
                if same is not tensor:
                    tensor.copy_(same)


def from_first(value: Any, device: torch.device | None = None) -> Any:
    """Return process 0's `value` on every process; pickled on the way, so only for what our own processes send.

    Args:
        value: any picklable object, on process 0; ignored on the others.
        device: device that the process group can send from.

    Raises:
        RuntimeError: if the processes cannot reach each other, as for :func:`all_sum_`.
    """
    if not _active():
        return value
    box = [value]
    with _peers_named():
        dist.broadcast_object_list(box, 0, device=device)
    return box[0]


def span(count: int, device: torch.device | str = "cpu") -> tuple[int, int]:
    """Start and total of samples that are spread over the processes, `count` of them here, in the order of the ranks.

    Args:
        count: samples of this process; the shares need not be equal.
        device: device that the process group can send from.
    """
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = count
    shares = all_sum_(counts).tolist()
    return sum(shares[: rank()]), sum(shares)
