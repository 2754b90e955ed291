"""The endless order of a source: position in a lane -> (line, epoch), by arithmetic, in windows of whole chunks.

Letters: C chunks of K lines make an epoch (the last chunk may be ragged); L lanes share the visits.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd

import numpy as np

from k25_pipelines.keys import random_key
from k25_pipelines.plan.permutation import permute

WINDOW_VISITS = 16
"""Chunk visits of one epoch whose samples are mixed in a lane; part of PLAN_VERSION."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What names the order of one source."""

    dataset: str
    seed: int
    num_lines: int
    """Lines of the manifest."""
    chunk_lines: int
    """K, lines of a chunk; the ragged last chunk has what is left."""
    lanes: int
    """L, lanes that the chunk visits are dealt to."""

    @property
    def num_chunks(self) -> int:
        """C, chunks of an epoch, the ragged one included."""
        return -(-self.num_lines // self.chunk_lines)


def lane_samples(order: Order, lane: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return line and epoch of the samples at the given positions of a lane.

    A keyed bijection permutes the chunks of each epoch (a ragged last chunk keeps the last
    place); the endless sequence of chunk visits is dealt round-robin to the lanes; in a lane,
    WINDOW_VISITS visits of one epoch form a window whose samples another key permutes. Over
    the lanes together every epoch visits each line exactly once.

    Args:
        order: the source's order.
        lane: which lane, in [0, order.lanes).
        position: int64 [n], positions in the lane, from 0 without an end [samples].

    Returns:
        (line int64 [n], epoch int64 [n]).

    Source: two-level block shuffle as in MosaicML Streaming and Grain, with windows per lane.
    """
    starts = _epoch_starts(order.num_lines, order.chunk_lines, order.lanes, lane)
    cycle, rest = np.divmod(np.asarray(position, dtype=np.int64), starts[-1])
    epoch_in_cycle = np.searchsorted(starts, rest, side="right") - 1
    epoch = cycle * (len(starts) - 1) + epoch_in_cycle
    window, inside = np.divmod(rest - starts[epoch_in_cycle], WINDOW_VISITS * order.chunk_lines)
    line = np.empty_like(rest)
    for first, last in _runs(epoch, window):
        line[first:last] = _window_lines(
            order, lane, epoch=int(epoch[first]), window=int(window[first]), inside=inside[first:last]
        )
    return line, epoch


@lru_cache(maxsize=4096)
def _epoch_starts(num_lines: int, chunk_lines: int, lanes: int, lane: int) -> np.ndarray:
    """Return the lane's first position of each epoch of a cycle, then the cycle's length.

    After lanes / gcd(chunks, lanes) epochs the deal starts again at lane 0: a cycle.
    """
    num_chunks = -(-num_lines // chunk_lines)
    epoch = np.arange(lanes // gcd(num_chunks, lanes))
    first_visit = (lane - epoch * num_chunks) % lanes
    num_visits = np.maximum(0, -(-(num_chunks - first_visit) // lanes))
    has_last = (num_visits > 0) & ((num_chunks - 1 - first_visit) % lanes == 0)
    num_samples = num_visits * chunk_lines - has_last * (num_chunks * chunk_lines - num_lines)
    return np.concatenate([[0], np.cumsum(num_samples)])


def _runs(epoch: np.ndarray, window: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last) of the runs of neighbours that lie in one window."""
    if not epoch.size:
        return []
    edge = np.flatnonzero((np.diff(epoch) != 0) | (np.diff(window) != 0)) + 1
    bounds = [0, *edge.tolist(), epoch.size]
    return list(pairwise(bounds))


def _window_lines(order: Order, lane: int, *, epoch: int, window: int, inside: np.ndarray) -> np.ndarray:
    """Return the lines at the given places of one window."""
    num_chunks, chunk_lines = order.num_chunks, order.chunk_lines
    ragged = num_chunks * chunk_lines - order.num_lines
    first_visit = (lane - epoch * num_chunks) % order.lanes + order.lanes * WINDOW_VISITS * window
    num_visits = min(WINDOW_VISITS, -(-(num_chunks - first_visit) // order.lanes))
    has_last = first_visit + order.lanes * (num_visits - 1) == num_chunks - 1
    size = num_visits * chunk_lines - (ragged if has_last else 0)
    place = permute(inside, size, random_key("window", order.seed, order.dataset, epoch, lane, window))
    visit, row = np.divmod(place, chunk_lines)
    return _chunk_at(order, epoch, first_visit + order.lanes * visit) * chunk_lines + row


def _chunk_at(order: Order, epoch: int, visit: np.ndarray) -> np.ndarray:
    """Return which chunk each visit of an epoch reads."""
    whole = order.num_lines // order.chunk_lines
    chunk = visit.copy()
    moved = visit < whole
    chunk[moved] = permute(visit[moved], whole, random_key("chunks", order.seed, order.dataset, epoch))
    return chunk
