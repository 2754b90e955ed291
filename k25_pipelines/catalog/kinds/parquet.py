"""Parquet tables: objects `*.parquet`, a row a sample, with words, media or both.

Words: a column `text`, `caption`, `content`, or a list `captions`, `texts`. Media: Hugging Face's
struct of bytes and path, a binary column (`image`, `jpg`, `video`, ...), a list of either, or strings
that are keys of objects below the dataset's URI. `annotations` or `objects` (JSON text, a list of
structs, or Hugging Face's struct of lists) stand in the manifest line as JSON text. `licence`,
`source`, `key` or `id` if there. A part is a cell of a row group.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.annotated import counts_text
from k25_pipelines.catalog.annotation import annotation_fault, annotation_words, cleaned
from k25_pipelines.catalog.cells import cell_annotations, cell_media, group_range, row_key
from k25_pipelines.catalog.fields import Fields, sample_fields
from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.catalog.media import MEDIA, probed, probed_object
from k25_pipelines.catalog.scan import ScanJob, compact_json
from k25_pipelines.errors import DatasetError, SampleError
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".parquet",)
MEDIA_SUFFIXES = MEDIA


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A row group of an object."""

    info: ObjectInfo
    fields: Fields
    offset: int
    num_bytes: int
    first: int
    """Rows of the object before it."""

    def part(self, kind: str, row: int, column: str) -> Part:
        """Return the part that a cell is."""
        return Part(
            kind=kind,
            shard=self.info.key,
            offset=self.offset,
            num_bytes=self.num_bytes,
            row=row,
            column=column,
            etag=self.info.etag,
            shard_bytes=self.info.num_bytes,
        )


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each row of the new objects. Raises DatasetError: no Parquet, or neither words nor media."""
    return job.tables(_object_lines, job.new)


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    where, first = job.where(info.key), 0
    try:
        with pq.ParquetFile(pa.PythonFile(RangedFile(job.store, info), mode="r")) as file:
            fields = sample_fields(file.schema_arrow, where=where)
            for number in range(file.num_row_groups):
                metadata = file.metadata.row_group(number)
                offset, num_bytes = group_range(metadata)
                group = Group(info=info, fields=fields, offset=offset, num_bytes=num_bytes, first=first)
                table = file.read_row_group(number, columns=fields.names, use_threads=False)
                for row in range(table.num_rows):
                    yield _line(job, group, row, {name: table[name][row].as_py() for name in fields.names})
                first += metadata.num_rows
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{where} ({info.num_bytes} bytes) is no whole Parquet file: {reason}; upload it again"
        ) from error


def _line(job: ScanJob, group: Group, row: int, record: Mapping) -> Line:
    fields, faults = group.fields, []
    media = [part for column in fields.media for part in _media_parts(job, group, row, column, record, faults)]
    words, text_parts = _words(group, row, record)
    inline = {"captions": words[1:]} if len(words) > 1 else {}
    try:
        inline |= cell_annotations(record, fields)
        faults += [fault] if (fault := annotation_fault(cleaned(inline))) else []
    except SampleError as error:
        faults.append(str(error))
    if not media and not any(word.strip() for word in words):
        faults.append(f"{fields.text.name!r} is empty" if fields.text else "no medium")
    inline = {} if faults else cleaned(inline)
    return Line(
        key=row_key(record) or f"{group.info.key}:{group.first + row}",
        parts=(*media, *text_parts),
        text_length=len(words[0]) if words else annotation_words(inline),
        inline=compact_json(inline) if inline else "",
        quarantine=f"row {group.first + row}: {'; '.join(faults)}" if faults else "",
        annotations=counts_text(inline),
        **job.terms(record),
    )


def _words(group: Group, row: int, record: Mapping) -> tuple[list[str], list[Part]]:
    """Return the wordings of a row, and the part that the first of them is."""
    column = group.fields.text
    if column is None:
        return [], []
    cell = record[column.name]
    words = [word for word in cell or () if word] if column.is_list else [cell or ""]
    if column.is_list and words:
        return words, [group.part("text", row, f"{column.name}[{cell.index(words[0])}]")]
    if not column.is_list and (words[0].strip() or not group.fields.media):
        return words, [group.part("text", row, column.name)]
    return [], []


def _media_parts(job: ScanJob, group: Group, row: int, column, record: Mapping, faults: list[str]) -> Sequence[Part]:
    parts = []
    for name, value in cell_media(record[column.name], column):
        part, reason = group.part(column.kind, row, name), ""
        if isinstance(value, str):
            info = job.objects.get(value.removeprefix(f"{job.registration.uri}/").removeprefix("./"))
            missing = Part(kind=column.kind, shard=value), "there is no such object below the dataset's URI"
            part, reason = probed_object(job.store, info, column.kind) if info else missing
        else:
            try:
                header, content = probed(column.kind, lambda at, size, data=value: data[at : at + size], len(value))
                size = {field: getattr(header, field) for field in ("width", "height", "frames", "fps", "orientation")}
                part = replace(part, content=content, **size)
            except SampleError as error:
                reason = str(error)
        faults += [f"column {name!r}: {reason}"] if reason else []
        parts.append(part)
    return parts
