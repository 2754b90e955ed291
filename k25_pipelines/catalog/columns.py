"""A manifest's table as plain memory: an Arrow table in, values by number out, without an Arrow object a value."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.line import PART_TYPE, PLAIN_COLUMNS, Line, Part

PART_FIELDS = tuple(field.name for field in PART_TYPE)


class Strings:
    """An Arrow array of strings, read value by value or slice by slice."""

    __slots__ = ("_array", "_characters", "_offsets")

    def __init__(self, array: pa.Array) -> None:
        """Look into the buffers of a string array; nothing is copied."""
        _, offsets, characters = array.buffers()
        whole = np.frombuffer(offsets, np.int32) if len(array) else np.zeros(1, np.int32)
        self._array = array
        self._offsets = whole[array.offset : array.offset + len(array) + 1].data
        self._characters = memoryview(characters or b"")

    def __getitem__(self, number: int) -> str:
        """Return one string."""
        return str(self._characters[self._offsets[number] : self._offsets[number + 1]], "utf-8")

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._array)

    def values(self, first: int, end: int) -> list[str]:
        """Return the strings from `first` up to but not `end`."""
        return self._array.slice(first, end - first).to_pylist()


@dataclass(frozen=True, slots=True)
class Columns:
    """Every value of a manifest by its number: `lines[name][line]`, `parts[name][part]`, as plain Python values.

    The parts of line i are those from `first_part[i]` to `first_part[i + 1]`.
    """

    lines: dict
    """Name -> `Strings`, or a memoryview of int64; [lines]."""
    parts: dict
    """Field of `Part` -> `Strings`, or a memoryview of int64 or float64; [parts]."""
    first_part: memoryview
    """int64 [lines + 1]."""

    def lines_between(self, first: int, end: int) -> list[Line]:
        """Return the lines from `first` up to but not `end`, which are in range."""
        starts = self.first_part[first : end + 1].tolist()
        parts = [Part(**dict(zip(PART_FIELDS, row, strict=True))) for row in _rows(self.parts, starts[0], starts[-1])]
        offset = starts[0]
        return [
            Line(parts=tuple(parts[start - offset : stop - offset]), **dict(zip(PLAIN_COLUMNS, row, strict=True)))
            for start, stop, row in zip(starts, starts[1:], _rows(self.lines, first, end), strict=False)
        ]

    def parts_of(self, number: int) -> tuple[Part, ...]:
        """Return the parts of a line, whose number is in range."""
        return self.lines_between(number, number + 1)[0].parts


def table_columns(table: pa.Table) -> Columns:
    """Return the values of a table of `SCHEMA` by their numbers."""
    parts = one_array(table["parts"])
    flat = parts.flatten()
    offsets = parts.offsets.to_numpy().astype(np.int64)
    return Columns(
        lines={name: _values(one_array(table[name])) for name in PLAIN_COLUMNS},
        parts={name: _values(flat.field(name)) for name in PART_FIELDS},
        first_part=(offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)).data,
    )


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)


def _rows(columns: dict, first: int, end: int) -> Iterator[tuple]:
    values = (c.values(first, end) if isinstance(c, Strings) else c[first:end].tolist() for c in columns.values())
    return zip(*values, strict=True)


def _values(array: pa.Array) -> Strings | memoryview:
    if pa.types.is_string(array.type):
        return Strings(array)
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data
