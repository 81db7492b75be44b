"""Data parallel training: the exchanges between processes that torchrun started. In a single process they do nothing.

Each process holds the whole SAE and takes every world_size-th vector of a batch. Gradients are averaged, so the weights
stay the same in all processes. The group is torch.distributed's, made from torchrun's environment, with nccl on GPUs
and gloo elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> None:
    """Join the group that torchrun announced. Does nothing without torchrun, or if the group is joined already."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(world_size())


def total(tensor: Tensor) -> Tensor:
    """Replace the tensor, in place, by its sum over the processes, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def total_rows(rows: int, device: torch.device) -> int:
    """The sum of a number of rows over the processes. It is the same in all of them, so a decision that leads to an
    exchange can hang on it."""
    return int(total(torch.tensor(rows, device=device))) if world_size() > 1 else rows


def smallest(values: Tensor) -> Tensor:
    """The smallest of all processes' values, []; infinity if there are none."""
    least = values.min() if len(values) else torch.full((), torch.inf, device=values.device)
    if world_size() > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


def gathered(rows: Tensor) -> Tensor:
    """The rows [n, ...] of all processes, one process after the other. n may differ between them."""
    if world_size() == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(size) for size in sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
