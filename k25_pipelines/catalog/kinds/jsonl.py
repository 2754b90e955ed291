"""JSON lines: objects `*.jsonl`, one JSON object a line, with `text` or `content`."""

import io
import json
from collections.abc import Iterator

from k25_pipelines.catalog.manifest import Line, Part
from k25_pipelines.catalog.scan import ScanJob, field_text
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.ranged import BLOCK_BYTES, RangedFile
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".jsonl", ".ndjson")
TEXT_FIELDS = ("text", "content")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def scan(job: ScanJob) -> Iterator[Line]:
    """Yield a line for each JSON line of the new objects; a broken one is quarantined under its number."""
    return job.lines(lambda info: _object_lines(job, info), job.new)


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    offset = 0
    with io.BufferedReader(RangedFile(job.store, info), BLOCK_BYTES) as file:
        for number, raw in enumerate(file, start=1):
            start, offset = offset, offset + len(raw)
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                start, raw = len(BYTE_ORDER_MARK), raw[len(BYTE_ORDER_MARK) :]
            if raw.strip():
                yield _line(job, info, number=number, offset=start, raw=raw.rstrip(b"\r\n"))


def _line(job: ScanJob, info: ObjectInfo, *, number: int, offset: int, raw: bytes) -> Line:
    record, column, reason = {}, "", ""
    try:
        record = parsed_record(raw)
        column = _text_field(record)
    except SampleError as error:
        reason = f"line {number}: {error}"
    part = Part(
        kind="json",
        shard=info.key,
        offset=offset,
        num_bytes=len(raw),
        column=column,
        etag=info.etag,
        shard_bytes=info.num_bytes,
    )
    return Line(
        key=field_text(record, "key", "id", "path") or f"{info.key}:{number}",
        parts=(part,),
        text_length=len(record[column]) if column else 0,
        quarantine=reason,
        **job.terms(record),
    )


def parsed_record(raw: bytes) -> dict:
    """Return the JSON object in `raw`. Raises SampleError: it is none, or holds text that no encoder takes."""
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SampleError(f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise SampleError("not JSON") from error
    if not isinstance(record, dict):
        raise SampleError(f"a JSON object was expected, not {type(record).__name__}")
    if b"\\u" in raw:
        _check_characters(record)
    return record


def _check_characters(record: dict) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SampleError("half of a surrogate pair in a string; write the whole character") from error


def _text_field(record: dict) -> str:
    for name in TEXT_FIELDS:
        if isinstance(record.get(name), str):
            if not record[name].strip():
                raise SampleError(f"{name!r} is empty")
            return name
    raise SampleError(f"neither 'text' nor 'content' holds text; its fields: {', '.join(sorted(record)) or 'none'}")
