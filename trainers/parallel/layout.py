"""Which rank encodes which medium of a step: counts in, layouts out; no torch, no communication.

The global batch's media stand in global order: those of rank 0, micro-batch by micro-batch, then those of rank 1, ...
"""

# Shapes: M media of the global batch.

import heapq
from dataclasses import dataclass

import numpy as np

from trainers.config import VisionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the media are encoded."""

    rank: np.ndarray
    """int64 [M] the rank that encodes each medium."""
    call: np.ndarray
    """int64 [M] which of that rank's encoder calls it is in; in global order a rank's calls never go down."""


def balanced(work: np.ndarray, num_ranks: int, *, call_work: int | None = None) -> Layout:
    """Return the layout of the longest-processing-time rule: heaviest first, each to the rank that has least.

    No rank then has more than (4/3 - 1/(3 ranks)) times the least possible maximum. Equal media go in global order,
    equal ranks by number: the answer depends on the arguments alone, so every rank works it out for itself.

    Args:
        work: int64 [M], what each medium costs: its patches, or `volume_work`.
        num_ranks: ranks that encode.
        call_work: most work of one encoder call, which bounds memory while gradients are computed; a medium that is
            larger is a call of its own. None: one call a rank.

    Source: Graham 1969, "Bounds on Multiprocessing Timing Anomalies".
    """
    rank = np.zeros(len(work), np.int64)
    least = [(0, number) for number in range(num_ranks)]
    for medium in np.argsort(-work, kind="stable").tolist():
        load, number = least[0]
        rank[medium] = number
        heapq.heapreplace(least, (load + int(work[medium]), number))
    return Layout(rank=rank, call=_calls(work, rank, num_ranks, call_work))


def coupled(owner: np.ndarray, microbatch: np.ndarray) -> Layout:
    """Return the layout of a coupled model: each rank encodes its own media, one call a micro-batch.

    Args:
        owner: int64 [M] the rank whose batch holds each medium.
        microbatch: int64 [M] which of the owner's micro-batches does.
    """
    return Layout(rank=owner.copy(), call=microbatch.copy())


def loads(layout: Layout, work: np.ndarray, num_ranks: int) -> np.ndarray:
    """Return int64 [num_ranks]: the work of each rank under a layout."""
    return np.bincount(layout.rank, weights=work, minlength=num_ranks).astype(np.int64)


def volume_work(patches: np.ndarray, config: VisionConfig) -> np.ndarray:
    """Return int64 [M] multiply-adds of the tower's forward for volumes of that many patches.

    Linear in the patches but for attention, which looks at every pair in a volume: for large pictures patches alone
    are no measure of the work.
    """
    matrices = 4 * config.width**2 + 2 * config.width * config.mlp
    embed = 3 * config.patch**2 * config.width
    return patches * (config.layers * matrices + embed) + config.layers * 2 * config.width * patches**2


def _calls(work: np.ndarray, rank: np.ndarray, num_ranks: int, call_work: int | None) -> np.ndarray:
    call = np.zeros(len(work), np.int64)
    if call_work is None:
        return call
    number, held = [0] * num_ranks, [0] * num_ranks
    for medium, (own, size) in enumerate(zip(rank.tolist(), work.tolist(), strict=True)):
        if held[own] and held[own] + size > call_work:
            number[own], held[own] = number[own] + 1, 0
        held[own] += size
        call[medium] = number[own]
    return call
