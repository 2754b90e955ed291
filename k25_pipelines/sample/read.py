"""Manifest lines to bytes: which ranges of which shards, and what stands in them. Any source of ranges will do."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from k25_pipelines.catalog.annotation import cleaned
from k25_pipelines.catalog.manifest import MEDIA_KINDS, Line, Manifest, Part
from k25_pipelines.errors import SampleError
from k25_pipelines.sample.tables import Extent as Extent
from k25_pipelines.sample.tables import Fetch as Fetch
from k25_pipelines.sample.tables import Tables as Tables
from k25_pipelines.sample.tables import cell_of
from k25_pipelines.storage.store import open_store

MAX_GAP = 64 * 2**10
"""Ranges of one shard that lie closer than this are fetched as one [bytes]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """What stands in the store for one line, not yet decoded."""

    line: Line
    """The manifest's line."""
    text: str | None
    """Its document or caption; None if it has none."""
    media: tuple[bytes, ...]
    """Its images and videos, encoded, in the order of `media_parts`; empty if they were not read."""
    inline: dict
    """What its JSON says: its JSON parts, over them the manifest's inline JSON; without run-length encoded masks."""

    @property
    def media_parts(self) -> tuple[Part, ...]:
        """The parts that are images or videos."""
        return tuple(part for part in self.line.parts if part.kind in MEDIA_KINDS)

    @property
    def medium(self) -> Part | None:
        """The first of them."""
        return next((part for part in self.line.parts if part.kind in MEDIA_KINDS), None)


def extents_of_chunk(manifest: Manifest, chunk: int) -> list[Extent]:
    """Return the ranges that hold every part of a chunk, in the order of the shards.

    Quarantined lines are left out. Ranges that nearly touch, as the members of a tar do, are one.

    Args:
        manifest: the dataset version.
        chunk: number of the chunk.
    """
    lines, columns = lines_of_chunk(manifest, chunk), manifest.columns
    shard, offset, num_bytes, etag = (columns.parts[name] for name in ("shard", "offset", "num_bytes", "etag"))
    ranges = set()
    for line in lines:
        if not manifest.quarantined[line]:
            for part in range(columns.first_part[line], columns.first_part[line + 1]):
                ranges.add((shard[part], offset[part], num_bytes[part], etag[part]))
    return merged(ranges)


def lines_of_chunk(manifest: Manifest, chunk: int) -> range:
    """Return the numbers of the lines of a chunk."""
    first = chunk * manifest.chunk_lines
    return range(first, min(first + manifest.chunk_lines, manifest.num_lines))


def extents(parts: Iterable[Part]) -> list[Extent]:
    """Return the ranges that hold these parts, those less than MAX_GAP apart as one."""
    return merged({(part.shard, part.offset, part.num_bytes, part.etag) for part in parts})


def merged(ranges: Iterable[Extent]) -> list[Extent]:
    """Return ranges in the order of shards and offsets, those less than MAX_GAP apart as one."""
    found: list[Extent] = []
    for shard, offset, num_bytes, etag in sorted(ranges):
        if found and found[-1][0] == shard and offset - (found[-1][1] + found[-1][2]) <= MAX_GAP:
            _, start, length, _ = found[-1]
            found[-1] = shard, start, max(length, offset + num_bytes - start), etag
        else:
            found.append((shard, offset, num_bytes, etag))
    return found


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
    text, media, inline = None, [], {}
    for part in known.parts:
        if part.kind in MEDIA_KINDS and not with_media:
            continue
        data = part_bytes(part, fetch, tables, name=name)
        if part.kind in MEDIA_KINDS:
            media.append(data)
        elif part.kind == "text":
            text = _decoded(data, name) if text is None else text
        else:
            inline = {**_json_object(_decoded(data, name), name), **inline}
            text = text if text is not None else _field(inline, part.column or "caption", name)
    inline = cleaned({**inline, **(_json_object(known.inline, name) if known.inline else {})})
    if text is None:
        text = _field(inline, "caption", name)
    return RawSample(line=known, text=text, media=tuple(media), inline=inline)


def part_bytes(part: Part, fetch: Fetch, tables: Tables, *, name: str) -> bytes:
    """Return the bytes of a part: of a range, or of a cell of a Parquet table.

    Args:
        part: what to read.
        fetch: what gives the bytes of a range.
        tables: keeps decoded Parquet columns.
        name: what the sample is called in errors.

    Raises:
        SampleError: the row group cannot be read, or the cell is empty.
    """
    if part.row < 0:
        return fetch(part.shard, part.offset, part.num_bytes, part.etag)
    column, item = tables.column(part, fetch), cell_of(part)[1]
    if part.row >= len(column):
        raise SampleError(f"{name}: row {part.row} of {len(column)} in {part.shard}; index the dataset anew")
    value = column[part.row]
    if item is not None and value.is_valid:
        value = value.values[item] if item < len(value.values) else None
    value = value.as_py() if value is not None else None
    value = value.get("bytes") if isinstance(value, dict) else value
    if value is None:
        raise SampleError(f"{name}: column {part.column!r} of {part.shard} is empty in row {part.row}")
    return value if isinstance(value, bytes) else str(value).encode()


def cell_reader(manifest: Manifest) -> Callable[[Part], bytes]:
    """Return what reads the parts of a manifest one by one, Parquet tables kept from part to part."""
    store, tables = open_store(manifest.uri), Tables()

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return store.get_range(shard, offset, num_bytes, etag=etag or None)

    return lambda part: part_bytes(part, fetch, tables, name=f"{manifest.dataset}: {part.shard}")


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
