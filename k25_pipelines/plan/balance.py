"""Packs -> ranks: nodes take contiguous runs of a step's packs, the ranks of a node share its run by cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np

TOKEN_COST, PAIR_COST, PATCH_COST = 64_000, 1, 800
"""Millions of operations of the model at scale (32 billion active parameters, a vision tower of 0.4 billion): of a
token, of a pair of tokens that see each other, of a patch. Balance needs only their ratios."""


def contiguous_packs(num_packs: int, rank: int, num_ranks: int) -> range:
    """Return which packs of a step a rank takes: contiguous runs whose lengths differ by at most one.

    `num_ranks` need not divide `num_packs`; with more ranks than packs some ranks take none.

    Raises:
        ValueError: the rank lies outside [0, num_ranks).
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} lies outside [0, {num_ranks})")
    return range(rank * num_packs // num_ranks, (rank + 1) * num_packs // num_ranks)


def pack_costs(rows: Mapping[str, Any] | Any) -> np.ndarray:
    """Return what each pack of a step costs to train on, int64 [packs], from 0 on: all of them stand in the rows.

    Args:
        rows: columns `pack`, `num_tokens` and `patches` of one step, as arrays or an Arrow table. A
            sample costs its tokens, the pairs of them that attention sees, and its patches.
    """
    pack, tokens, patches = (np.asarray(rows[name]).astype(np.int64) for name in ("pack", "num_tokens", "patches"))
    costs = np.zeros(int(pack.max(initial=-1)) + 1, dtype=np.int64)
    np.add.at(costs, pack, TOKEN_COST * tokens + PAIR_COST * tokens * tokens + PATCH_COST * patches)
    return costs


def rank_packs(costs: np.ndarray, rank: int, num_ranks: int, ranks_per_node: int = 1) -> np.ndarray:
    """Return which packs of a step a rank takes, ascending; over all ranks each pack once.

    A node takes the contiguous run of its ranks together, so that it fetches few chunks; inside it
    the costliest pack goes to the rank with the least load so far, then the costliest and another
    rank exchange packs while that makes the costlier of the two cheaper. Ties go by number.

    Args:
        costs: int64 [packs], of all packs of the step.
        rank: which rank, in [0, num_ranks).
        num_ranks: how many there are; the last node may have fewer than the others.
        ranks_per_node: neighbouring ranks that share a node; 1: contiguous runs, whatever the costs.

    Raises:
        ValueError: the rank lies outside [0, num_ranks), or a node has no rank.

    Source: Graham 1969, longest processing time first.
    """
    if ranks_per_node < 1:
        raise ValueError(f"ranks_per_node is {ranks_per_node}; a node has at least 1")
    run = contiguous_packs(len(costs), rank, num_ranks)
    first_rank = rank - rank % ranks_per_node
    num_own = min(ranks_per_node, num_ranks - first_rank)
    if num_own > 1:
        first = contiguous_packs(len(costs), first_rank, num_ranks).start
        last = contiguous_packs(len(costs), first_rank + num_own - 1, num_ranks).stop
        own = shared_out(np.asarray(costs, dtype=np.int64)[first:last], num_own)
        return first + np.flatnonzero(own == rank - first_rank)
    return np.array(run, dtype=np.int64)


def shared_out(costs: np.ndarray, num_ranks: int) -> np.ndarray:
    """Return the rank of each pack, int64 [packs]: longest first to the least load, then refined by exchanges."""
    rank_of = np.zeros(len(costs), dtype=np.int64)
    loads = np.zeros(num_ranks, dtype=np.int64)
    counts = np.zeros(num_ranks, dtype=np.int64)
    for pack in np.argsort(-costs, kind="stable").tolist():
        rank = int(np.lexsort((counts, loads))[0])  # also packs of no cost are spread
        rank_of[pack] = rank
        loads[rank] += costs[pack]
        counts[rank] += 1
    for _ in range(4 * len(costs)):
        if not _exchanged(costs, rank_of, loads):
            break
    return rank_of


def _exchanged(costs: np.ndarray, rank_of: np.ndarray, loads: np.ndarray) -> bool:
    """Move a pack of the costliest rank, or exchange it for a cheaper one, where that helps most; or return False."""
    heavy = int(np.argmax(loads))
    given = np.flatnonzero(rank_of == heavy)
    taken = np.flatnonzero(rank_of != heavy)
    other = np.concatenate([rank_of[taken], np.arange(len(loads))])  # at last nothing is taken in return
    moved = costs[given][:, None] - np.concatenate([costs[taken], np.zeros(len(loads), dtype=np.int64)])[None]
    after = np.maximum(loads[heavy] - moved, loads[other][None] + moved)
    after[:, other == heavy] = loads[heavy]
    best = int(np.argmin(after))
    row, column = divmod(best, after.shape[1])
    if not after.size or after[row, column] >= loads[heavy]:
        return False
    rank = int(other[column])
    loads[heavy] -= moved[row, column]
    loads[rank] += moved[row, column]
    rank_of[given[row]] = rank
    if column < len(taken):
        rank_of[taken[column]] = heavy
    return True
