"""Rows to other ranks and back: one collective each, any number of rows for any rank, over gloo or NCCL.

Every rank of the group makes the same calls in the same order, with no rows if it has none.
"""

# Shapes: R ranks of the group, n rows here, m rows received.

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
"""None is the group of all ranks."""


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> Tensor:
    """Return the rows that others have for this rank, [m, ...], those of the first rank first.

    Args:
        rows: [n, ...] those for rank 0, then those for rank 1, ...
        send: [R] rows for each rank; they sum to n.
        receive: [R] rows from each rank, which must be what that rank sends.
        group: the ranks; one alone needs no process group.
    """
    if len(send) == 1:
        return rows
    width = math.prod(rows.shape[1:])
    out = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(
        out.view(-1),
        rows.contiguous().view(-1),
        [count * width for count in receive],
        [count * width for count in send],
        group=group,
    )
    return out


class Exchange(torch.autograd.Function):
    """`exchange` whose gradient goes back the way its rows came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> Tensor:
        """Return `exchange(rows, send, receive, group)`."""
        ctx.way = (send, receive, group)
        return exchange(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the rows that were sent."""
        send, receive, group = ctx.way
        return exchange(gradients[0], receive, send, group), None, None, None


def gather_rows(rows: np.ndarray, group: Group, device: torch.device) -> list[np.ndarray]:
    """Return every rank's int64 [n, C] rows, in the order of the ranks; each rank has a number of its own."""
    return [part.cpu().numpy() for part in gather_tensors(torch.from_numpy(rows).to(device), group)]


def gather_tensors(rows: Tensor, group: Group = None) -> list[Tensor]:
    """Return every rank's rows [n, ...], without gradient and in the order of the ranks; n is each rank's own."""
    num_ranks, rows = ranks_of(group), rows.detach()
    if num_ranks == 1:
        return [rows]
    counts = torch.empty(num_ranks, dtype=torch.int64, device=rows.device)
    dist.all_gather_single(counts, torch.tensor([len(rows)], device=rows.device), group=group)
    most = int(counts.max())
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    whole = rows.new_empty(num_ranks * most, *rows.shape[1:])
    dist.all_gather_single(whole, padded, group=group)
    parts = whole.view(num_ranks, most, *rows.shape[1:])
    return [part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]


def ranks_of(group: Group) -> int:
    """Return how many ranks the group has; 1 where no process group was made."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank_in(group: Group) -> int:
    """Return this process's place in the group; 0 where no process group was made."""
    return dist.get_rank(group) if dist.is_initialized() else 0
