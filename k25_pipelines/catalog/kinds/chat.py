"""Conversations: objects `*.jsonl`, one a line: {"messages": [{"role": ..., "content": ...}, ...], "licence"}.

Content, and the media that it shows, are described in `catalog/conversation.py`.
"""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from k25_pipelines.catalog.conversation import Item, checked_items, conversation_lines, media_listing
from k25_pipelines.catalog.line import Line
from k25_pipelines.catalog.media import MEDIA
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".jsonl", ".ndjson")
MEDIA_SUFFIXES = MEDIA
ROLES = ("system", "user", "assistant", "tool")


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each conversation of the new objects; a broken one is quarantined under its number."""
    return job.tables(_object_lines, job.new, depends=media_listing(job))


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    return conversation_lines(job, info, _contents)


def _contents(record: dict) -> list[Item]:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        fields = ", ".join(sorted(record)) or "none"
        raise SampleError(f"'messages' is no list of messages; the line's fields: {fields}")
    items = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise SampleError(f"messages[{number}].role is {role!r}, expected one of {', '.join(ROLES)}")
        items += checked_items(message.get("content"), where=f"messages[{number}].content")
    if not any(message["role"] == "assistant" for message in messages):
        raise SampleError("no message is the assistant's, so there is nothing to learn; register it as another kind")
    return items
