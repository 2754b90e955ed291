"""Manifest lines to bytes: which ranges of which shards, and what stands in them. Any source of ranges will do."""

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.manifest import MEDIA_KINDS, Line, Manifest, Part
from k25_pipelines.errors import SampleError

Extent = tuple[str, int, int, str]
"""Shard, offset [bytes], number of bytes, etag."""
Fetch = Callable[[str, int, int, str], bytes]
"""Extent -> its bytes."""

MAX_GAP = 64 * 2**10
"""Ranges of one shard that lie closer than this are fetched as one [bytes]."""
FOOTER_GUESS = 64 * 2**10
"""Read at the end of a Parquet file, which mostly holds the whole footer [bytes]."""
TABLE_BYTES = 256 * 2**20
"""Decoded Parquet columns that are kept [bytes]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """What stands in the store for one line, not yet decoded."""

    line: Line
    """The manifest's line."""
    text: str | None
    """Its document or caption; None if it has none."""
    media: bytes | None
    """Its image or video, encoded; None if it has none."""
    inline: dict
    """What its JSON says: a JSON member of the shard, over it the manifest's inline JSON."""

    @property
    def medium(self) -> Part | None:
        """The part that `media` holds."""
        return next((part for part in self.line.parts if part.kind in MEDIA_KINDS), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """Decoded columns of Parquet row groups, so that a row group is decoded once for its rows."""

    columns: OrderedDict[tuple[str, int, str], pa.ChunkedArray] = field(default_factory=OrderedDict)
    footers: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def column(self, part: Part, fetch: Fetch) -> pa.ChunkedArray:
        """Return the column of the part's row group. Raises SampleError: the bytes are no such row group."""
        key = part.shard, part.offset, part.column
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


def extents_of_chunk(manifest: Manifest, chunk: int) -> list[Extent]:
    """Return the ranges that hold every part of a chunk, in the order of the shards.

    Quarantined lines are left out. Ranges that nearly touch, as the members of a tar do, are one.

    Args:
        manifest: the dataset version.
        chunk: number of the chunk.
    """
    lines = lines_of_chunk(manifest, chunk)
    return extents(part for line in map(manifest.line, lines) if not line.quarantine for part in line.parts)


def lines_of_chunk(manifest: Manifest, chunk: int) -> range:
    """Return the numbers of the lines of a chunk."""
    first = chunk * manifest.chunk_lines
    return range(first, min(first + manifest.chunk_lines, manifest.num_lines))


def extents(parts: Iterable[Part]) -> list[Extent]:
    """Return the ranges that hold these parts, those less than MAX_GAP apart as one."""
    ranges = sorted({(part.shard, part.offset, part.num_bytes, part.etag) for part in parts})
    merged: list[Extent] = []
    for shard, offset, num_bytes, etag in ranges:
        if merged and merged[-1][0] == shard and offset - (merged[-1][1] + merged[-1][2]) <= MAX_GAP:
            _, start, length, _ = merged[-1]
            merged[-1] = shard, start, max(length, offset + num_bytes - start), etag
        else:
            merged.append((shard, offset, num_bytes, etag))
    return merged


def inside(ranges: Iterable[Extent], extent: Extent) -> Extent | None:
    """Return the one of `ranges` in which an extent lies, or None."""
    shard, offset, num_bytes, _ = extent
    for candidate in ranges:
        if candidate[0] == shard and candidate[1] <= offset and offset + num_bytes <= candidate[1] + candidate[2]:
            return candidate
    return None


def read_line(
    manifest: Manifest, line: int, fetch: Fetch, *, tables: Tables | None = None, with_media: bool = True
) -> RawSample:
    """Return the bytes and words of one line.

    The text is the text part (of Parquet: the row of its column); else the field of the JSON part
    that the manifest names, or `caption`; else the `caption` of the manifest's inline JSON.

    Args:
        manifest: the dataset version.
        line: number of the line.
        fetch: what gives the bytes of a range.
        tables: keeps decoded Parquet columns from line to line.
        with_media: read images and videos too, not only words.

    Raises:
        SampleError: the line is quarantined, or its words cannot be read.
    """
    known = manifest.line(line)
    name = f"{manifest.dataset}:{line} ({known.key})"
    if known.quarantine:
        raise SampleError(f"{name} is quarantined: {known.quarantine}")
    tables = tables or Tables()
    text, media, inline = None, None, {}
    for part in known.parts:
        if part.kind in MEDIA_KINDS and not (with_media and media is None):
            continue
        data = _part_bytes(part, fetch, tables, name)
        if part.kind in MEDIA_KINDS:
            media = data
        elif part.kind == "text":
            text = _decoded(data, name)
        else:
            inline = _json_object(_decoded(data, name), name)
            text = text if text is not None else _field(inline, part.column or "caption", name)
    inline = {**inline, **(_json_object(known.inline, name) if known.inline else {})}
    if text is None:
        text = _field(inline, "caption", name)
    return RawSample(line=known, text=text, media=media, inline=inline)


def _part_bytes(part: Part, fetch: Fetch, tables: Tables, name: str) -> bytes:
    if part.row < 0:
        return fetch(part.shard, part.offset, part.num_bytes, part.etag)
    column = tables.column(part, fetch)
    if part.row >= len(column):
        raise SampleError(f"{name}: row {part.row} of {len(column)} in {part.shard}; index the dataset anew")
    value = column[part.row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if value is None:
        raise SampleError(f"{name}: column {part.column!r} of {part.shard} is empty in row {part.row}")
    return value if isinstance(value, bytes) else str(value).encode()


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{name}: its text is not UTF-8 ({error.reason} at byte {error.start})") from error


def _json_object(text: str, name: str) -> dict:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair has no bytes
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{name}: its JSON cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise SampleError(f"{name}: its JSON is a {type(value).__name__}, not an object")
    return value


def _field(inline: dict, field_name: str, name: str) -> str | None:
    value = inline.get(field_name)
    if value is not None and not isinstance(value, str):
        raise SampleError(f"{name}: {field_name!r} is a {type(value).__name__}, not words")
    return value


def _tail(part: Part, num_bytes: int, fetch: Fetch) -> bytes:
    return fetch(part.shard, part.shard_bytes - num_bytes, num_bytes, part.etag)


def _row_group_column(part: Part, footer: bytes, fetch: Fetch) -> pa.ChunkedArray:
    rows = fetch(part.shard, part.offset, part.num_bytes, part.etag)
    known = {part.offset: rows, part.shard_bytes - len(footer): footer}
    try:
        with pq.ParquetFile(pa.PythonFile(_SparseFile(part.shard_bytes, known), mode="r")) as file:
            group = _row_group_at(file.metadata, part)
            return file.read_row_group(group, columns=[part.column], use_threads=False).column(0)
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
