"""Who keeps what: sizes in, each rank's pieces out. Whole matrices for Muon, cuts anywhere for AdamW. No tensors.

ZeRO-1 cuts one flat run of all weights into equal parts, and so through matrices; Newton-Schulz needs them whole.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.optim.rules import Rule, matrices_of


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Piece:
    """A run of one weight's elements, row by row."""

    weight: int
    """Which weight, by its place in the list."""
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Every rank's pieces."""

    matrices: list[list[Piece]]
    rest: list[list[Piece]]


def layout_of(rules: Sequence[Rule], shapes: Sequence[Sequence[int]], num_ranks: int) -> Layout:
    """Return who owns what of weights: matrices whole, then what AdamW moves, cut so that all own equally much."""
    pieces, flat = [], []
    for i, (rule, shape) in enumerate(zip(rules, shapes, strict=True)):
        if rule.optimizer == "adamw":
            flat.append((i, math.prod(shape)))
            continue
        number, rows, columns = matrices_of(rule, shape)
        size = rows * columns
        pieces += [Piece(weight=i, start=j * size, stop=(j + 1) * size) for j in range(number)]
    owners = share_matrices([piece.size for piece in pieces], num_ranks)
    matrices: list[list[Piece]] = [[] for _ in range(num_ranks)]
    for piece, owner in zip(pieces, owners, strict=True):
        matrices[owner].append(piece)
    loads = [sum(piece.size for piece in own) for own in matrices]
    return Layout(matrices=matrices, rest=cut(flat, fill_up(loads, sum(size for _, size in flat))))


def share_matrices(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """Return the rank that owns each matrix: the largest first, to whoever has least; ties go to the lower rank.

    Args:
        sizes: elements of each.
        num_ranks: how many share them.

    Source: Graham 1969, longest processing time first: the fullest rank has at most 4/3 of the best there is.
    """
    owners = [0] * len(sizes)
    heap = [(0, rank) for rank in range(num_ranks)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, owners[i] = heapq.heappop(heap)
        heapq.heappush(heap, (load + sizes[i], owners[i]))
    return owners


def fill_up(loads: Sequence[int], total: int) -> list[int]:
    """Return how many of `total` elements each rank takes so that the loads end as level as they can be.

    Args:
        loads: elements each rank has already.
        total: elements to give out; all are.
    """
    order = sorted(range(len(loads)), key=lambda rank: (loads[rank], rank))
    count = next(
        k for k in range(len(order), 0, -1) if sum(loads[order[k - 1]] - loads[rank] for rank in order[:k]) <= total
    )
    level, left = divmod(total + sum(loads[rank] for rank in order[:count]), count)
    taken = [0] * len(loads)
    for i, rank in enumerate(order[:count]):
        taken[rank] = level - loads[rank] + (i < left)
    return taken


def cut(sizes: Sequence[tuple[int, int]], taken: Sequence[int]) -> list[list[Piece]]:
    """Return each rank's pieces of some weights that are cut one after another.

    Args:
        sizes: (weight, elements) of each.
        taken: elements of each rank; they sum to those of the weights.
    """
    pieces: list[list[Piece]] = [[] for _ in taken]
    rank, left = 0, taken[0] if taken else 0
    for weight, size in sizes:
        start = 0
        while start < size:
            while left == 0:
                rank, left = rank + 1, taken[rank + 1]
            stop = min(size, start + left)
            pieces[rank].append(Piece(weight=weight, start=start, stop=stop))
            start, left = stop, left - (stop - start)
    return pieces


def buckets(pieces: Sequence[Piece], size: int) -> list[list[Piece]]:
    """Return the pieces in their order, cut into buckets of `size` elements; the last may have fewer."""
    filled: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            if room == 0:
                filled.append([])
                room = size
            stop = min(piece.stop, start + room)
            filled[-1].append(Piece(weight=piece.weight, start=start, stop=stop))
            start, room = stop, room - (stop - start)
    return filled
