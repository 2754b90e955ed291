"""Two sets of records -> what only one of them has, from summaries as small as their difference; records in, cells out.

A sketch is a table of cells to each of which a record is added three times, at places that its hash names. What both
sets hold vanishes when one sketch is taken from the other; what is left is read off cell by cell, as long as the
difference is not larger than the table was made for.

Source: Goodrich and Mitzenmacher 2011, "Invertible Bloom lookup tables"; Eppstein et al. 2011, "What's the
    difference?".
"""

from typing import Any

import numpy as np
from numba import njit

RECORD = np.dtype([("id", "<u8"), ("place", "<u8"), ("facts", "<u8")])
"""What a sample is found by; its line and terms; a digest of the rest that is said of it."""
CELL = np.dtype([("count", "<i4"), ("check", "<u4"), ("id", "<u8"), ("place", "<u8"), ("facts", "<u8")])
"""How many records there are, less those taken away, and the exclusive ors of their hashes and fields."""
CELLS_SHARE = 0.026
"""Cells for each record: enough for a difference of 2% of them, which is what a change of 1% makes: each changed record
is one that is gone and one that is new."""
LEAST_CELLS = 96
HASHES = 3


def num_cells(num_records: int) -> int:
    """Return how many cells the sketch of so many records has: a multiple of the number of hashes."""
    return -(-max(LEAST_CELLS, int(num_records * CELLS_SHARE)) // HASHES) * HASHES


def sketch_of(records: np.ndarray, cells: int) -> np.ndarray:
    """Return the sketch of records as CELL [cells].

    Args:
        records: RECORD [n], no two of them equal.
        cells: of `num_cells`.
    """
    table = np.zeros((cells, 4), np.uint64)
    _add(_words(records, 3), table)
    return table.view(CELL).reshape(-1)


def difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the records that only the first set has and those that only the second has; None: they are too many.

    Args:
        a: sketch of the first set, CELL [cells].
        b: sketch of the second, of as many cells.
    """
    table = _words(a, 4) ^ _words(b, 4)
    counts = (a["count"] - b["count"]).astype(np.int64)
    found, sides, is_done = _peel(table, counts, len(a))
    if not is_done:
        return None
    records = found.view(RECORD).reshape(-1)
    return records[sides > 0], records[sides < 0]


def _words(values: np.ndarray, width: int) -> np.ndarray:
    """Return uint64 [n, width], the same bytes."""
    return np.ascontiguousarray(values).view(np.uint64).reshape(len(values), width)


@njit(cache=True, nogil=True)
def _mixed(word: Any) -> Any:
    """Return a bijection of 64 bits in which every output bit depends on every input bit (SplitMix64)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(cache=True, nogil=True)
def _hashed(record: np.ndarray) -> Any:
    word = _mixed(record[0] + np.uint64(0x9E3779B97F4A7C15))
    return _mixed(_mixed(word ^ record[1]) ^ record[2])


@njit(cache=True, nogil=True)
def _cell(hashed: Any, number: int, size: int) -> int:
    """Return a cell in one of the thirds of the table, so that the three are different."""
    return number * size + int(_mixed(hashed + np.uint64(number + 1)) % np.uint64(size))


@njit(cache=True, nogil=True)
def _add(records: np.ndarray, table: np.ndarray) -> None:
    """Add records to cells: in the first word the count is the lower half, the check the upper one."""
    size = table.shape[0] // 3
    low = np.uint64(0xFFFFFFFF)
    for record in records:
        hashed = _hashed(record)
        for number in range(3):
            cell = table[_cell(hashed, number, size)]
            check = (cell[0] & ~low) ^ (hashed & ~low)
            cell[0] = check | ((cell[0] + np.uint64(1)) & low)
            for place in range(3):
                cell[place + 1] ^= record[place]


@njit(cache=True, nogil=True)
def _peel(table: np.ndarray, counts: np.ndarray, num: int) -> Any:
    """Read off the cells that hold one record, which may leave one in others, until all are empty or none is."""
    size, low = num // 3, np.uint64(0xFFFFFFFF)
    found, sides, num_found = np.empty((num, 3), np.uint64), np.empty(num, np.int64), 0
    queue = list(range(num))
    while len(queue) > 0:
        here = queue.pop()
        side = counts[here]
        if side != 1 and side != -1:
            continue
        record = table[here, 1:].copy()
        hashed = _hashed(record)
        if (hashed & ~low) != (table[here, 0] & ~low) or num_found == num:
            continue
        found[num_found], sides[num_found] = record, side
        num_found += 1
        for number in range(3):
            place = _cell(hashed, number, size)
            counts[place] -= side
            table[place, 0] ^= hashed & ~low
            table[place, 1:] ^= record
            queue.append(place)
    is_done = True
    for place in range(num):
        if counts[place] != 0 or np.any(table[place, 1:] != 0):
            is_done = False
    return found[:num_found], sides[:num_found], is_done
