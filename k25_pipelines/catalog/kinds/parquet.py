"""Parquet tables of text: objects `*.parquet` with a column `text`, and `licence`, `source`, `key` or `id` if there."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k25_pipelines.catalog.manifest import Line, Part
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".parquet",)
TEXT = "text"
KEYS = ("key", "id")
TERMS = ("licence", "license", "source")


def scan(job: ScanJob) -> Iterator[Line]:
    """Yield a line for each row of the new objects. Raises DatasetError: no Parquet, or no column `text`."""
    return job.lines(lambda info: _object_lines(job, info), job.new)


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    where = f"{job.registration.name}: {job.registration.uri}/{info.key}"
    try:
        with pq.ParquetFile(pa.PythonFile(RangedFile(job.store, info), mode="r")) as file:
            _check_schema(file.schema_arrow, where)
            for group in range(file.num_row_groups):
                yield from _group_lines(job, info, file=file, group=group)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{where} ({info.num_bytes} bytes) is no whole Parquet file: {reason}; upload it again"
        ) from error


def _check_schema(schema: pa.Schema, where: str) -> None:
    if TEXT not in schema.names:
        raise DatasetError(f"{where} has no column {TEXT!r}; its columns are {', '.join(schema.names)}")
    kind = schema.field(TEXT).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DatasetError(f"{where}: column {TEXT!r} holds {kind}, expected strings")


def _group_lines(job: ScanJob, info: ObjectInfo, *, file: pq.ParquetFile, group: int) -> Iterator[Line]:
    names = [name for name in (TEXT, *KEYS, *TERMS) if name in file.schema_arrow.names]
    table = file.read_row_group(group, columns=names, use_threads=False)
    texts = table[TEXT].cast(pa.string())
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_pylist()
    blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), True).to_pylist()
    rows = table.drop_columns([TEXT]).to_pylist() or [{}] * table.num_rows
    offset, num_bytes = group_range(file.metadata.row_group(group))
    first = sum(file.metadata.row_group(before).num_rows for before in range(group))
    for row, record in enumerate(rows):
        part = Part(
            kind="text",
            shard=info.key,
            offset=offset,
            num_bytes=num_bytes,
            row=row,
            column=TEXT,
            etag=info.etag,
            shard_bytes=info.num_bytes,
        )
        yield Line(
            key=_key(record) or f"{info.key}:{first + row}",
            parts=(part,),
            text_length=lengths[row],
            quarantine=f"row {first + row}: {TEXT!r} is empty" if blank[row] else "",
            **job.terms(record),
        )


def group_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return first byte and length of a row group, all its columns together."""
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends) - min(starts)


def _key(record: dict) -> str:
    return next((str(record[name]) for name in KEYS if record.get(name) is not None), "")
