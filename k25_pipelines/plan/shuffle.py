"""The endless order of a source: position in a lane -> (line, epoch), by arithmetic, in windows of whole chunks.

Letters: C chunks of K lines make an epoch (the last chunk may be ragged); L lanes share the visits.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd

import numpy as np

from k25_pipelines.keys import random_bits, random_key
from k25_pipelines.plan.permutation import FISHER_YATES_BELOW, permute, small_shuffle

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
    if not rest.size:
        return rest, epoch
    bounds = _run_bounds(epoch, window)
    visit, row = _window_places(order, lane, bounds, epoch=epoch, window=window, inside=inside)
    whole = order.num_lines // order.chunk_lines
    bounds = _run_bounds(epoch, epoch)
    for first, last in pairwise(bounds.tolist()):
        moved = first + np.flatnonzero(visit[first:last] < whole)
        visit[moved] = permute(visit[moved], whole, _key("chunks", order.seed, order.dataset, int(epoch[first])))
    return visit * order.chunk_lines + row, epoch


_key = lru_cache(maxsize=1024)(random_key)


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


def _run_bounds(epoch: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return where runs of neighbours of one epoch and window begin, and the end."""
    edge = np.flatnonzero((np.diff(epoch) != 0) | (np.diff(window) != 0)) + 1
    return np.concatenate([[0], edge, [epoch.size]])


def _window_places(
    order: Order, lane: int, bounds: np.ndarray, *, epoch: np.ndarray, window: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return visit of the epoch and row in the chunk of each place, a run of one window at a time."""
    num_chunks, chunk_lines = order.num_chunks, order.chunk_lines
    ragged = num_chunks * chunk_lines - order.num_lines
    epoch, window = epoch[bounds[:-1]], window[bounds[:-1]]
    first_visit = (lane - epoch * num_chunks) % order.lanes + order.lanes * WINDOW_VISITS * window
    num_visits = np.minimum(WINDOW_VISITS, -(-(num_chunks - first_visit) // order.lanes))
    has_last = first_visit + order.lanes * (num_visits - 1) == num_chunks - 1
    size = num_visits * chunk_lines - ragged * has_last
    keys = random_bits(_key("window", order.seed, order.dataset), epoch, lane, window)
    place = np.empty_like(inside)
    runs = zip(bounds[:-1].tolist(), bounds[1:].tolist(), size.tolist(), keys.tolist(), strict=True)
    for first, last, n, key in runs:
        mine = inside[first:last]
        place[first:last] = small_shuffle(n, key)[mine] if n < FISHER_YATES_BELOW else permute(mine, n, key)
    visit, row = np.divmod(place, chunk_lines)
    return np.repeat(first_visit, np.diff(bounds)) + order.lanes * visit, row
