"""JSON objects that people wrote: bytes in, a checked object out; and where the lines of a JSONL object stand."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

from k25_pipelines.errors import SampleError
from k25_pipelines.storage.ranged import BLOCK_BYTES, RangedFile
from k25_pipelines.storage.store import ObjectInfo, Store

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLine:
    """One line of a JSONL object that is not blank."""

    number: int
    """Of the line in the object, from 1."""
    offset: int
    """First byte [bytes]."""
    raw: bytes
    """Without the line's end."""


def json_lines(store: Store, info: ObjectInfo) -> Iterator[JsonLine]:
    """Yield the lines of a JSONL object that are not blank; a byte order mark belongs to none of them."""
    offset = 0
    with io.BufferedReader(RangedFile(store, info), BLOCK_BYTES) as file:
        for number, raw in enumerate(file, start=1):
            start, offset = offset, offset + len(raw)
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                start, raw = len(BYTE_ORDER_MARK), raw[len(BYTE_ORDER_MARK) :]
            if raw.strip():
                yield JsonLine(number=number, offset=start, raw=raw.rstrip(b"\r\n"))


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


def parsed_text(data: bytes) -> str:
    """Return text of UTF-8 bytes. Raises SampleError: they are something else."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(f"not UTF-8 at byte {error.start}") from error


def _check_characters(record: dict) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SampleError("half of a surrogate pair in a string; write the whole character") from error
