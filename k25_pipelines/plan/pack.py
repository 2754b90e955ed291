"""Lengths -> packs, by best fit decreasing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

LARGEST_TABLE = 1 << 20
"""Up to this capacity the open packs of each space are kept in a table, beyond it in a sorted list."""

_LOW = np.uint64(63)
_SIX = np.uint64(6)
_ONE = np.uint64(1)


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Return which pack each sample goes to and how many packs there are: best fit decreasing.

    The longest sample comes first (ties: the first of them) and goes to the pack it fills best
    (ties: the pack opened first), or opens a new one. O(n log n).

    Args:
        lengths: int64 [n], each in [0, capacity] [tokens].
        capacity: room of a pack [tokens].

    Returns:
        (pack_of_sample int64 [n], num_packs).

    Raises:
        ValueError: a length is negative or exceeds the capacity.

    Source: Johnson 1973; the search over free space as in "Fewer Truncations Improve Language
        Modeling" (arXiv 2404.10830), with a sparse bitmap for the segment tree; the packs of one
        space in a pairing heap (Fredman et al. 1986).
    """
    lengths = checked_lengths(lengths, capacity)
    longest_first = np.argsort(-lengths, kind="stable")
    if capacity <= LARGEST_TABLE:
        return _best_fit(lengths, longest_first, capacity)
    return _best_fit_sorted(lengths, longest_first, capacity)


def checked_lengths(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
    """Return the lengths as int64 [n]. Raises ValueError where one is not whole or outside [0, capacity]."""
    lengths = np.asarray(lengths)
    if lengths.size and lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths are whole numbers, not {lengths.dtype}")
    if lengths.size and (lengths.min() < 0 or lengths.max() > capacity):
        wrong = int(np.flatnonzero((lengths < 0) | (lengths > capacity))[0])
        raise ValueError(f"sample {wrong} has length {lengths[wrong]}, outside [0, {capacity}]: split or refuse it")
    return lengths.astype(np.int64)


@njit(cache=True, nogil=True)
def _best_fit(lengths: np.ndarray, order: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Return the packs of samples taken in this order; `top` has the first pack of each space."""
    packs = np.empty(lengths.size, dtype=np.int64)
    top = np.full(capacity + 1, -1, dtype=np.int32)
    child = np.full(lengths.size, -1, dtype=np.int32)
    sibling = np.full(lengths.size, -1, dtype=np.int32)
    start = np.zeros(6, dtype=np.int64)  # of the levels in the bitmap: a bit says that a word below is not empty
    words = capacity + 1
    for level in range(1, 6):
        words = (words + 63) >> 6
        start[level] = start[level - 1] + words
    bitmap = np.zeros(start[5] + 1, dtype=np.uint64)
    num_packs = 0
    for sample in order:
        space = _at_least(bitmap, start, lengths[sample])
        if space < 0:
            space, number = capacity, num_packs
            num_packs += 1
        else:
            number = top[space]
            top[space] = _merged_children(number, child, sibling)
            if top[space] < 0:
                _clear(bitmap, start, space)
        space -= lengths[sample]
        if top[space] < 0:
            _set(bitmap, start, space)
            top[space] = number
        else:
            top[space] = _linked(top[space], number, child, sibling)
        packs[sample] = number
    return packs, num_packs


@njit(cache=True, nogil=True)
def _at_least(bitmap: np.ndarray, start: np.ndarray, space: Any) -> int:
    """Return the smallest space on record that is at least so much, or -1."""
    for level in range(5):
        place = start[level] + (space >> 6)
        if place >= start[level + 1]:
            return -1
        word = bitmap[place] >> (np.uint64(space) & _LOW)
        if word:
            space += _trailing_zeros(word)
            for lower in range(level - 1, -1, -1):
                space = space << 6 | _trailing_zeros(bitmap[start[lower] + space])
            return space
        space = (space >> 6) + 1
    return -1


@njit(cache=True, nogil=True)
def _trailing_zeros(word: Any) -> Any:
    """Return the place of the lowest bit that is set: the number of bits below it."""
    below = (word & (~word + _ONE)) - _ONE
    below = below - ((below >> _ONE) & np.uint64(0x5555555555555555))
    below = (below & np.uint64(0x3333333333333333)) + ((below >> np.uint64(2)) & np.uint64(0x3333333333333333))
    below = (below + (below >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((below * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def _set(bitmap: np.ndarray, start: np.ndarray, space: Any) -> None:
    for level in range(5):
        bitmap[start[level] + (space >> 6)] |= _ONE << (np.uint64(space) & _LOW)
        space >>= 6


@njit(cache=True, nogil=True)
def _clear(bitmap: np.ndarray, start: np.ndarray, space: Any) -> None:
    for level in range(5):
        place = start[level] + (space >> 6)
        bitmap[place] &= ~(_ONE << (np.uint64(space) & _LOW))
        if bitmap[place]:
            return
        space >>= 6


@njit(cache=True, nogil=True)
def _linked(first: Any, second: Any, child: np.ndarray, sibling: np.ndarray) -> Any:
    """Return the root of two heaps: the pack opened first; the other becomes its child."""
    root, other = min(first, second), max(first, second)
    sibling[other] = child[root]
    child[root] = other
    return root


@njit(cache=True, nogil=True)
def _merged_children(root: int, child: np.ndarray, sibling: np.ndarray) -> Any:
    """Return the heap that is left when a root goes, or -1: its children linked in pairs, then from the last on."""
    pairs, one = -1, child[root]
    child[root] = -1
    while one >= 0:
        other = sibling[one]
        following = -1
        sibling[one] = -1
        if other >= 0:
            following = sibling[other]
            sibling[other] = -1
            one = _linked(one, other, child, sibling)
        sibling[one] = pairs
        pairs, one = one, following
    merged = pairs
    if merged >= 0:
        pairs = sibling[merged]
        sibling[merged] = -1
    while pairs >= 0:
        following = sibling[pairs]
        sibling[pairs] = -1
        merged = _linked(merged, pairs, child, sibling)
        pairs = following
    return merged


@njit(cache=True, nogil=True)
def _best_fit_sorted(lengths: np.ndarray, order: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Return what `_best_fit` does, the open packs kept sorted by (space, number)."""
    packs = np.empty(lengths.size, dtype=np.int64)
    spaces = np.empty(lengths.size + 1, dtype=np.int64)
    numbers = np.empty(lengths.size + 1, dtype=np.int64)
    num_packs = 0
    for sample in order:
        place = np.searchsorted(spaces[:num_packs], lengths[sample])
        is_new = place == num_packs
        space, number = (capacity, num_packs) if is_new else (spaces[place], numbers[place])
        space -= lengths[sample]
        num_packs += is_new
        while place > 0 and (spaces[place - 1] > space or (spaces[place - 1] == space and numbers[place - 1] > number)):
            spaces[place], numbers[place] = spaces[place - 1], numbers[place - 1]
            place -= 1
        spaces[place], numbers[place] = space, number
        packs[sample] = number
    return packs, num_packs
