"""Collectives by which N processes compute the same as one process on the same global batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def world_size() -> int:
    """Number of processes of the training; 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process in the training; 0 without ``torch.distributed``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    """y = sum_r x_r on every process. Every process's loss sees y, so dL/dx_r = sum_s dL_s/dy: a sum over processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(value: Tensor) -> Tensor:
    """Differentiable sum over processes, equal on all of them; with one process, the tensor itself.

    Args:
        value: any shape, the same on all processes.

    Returns:
        The sum, of the shape of ``value``. Its gradient is the sum over processes of the gradients that reach it.
    """
    if world_size() == 1:
        return value
    result: Tensor = _AllReduceSum.apply(value)
    return result


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """Mean over processes, without gradient; with one process, the tensor itself.

    Distributed data parallel *averages* the gradients of W processes. To minimise a global ratio
    ``sum_r s_r / sum_r c_r`` exactly, process r must therefore minimise ``s_r / ((sum_r c_r) / W)``. This function
    computes the denominator.
    """
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the values of the first process to all processes, in place; with one process, do nothing.

    Args:
        tensors: the same shapes in the same order on all processes, on a device that their backend supports.
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@torch.no_grad()
def share_of_batch(batch_size: int, device: torch.device | str = "cpu") -> tuple[int, int]:
    """Position of this process's samples in the global batch, and the size of the global batch.

    Args:
        batch_size: number of samples in this process; it may differ between processes.
        device: device for the exchange of sizes; the backend of the processes must support it.

    Returns:
        Number of samples in the processes before this one, and in all processes.
    """
    if world_size() == 1:
        return 0, batch_size
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
    sizes[rank()] = batch_size
    dist.all_reduce(sizes)
    counts = [int(size) for size in sizes.tolist()]
    return sum(counts[: rank()]), sum(counts)


def gather_rows(value: Tensor) -> Tensor:
    """The rows of all processes, in the order of the global batch; differentiable.

    Processes may have different numbers of rows.

    Args:
        value: ``(B, C)``.

    Returns:
        ``(global B, C)``, the same on each process; with one process, the tensor itself. The gradient with respect to
        the rows of a process is the sum over processes of the gradients that reach them.
    """
    if world_size() == 1:
        return value
    start, total = share_of_batch(len(value), value.device)
    # A sum over processes to which only one process contributes a nonzero value for each row.
    return all_reduce_sum(F.pad(value, (0, 0, start, total - start - len(value))))
