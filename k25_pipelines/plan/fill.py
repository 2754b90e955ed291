"""Samples in the order they were drawn -> packs that are full and still mixed.

Best fit decreasing fills packs of a wide window well, but puts equal lengths together: long
samples in the first packs, short ones in the last, media where their length falls. Here a pack
begins with the next samples of the draw order, as they come, and only its end is chosen: when
the next sample does not fit, the longest one of the window that does, or the two that fill the
room best, close the pack. So lengths mix inside packs as they do in the draw order, media stand as
evenly as the blend drew them, carried samples leave first, and a window of 1,024 samples is filled
no worse than by best fit decreasing, a narrow one better.
"""

from typing import Any

import numpy as np
from numba import njit

GAP_SHIFT = 10
"""Room of up to capacity / 2^10 is left as it is rather than filled by two samples."""
MOST_TRIES = 64
"""Samples tried, from the longest down, until one keeps to the further limits of a pack."""


def fill(lengths: np.ndarray, capacity: int, limits: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, int]:
    """Return which pack each sample goes to and how many packs there are, numbered as they are filled.

    Args:
        lengths: int64 [n], each in [0, capacity], in the order drawn [tokens].
        capacity: room of a pack [tokens].
        limits: int64 [n, k], what samples need besides tokens (patches, media), none above its most.
        most: int64 [k], most of each in one pack.

    Returns:
        (pack_of_sample int64 [n], num_packs).
    """
    by_length = np.argsort(lengths, kind="stable")
    return _fill(lengths, by_length, capacity, limits, most)


@njit(cache=True, nogil=True)
def _fill(
    lengths: np.ndarray, by_length: np.ndarray, capacity: int, limits: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return the packs. Place i + 1 of `below` leads to the longest free sample at or below rank i; 0: none."""
    num = lengths.size
    packs = np.full(num, -1, dtype=np.int64)
    ranked = lengths[by_length]
    rank = np.empty(num, dtype=np.int64)
    rank[by_length] = np.arange(num)
    below, above = np.arange(num + 1), np.arange(num + 2)
    used = np.zeros(most.size, dtype=np.int64)
    head, pack = 0, 0
    while True:
        while head < num and packs[head] >= 0:
            head += 1
        if head == num:
            return packs, pack
        room, used[:] = capacity, 0
        for sample in range(head, num):
            if packs[sample] >= 0:
                continue
            if lengths[sample] > room or not _fits(limits[sample], used, most):
                break
            room -= _take(sample, rank[sample], pack, lengths, limits, packs, below, above, used)
        while room > 0:
            one = _longest(room, ranked, by_length, below, limits, used, most)
            if one < 0:
                break
            two = -1
            if room - ranked[one] > capacity >> GAP_SHIFT:
                one, two = _best_pair(room, one, ranked, by_length, below, above, limits, used, most)
            for place in (one, two):
                if place >= 0:
                    sample = by_length[place]
                    room -= _take(sample, place, pack, lengths, limits, packs, below, above, used)
        pack += 1


@njit(cache=True, nogil=True)
def _fits(needs: np.ndarray, used: np.ndarray, most: np.ndarray) -> bool:
    """Whether a pack has room for what a sample needs besides tokens."""
    fits = True
    for k in range(most.size):
        fits = fits and used[k] + needs[k] <= most[k]
    return fits


@njit(cache=True, nogil=True)
def _take(
    sample: int,
    place: int,
    pack: int,
    lengths: np.ndarray,
    limits: np.ndarray,
    packs: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    used: np.ndarray,
) -> int:
    """Put a sample of that rank into the pack; return its length."""
    packs[sample] = pack
    below[place + 1], above[place] = place, place + 1
    for k in range(used.size):
        used[k] += limits[sample, k]
    return lengths[sample]


@njit(cache=True, nogil=True)
def _find(links: np.ndarray, place: Any) -> Any:
    """Return where links lead from a place, and shorten the way."""
    end = place
    while links[end] != end:
        end = links[end]
    while links[place] != end:
        links[place], place = end, links[place]
    return end


@njit(cache=True, nogil=True)
def _longest(
    room: int,
    ranked: np.ndarray,
    by_length: np.ndarray,
    below: np.ndarray,
    limits: np.ndarray,
    used: np.ndarray,
    most: np.ndarray,
) -> int:
    """Return the rank of the longest free sample that fits, or -1."""
    place = _find(below, np.searchsorted(ranked, room, side="right"))
    for _ in range(MOST_TRIES):
        if place == 0 or _fits(limits[by_length[place - 1]], used, most):
            return place - 1
        place = _find(below, place - 1)
    return -1


@njit(cache=True, nogil=True)
def _best_pair(
    room: int,
    one: int,
    ranked: np.ndarray,
    by_length: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    limits: np.ndarray,
    used: np.ndarray,
    most: np.ndarray,
) -> tuple[int, int]:
    """Return the ranks of the two free samples that fill the room best, or (one, -1) where none beat `one` alone."""
    best, long, short = ranked[one], one, -1
    low, high = _find(above, 0), _find(below, one + 1) - 1
    both = used.copy()
    while low < high:
        total = ranked[low] + ranked[high]
        if total > room:
            high = _find(below, high) - 1
            continue
        if total > best:
            for k in range(used.size):
                both[k] = used[k] + limits[by_length[high], k]
            if _fits(limits[by_length[high]], used, most) and _fits(limits[by_length[low]], both, most):
                best, long, short = total, high, low
                if best == room:
                    break
        low = _find(above, low + 1)
    return long, short
