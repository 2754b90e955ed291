"""JSON lines: objects `*.jsonl`, one JSON object a line, with `text` or `content`."""

from collections.abc import Iterator

import pyarrow as pa

from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.catalog.record import JsonLine, json_lines, parsed_record
from k25_pipelines.catalog.scan import ScanJob, field_text
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".jsonl", ".ndjson")
TEXT_FIELDS = ("text", "content")
OTHER_KINDS = {"messages": "chat", "content": "interleaved"}
"""Field that holds a list -> the kind that such lines are."""


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each JSON line of the new objects; a broken one is quarantined under its number."""
    return job.tables(_object_lines, job.new)


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    for line in json_lines(job.store, info):
        yield _line(job, info, line)


def _line(job: ScanJob, info: ObjectInfo, line: JsonLine) -> Line:
    record, column, reason = {}, "", ""
    try:
        record = parsed_record(line.raw)
        column = _text_field(record)
    except SampleError as error:
        reason = f"line {line.number}: {error}"
    return Line(
        key=line_key(record, info, line),
        parts=(json_part(info, line, column=column),),
        text_length=len(record[column]) if column else 0,
        quarantine=reason,
        **job.terms(record),
    )


def line_key(record: dict, info: ObjectInfo, line: JsonLine) -> str:
    """Return what a JSON line calls itself, else its object and number."""
    return field_text(record, "key", "id", "path") or f"{info.key}:{line.number}"


def json_part(info: ObjectInfo, line: JsonLine, *, column: str = "") -> Part:
    """Return the part that a JSON line is."""
    return Part(
        kind="json",
        shard=info.key,
        offset=line.offset,
        num_bytes=len(line.raw),
        column=column,
        etag=info.etag,
        shard_bytes=info.num_bytes,
    )


def _text_field(record: dict) -> str:
    for name in TEXT_FIELDS:
        if isinstance(record.get(name), str):
            if not record[name].strip():
                raise SampleError(f"{name!r} is empty")
            return name
    other = next((f"; register it as kind {OTHER_KINDS[name]}" for name in OTHER_KINDS if _is_list(record, name)), "")
    fields = ", ".join(sorted(record)) or "none"
    raise SampleError(f"neither 'text' nor 'content' holds text; its fields: {fields}{other}")


def _is_list(record: dict, name: str) -> bool:
    return isinstance(record.get(name), list)
