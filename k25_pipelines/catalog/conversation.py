"""JSON lines that show media between their words: chat and interleaved documents; an object of them in, lines out.

Content is text or a list of {"type": "text", "text": ...}, {"type": "image", "image": key} and {"type":
"video", "video": key}; a key is relative to the dataset's root, or a URI below it. A line's parts are
the JSON line itself, then its media in the order in which the content names them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from k25_pipelines.catalog.kinds.jsonl import json_part, line_key
from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.catalog.media import MEDIA, probed_object
from k25_pipelines.catalog.record import JsonLine, json_lines, parsed_record
from k25_pipelines.catalog.scan import ScanJob, plain_data
from k25_pipelines.errors import SampleError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import ObjectInfo

TYPES = ("text", "image", "video")
BATCH = 512
"""JSON lines whose media are probed together."""

Item = Mapping
"""One piece of content."""


def media_listing(job: ScanJob) -> str:
    """Return the digest of what lines depend on besides their own object: every medium of the dataset."""
    return digest([plain_data(info) for info in job.objects.values() if info.key.lower().endswith(MEDIA)])


def conversation_lines(job: ScanJob, info: ObjectInfo, contents: Callable[[dict], list[Item]]) -> Iterator[Line]:
    """Yield a line for each JSON line of an object; a broken one is quarantined under its number.

    Args:
        job: the run of the indexer.
        info: the object.
        contents: gives all content of a record in order; raises SampleError.
    """
    lines, known = json_lines(job.store, info), {}
    with ThreadPoolExecutor(job.threads, thread_name_prefix="probe") as pool:
        while batch := list(islice(lines, BATCH)):
            found = [_read(line, contents) for line in batch]
            keys = {(kind, key) for _, items, _ in found for kind, key in _media_keys(job, items)}
            known = {name: known[name] for name in keys if name in known}
            wanted = sorted(name for name in keys if name not in known and name[1] in job.objects)
            probed = pool.map(lambda name: probed_object(job.store, job.objects[name[1]], name[0]), wanted)
            known |= zip(wanted, probed, strict=True)
            for line, (record, items, reason) in zip(batch, found, strict=True):
                yield _line(job, info, line, record=record, items=items, reason=reason, known=known)


def checked_items(content: object, *, where: str) -> list[Item]:
    """Return content as a list of items. Raises SampleError: it says what is wrong with which field."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise SampleError(f"{where} is {type(content).__name__}, expected a string or a list of items")
    for number, item in enumerate(content):
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind not in TYPES:
            raise SampleError(f"{where}[{number}].type is {kind!r}, expected one of {', '.join(TYPES)}")
        if not isinstance(item.get(kind), str):
            raise SampleError(f"{where}[{number}].{kind} is {item.get(kind)!r}, expected a string")
    return list(content)


def _read(line: JsonLine, contents: Callable[[dict], list[Item]]) -> tuple[dict, list[Item], str]:
    record: dict = {}
    try:
        record = parsed_record(line.raw)
        return record, contents(record), ""
    except SampleError as error:
        return record, [], f"line {line.number}: {error}"


def _media_keys(job: ScanJob, items: Iterable[Item]) -> list[tuple[str, str]]:
    return [(item["type"], _key(job, item[item["type"]])) for item in items if item["type"] != "text"]


def _key(job: ScanJob, place: str) -> str:
    """Return the key that a reference names; one that lies elsewhere stays as it is, and no object has it."""
    below = f"{job.registration.uri}/"
    return place.removeprefix(below).removeprefix("./")


def _line(
    job: ScanJob, info: ObjectInfo, line: JsonLine, *, record: dict, items: Sequence[Item], reason: str, known: dict
) -> Line:
    parts = [json_part(info, line)]
    for kind, key in _media_keys(job, items):
        missing = f"there is no object {key!r} below the dataset's URI; put it there, or name it by its key"
        part, fault = known.get((kind, key)) or (Part(kind=kind, shard=key), missing)
        parts.append(part)
        if fault and not reason:
            reason = f"line {line.number}: {kind} {key}: {fault}"
    return Line(
        key=line_key(record, info, line),
        parts=tuple(parts),
        text_length=sum(len(item["text"]) for item in items if item["type"] == "text"),
        quarantine=reason,
        **job.terms(record),
    )
