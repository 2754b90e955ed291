"""Lengths -> packs, by best fit decreasing."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

_WORD_BITS = 6


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
        Modeling" (arXiv 2404.10830), with a sparse bitmap for the segment tree.
    """
    return pack_within(lengths, capacity, ())


def pack_within(
    lengths: Sequence[int] | np.ndarray, capacity: int, limits: Sequence[tuple[np.ndarray, int]]
) -> tuple[np.ndarray, int]:
    """Return `pack` under further limits: pairs of (amounts int64 [n], most of them in one pack)."""
    lengths = np.asarray(lengths)
    if lengths.size and lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths are whole numbers, not {lengths.dtype}")
    if lengths.size and (lengths.min() < 0 or lengths.max() > capacity):
        wrong = int(np.flatnonzero((lengths < 0) | (lengths > capacity))[0])
        raise ValueError(f"sample {wrong} has length {lengths[wrong]}, outside [0, {capacity}]: split or refuse it")
    for amounts, most in limits:
        if amounts.size and amounts.max() > most:
            raise ValueError(f"sample {int(amounts.argmax())} has {amounts.max()}, above the limit of {most} a pack")
    needs = np.stack([amounts for amounts, _ in limits], axis=1).tolist() if limits else None
    packs = np.empty(lengths.size, dtype=np.int64)
    free, room = _FreeSpace(capacity), []
    for sample in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[sample])
        accepts = _acceptance(room, needs[sample]) if needs else None
        space, number = free.take(length, accepts)
        if number < 0:
            space, number = capacity, len(room)
            room.append([most for _, most in limits])
        if needs:
            room[number] = [left - amount for left, amount in zip(room[number], needs[sample], strict=True)]
        free.add(space - length, number)
        packs[sample] = number
    return packs, len(room)


def _acceptance(room: list[list[int]], need: Sequence[int]) -> Callable[[int], bool]:
    """Return whether a pack still has room for what one sample needs besides tokens."""
    return lambda number: all(amount <= left for amount, left in zip(need, room[number], strict=True))


class _FreeSpace:
    """Open packs by the space left in them; the smallest space that suffices is found in O(log capacity)."""

    def __init__(self, capacity: int) -> None:
        self.packs: dict[int, list[int]] = {}  # space -> heap of pack numbers
        num_levels = max(1, -(-max(1, capacity).bit_length() // _WORD_BITS))
        self.levels: list[dict[int, int]] = [{} for _ in range(num_levels)]  # which words below are not empty

    def add(self, space: int, number: int) -> None:
        """Note a pack with that space."""
        heap = self.packs.setdefault(space, [])
        heapq.heappush(heap, number)
        if len(heap) == 1:
            for level in self.levels:
                bit, space = 1 << (space & 63), space >> _WORD_BITS
                level[space] = level.get(space, 0) | bit

    def take(self, space: int, accepts: Callable[[int], bool] | None) -> tuple[int, int]:
        """Remove and return (space, number) of the tightest accepted pack, or (0, -1)."""
        while (space := self._at_least(space)) >= 0:
            heap, refused, number = self.packs[space], [], -1
            while heap and number < 0:
                number = heapq.heappop(heap)
                if accepts is not None and not accepts(number):
                    refused.append(number)
                    number = -1
            for other in refused:
                heapq.heappush(heap, other)
            if not heap:
                self._clear(space)
            if number >= 0:
                return space, number
            space += 1
        return 0, -1

    def _at_least(self, space: int) -> int:
        """Return the smallest space on record that is at least so much, or -1."""
        for depth, level in enumerate(self.levels):
            word = level.get(space >> _WORD_BITS, 0) >> (space & 63)
            if word:
                space += (word & -word).bit_length() - 1
                for lower in reversed(self.levels[:depth]):
                    word = lower[space]
                    space = space << _WORD_BITS | (word & -word).bit_length() - 1
                return space
            space = (space >> _WORD_BITS) + 1
        return -1

    def _clear(self, space: int) -> None:
        """Forget a space that no pack has any more."""
        del self.packs[space]
        for level in self.levels:
            bit, space = 1 << (space & 63), space >> _WORD_BITS
            level[space] &= ~bit
            if level[space]:
                return
            del level[space]
