"""Parquet row groups to columns: a part and what fetches ranges in, the decoded column of its row group out."""

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.manifest import Part
from k25_pipelines.errors import SampleError

Extent = tuple[str, int, int, str]
"""Shard, offset [bytes], number of bytes, etag."""
Fetch = Callable[[str, int, int, str], bytes]
"""Extent -> its bytes."""

FOOTER_GUESS = 64 * 2**10
"""Read at the end of a Parquet file, which mostly holds the whole footer [bytes]."""
TABLE_BYTES = 256 * 2**20
"""Decoded Parquet columns that are kept [bytes]."""
LIST_ITEM = re.compile(r"(.+)\[(\d+)\]")
"""Name of a Parquet part that is an item of a list: column and number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Decoded columns of Parquet row groups, so that a row group is decoded once for its rows."""

    columns: OrderedDict[tuple[str, int, str], pa.ChunkedArray] = field(default_factory=OrderedDict)
    footers: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def column(self, part: Part, fetch: Fetch) -> pa.ChunkedArray:
        """Return the column of the part's row group. Raises SampleError: the bytes are no such row group."""
        key = part.shard, part.offset, cell_of(part)[0]
        with self.lock:
            if key in self.columns:
                self.columns.move_to_end(key)
                return self.columns[key]
        column = _row_group_column(part, self._footer(part, fetch), fetch)
        with self.lock:
            self.columns[key] = column
            while len(self.columns) > 1 and sum(kept.nbytes for kept in self.columns.values()) > TABLE_BYTES:
                self.columns.popitem(last=False)
        return column

    def _footer(self, part: Part, fetch: Fetch) -> bytes:
        if part.shard not in self.footers:
            tail = _tail(part, min(FOOTER_GUESS, part.shard_bytes), fetch)
            needed = int.from_bytes(tail[-8:-4], "little") + 8
            if len(tail) < needed <= part.shard_bytes:
                tail = _tail(part, needed, fetch)
            self.footers[part.shard] = tail
        return self.footers[part.shard]


def cell_of(part: Part) -> tuple[str, int | None]:
    """Return the name of a part's column in its Parquet table, and which item of a list it is; None if of none."""
    found = LIST_ITEM.fullmatch(part.column)
    return (found.group(1), int(found.group(2))) if found else (part.column, None)


def _tail(part: Part, num_bytes: int, fetch: Fetch) -> bytes:
    return fetch(part.shard, part.shard_bytes - num_bytes, num_bytes, part.etag)


def _row_group_column(part: Part, footer: bytes, fetch: Fetch) -> pa.ChunkedArray:
    rows = fetch(part.shard, part.offset, part.num_bytes, part.etag)
    known = {part.offset: rows, part.shard_bytes - len(footer): footer}
    try:
        with pq.ParquetFile(pa.PythonFile(_SparseFile(part.shard_bytes, known), mode="r")) as file:
            group = _row_group_at(file.metadata, part)
            return file.read_row_group(group, columns=[cell_of(part)[0]], use_threads=False).column(0)
    except (pa.ArrowException, OSError, IndexError) as error:
        where = f"{part.shard}, bytes {part.offset} to {part.offset + part.num_bytes}"
        raise SampleError(f"{where}: no row group with a column {part.column!r} ({error})") from error


def _row_group_at(metadata: pq.FileMetaData, part: Part) -> int:
    for group in range(metadata.num_row_groups):
        first = metadata.row_group(group).column(0)
        pages = [first.data_page_offset, first.dictionary_page_offset if first.has_dictionary_page else None]
        if part.offset <= min(page for page in pages if page is not None) < part.offset + part.num_bytes:
            return group
    raise IndexError("the footer names no row group there")


class _SparseFile(io.RawIOBase):
    """A file of which some ranges are known; Parquet asks for no others."""

    def __init__(self, size: int, known: dict[int, bytes]) -> None:
        self.known, self.size, self.place = known, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def read(self, num_bytes: int = -1) -> bytes:
        end = self.size if num_bytes < 0 else min(self.place + num_bytes, self.size)
        for offset, data in self.known.items():
            if offset <= self.place and end <= offset + len(data):
                start, self.place = self.place, end
                return data[start - offset : end - offset]
        raise OSError(f"bytes {self.place} to {end} lie outside the row group")
