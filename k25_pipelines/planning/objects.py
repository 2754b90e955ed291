"""The objects of a segment: header, state and rows in the lake; a step's rows by one ranged GET."""

import io
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.errors import ObjectExistsError, PlanError, StoreError
from k25_pipelines.plan.segment import (
    SCHEMA,
    RowGroup,
    Segment,
    header_groups,
    row_groups,
    segment_digest,
    state_name,
    table_digest,
)
from k25_pipelines.planning.index import PLANS, SegmentInfo
from k25_pipelines.storage.store import Store

WHOLE_BYTES = 2**20
"""Rows objects up to this size are read at once [bytes]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenSegment:
    """A segment whose header and Parquet footer are read."""

    store: Store
    info: SegmentInfo
    header: dict[str, Any]
    groups: tuple[RowGroup, ...]
    pieces: dict[int, bytes]
    """All of the rows object at offset 0, where it is small; else nothing."""
    num_bytes: int
    metadata: pq.FileMetaData


def segment_key(info: SegmentInfo, kind: str) -> str:
    """Return the key of an object of a segment; kind is `json` (header), `state` or `parquet` (rows)."""
    return f"{PLANS}{info.plan}/segments/{info.first_step:012}-{info.digest}.{kind}"


def write_segment(lake: Store, plan: str, segment: Segment) -> SegmentInfo:
    """Write rows, state and header of a segment, which is no part of the plan before it stands in the chain."""
    info = SegmentInfo(digest=segment.digest, first_step=segment.first_step, num_steps=segment.num_steps, plan=plan)
    rows = _parquet(segment)
    footer = int.from_bytes(rows[-8:-4], "little") + 8
    layout = {"num_bytes": len(rows), "footer_bytes": footer}
    header = {"header": segment.header, "rows": layout}
    state = pa.compress(segment.state, codec="zstd", asbytes=True)
    for kind, data in (("parquet", rows), ("state", state), ("json", _json(header))):
        with suppress(ObjectExistsError):  # from other versions of the writers: digests are compared when it is read
            lake.put_new(segment_key(info, kind), data)
    return info


def read_header(lake: Store, info: SegmentInfo) -> dict[str, Any]:
    """Return a segment's header, compared with its name."""
    return _header_and_layout(lake, info)[0]


def read_state(lake: Store, info: SegmentInfo, header: dict[str, Any]) -> bytes:
    """Return the lanes' state before a segment, compared with the header."""
    key, num_bytes = segment_key(info, "state"), header["state"]["num_bytes"]
    with suppress(OSError):
        state = pa.decompress(lake.get(key), decompressed_size=num_bytes, codec="zstd", asbytes=True)
        if state_name(state) == header["state"]:
            return state
    raise PlanError(f"{lake.url}/{key} holds another state than its header says; restore it")


def open_segment(lake: Store, info: SegmentInfo) -> OpenSegment:
    """Return a segment with its header and the footer of its rows: two GETs."""
    header, layout = _header_and_layout(lake, info)
    key, num_bytes = segment_key(info, "parquet"), layout["num_bytes"]
    try:
        if num_bytes <= WHOLE_BYTES:
            pieces = {0: lake.get(key)}
            num_bytes, metadata = len(pieces[0]), pq.read_metadata(io.BytesIO(pieces[0]))
        else:
            footer = lake.get_range(key, num_bytes - layout["footer_bytes"], layout["footer_bytes"])
            pieces, metadata = {}, pq.read_metadata(io.BytesIO(b"PAR1" + footer))
    except (pa.ArrowInvalid, OSError, StoreError):  # written with another layout than the header's writer had
        pieces = {0: lake.get(key)}
        num_bytes, metadata = len(pieces[0]), _footer(lake, key, pieces[0])
    return OpenSegment(
        store=lake,
        info=info,
        header=header,
        groups=tuple(header_groups(header)),
        pieces=pieces,
        num_bytes=num_bytes,
        metadata=metadata,
    )


def read_group(segment: OpenSegment, number: int) -> pa.Table:
    """Return the rows of a row group, compared with the header, by one ranged GET.

    Raises:
        PlanError: the object holds other rows than the header says.
    """
    key, group = segment_key(segment.info, "parquet"), segment.groups[number]
    with suppress(pa.ArrowInvalid, OSError, StoreError, IndexError):
        start, end = _extent(segment.metadata.row_group(number))
        pieces = segment.pieces or {start: segment.store.get_range(key, start, end - start)}
        source = _Pieces(pieces, segment.num_bytes)
        table = pq.ParquetFile(source, metadata=segment.metadata).read_row_group(number, use_threads=False)
        if table.schema.names == SCHEMA.names and table_digest(table) == group.digest:
            return table
    table = _whole(segment.store, key)
    found = {found.first_step: found for found in (row_groups(table) if table is not None else [])}
    if table is None or group != found.get(group.first_step):
        raise PlanError(f"{segment.store.url}/{key} holds other rows than its name says; restore it")
    return table.slice(group.first_row, group.num_rows)


class _Pieces(io.RawIOBase):
    """A file of which only some pieces are at hand."""

    def __init__(self, pieces: dict[int, bytes], num_bytes: int) -> None:
        super().__init__()
        self._pieces, self._num_bytes, self._at = pieces, num_bytes, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._num_bytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._num_bytes if size < 0 else min(self._num_bytes, self._at + size)
        for start, data in self._pieces.items():
            if start <= self._at and end <= start + len(data):
                found = data[self._at - start : end - start]
                self._at = end
                return found
        raise OSError(f"bytes {self._at} to {end} are not at hand")


def _parquet(segment: Segment) -> bytes:
    """Return the rows as Parquet with the header's row groups; no dictionaries, which cost more than they save."""
    sink = io.BytesIO()
    options: dict[str, Any] = {"use_dictionary": ["dataset"], "write_statistics": ["step", "line"]}
    with pq.ParquetWriter(sink, segment.table.schema, compression="zstd", compression_level=1, **options) as writer:
        for group in header_groups(segment.header):
            rows = segment.table.slice(group.first_row, group.num_rows)
            writer.write_table(rows, row_group_size=max(1, group.num_rows))
    return sink.getvalue()


def _extent(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return first byte and end of a row group in its file."""
    columns = [group.column(place) for place in range(group.num_columns)]
    starts = [
        min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset) for column in columns
    ]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))


def _header_and_layout(lake: Store, info: SegmentInfo) -> tuple[dict[str, Any], dict[str, int]]:
    key = segment_key(info, "json")
    told = json.loads(lake.get(key))
    if segment_digest(told["header"]) != info.digest:
        raise PlanError(f"{lake.url}/{key} is not the header it is named for; restore it")
    return told["header"], told["rows"]


def _footer(lake: Store, key: str, data: bytes) -> pq.FileMetaData:
    try:
        return pq.read_metadata(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise PlanError(f"{lake.url}/{key} holds other rows than its name says; restore it") from error


def _whole(lake: Store, key: str) -> pa.Table | None:
    """Return all rows of an object, whoever wrote it; None where it is no rows object."""
    try:
        table = pq.read_table(io.BytesIO(lake.get(key)), use_threads=False).combine_chunks()
    except pa.ArrowInvalid:
        return None
    return table.unify_dictionaries().combine_chunks() if table.schema.names == SCHEMA.names else None


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
