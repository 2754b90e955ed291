"""Documents with media between their words: objects `*.jsonl`, one a line: {"content": [...], "licence"}.

Content, and the media that it shows, are described in `catalog/conversation.py`.
"""

from collections.abc import Iterator

import pyarrow as pa

from k25_pipelines.catalog.conversation import Item, checked_items, conversation_lines, media_listing
from k25_pipelines.catalog.line import Line
from k25_pipelines.catalog.media import MEDIA
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".jsonl", ".ndjson")
MEDIA_SUFFIXES = MEDIA


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each document of the new objects; a broken one is quarantined under its number."""
    return job.tables(_object_lines, job.new, depends=media_listing(job))


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    return conversation_lines(job, info, _contents)


def _contents(record: dict) -> list[Item]:
    content = record.get("content")
    if not isinstance(content, list) or not content:
        fields = ", ".join(sorted(record)) or "none"
        raise SampleError(f"'content' is no list of items; the line's fields: {fields}")
    return checked_items(content, where="content")
