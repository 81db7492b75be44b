"""Ranks, first occurrences and ranges over sorted columns, from which the bounded lists are built."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def where(mask: Tensor) -> Tensor:
    """Indices of the true (nonzero) entries of a 1-D tensor. On CPU it uses numpy, which is several times as fast."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def sorted_by(group: Tensor, order_key: Tensor, *, descending: bool = False) -> Tensor:
    """The permutation that sorts by group, then by order_key; equal rows keep their order."""
    first = order_key.sort(stable=True, descending=descending).indices
    return first[group[first].sort(stable=True).indices]


def run_starts(group: Tensor) -> Tensor:
    """bool [n]: true at the first entry of each run of equal entries."""
    starts = torch.ones(len(group), dtype=torch.bool, device=group.device)
    torch.ne(group[1:], group[:-1], out=starts[1:])
    return starts


def first_of_each(value: Tensor) -> Tensor:
    """bool [n]: true at the first entry with each value."""
    ordered, order = value.sort(stable=True)
    first = torch.zeros(len(value), dtype=torch.bool, device=value.device)
    first[order[where(run_starts(ordered))]] = True
    return first


def rank_in_group(group: Tensor, counted: Tensor) -> Tensor:
    """int64 [n]: the number of counted rows before each row in its group. `group` must be sorted."""
    before = counted.long().cumsum(0) - counted.long()
    starts = where(run_starts(group))
    lengths = torch.diff(starts, append=starts.new_tensor([len(group)]))
    return before - torch.repeat_interleave(before[starts], lengths)


def expand_ranges(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(range i, index) for every index low[i] .. high[i]-1 of every range i, in order."""
    lengths = high - low
    owner = torch.repeat_interleave(torch.arange(len(low), device=low.device), lengths)
    first = lengths.cumsum(0) - lengths
    return owner, torch.arange(len(owner), device=low.device) - first[owner] + low[owner]
