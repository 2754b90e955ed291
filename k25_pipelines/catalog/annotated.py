"""Loose media that an annotation file describes: its entries, which of them are new, and whether the old still hold."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from k25_pipelines.catalog.annotation import annotation_counts, annotation_fault, annotation_words, cleaned
from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.catalog.record import parsed_record
from k25_pipelines.catalog.scan import ScanJob, compact_json, field_text
from k25_pipelines.errors import DatasetError, ManifestError, SampleError

FIRST_FRAME = "first_frame"
"""Field of a line's JSON text that the indexer adds: where a video's window starts [frames]."""
NOT_INLINE = ("file", "file_name", "licence", "license", "source")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the annotation file says of one sample, before its medium is looked at."""

    key: str
    shard: str
    """Key of the medium, below the dataset's URI."""
    licence: str
    source: str
    inline: str = ""
    text_length: int = 0
    width: int = 0
    """As the annotations state it; 0 if they do not."""
    height: int = 0
    start: float | None = None
    """Of the window of a video that it is about [seconds]; None is the video's."""
    end: float | None = None
    annotations: str = ""
    """Counts by kind, as JSON text."""
    fault: str = ""
    """What is wrong with the annotations; "" if nothing is."""


def line_of(entry: Entry, part: Part, reason: str = "") -> Line:
    """Return the manifest line of an entry."""
    return Line(
        key=entry.key,
        parts=(part,),
        text_length=entry.text_length,
        licence=entry.licence,
        source=entry.source,
        inline=entry.inline,
        quarantine=reason or entry.fault,
        annotations=entry.annotations,
    )


def missing_line(entry: Entry, kind: str) -> Line:
    """Return the line of an entry whose medium is not there."""
    return line_of(entry, Part(kind=kind, shard=entry.shard), "the annotations list it, but there is no such object")


def described(entry: Entry, record: dict) -> Entry:
    """Return an entry with what a record says of it: annotations, captions, and what is wrong with them."""
    record = cleaned(record)
    fault = annotation_fault(record)
    return replace(
        entry,
        inline=compact_json(record),
        text_length=0 if fault else annotation_words(record),
        annotations="" if fault else counts_text(record),
        fault=fault,
    )


def counts_text(record: dict) -> str:
    """Return the counts of a record's annotations as JSON text, "" if it has none."""
    counts = annotation_counts(record)
    return compact_json(counts) if counts else ""


def json_line_entries(job: ScanJob) -> list[Entry]:
    """Return an entry for each line of a JSONL annotation file: {"file", "caption", "annotations", "start", "end"}.

    Several entries of one file are told apart by `key`, or by their start and end.

    Raises:
        DatasetError: a line is no JSON object or names no file.
    """
    where, data = job.annotations()
    return list(_entries(job, where, data))


def _entries(job: ScanJob, where: str, data: bytes) -> Iterator[Entry]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            record = parsed_record(raw)
            file = field_text(record, "file", "file_name")
            if not file:
                raise SampleError("it names no 'file'")
        except SampleError as error:
            raise DatasetError(f"{where}: line {number}: {error}; expected {{'file': ..., 'caption': ...}}") from error
        yield _entry(job, file, record)


def _entry(job: ScanJob, file: str, record: dict) -> Entry:
    window = {name: record[name] for name in ("start", "end") if record.get(name) is not None}
    plain = f"{file}#{record.get('start', 0)}-{record.get('end', '')}" if window else file
    entry = Entry(key=field_text(record, "key") or plain, shard=file, **window, **job.terms(record))
    inline = {name: value for name, value in record.items() if name not in NOT_INLINE}
    return described(entry, inline)


def new_entries(job: ScanJob, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that no earlier version has, in the order of their keys.

    An entry whose old line is quarantined is new again when its object is another than then.

    Raises:
        DatasetError: two entries share a key.
        ManifestError: an entry that an earlier version has is gone, or says something else now.
    """
    by_key = {entry.key: entry for entry in entries}
    if len(by_key) < len(entries):
        seen: set[str] = set()
        twice = next(entry.key for entry in entries if entry.key in seen or seen.add(entry.key))
        raise DatasetError(f"{job.registration.name}: {twice!r} is annotated twice; name every sample once")
    known = _known_keys(job, by_key)
    return [by_key[key] for key in sorted(by_key) if key not in known]


def _said(described: Entry | Line) -> tuple[str, str, str]:
    """Return what the annotation file says of a sample, without what the indexer added."""
    inline = described.inline
    if f'"{FIRST_FRAME}"' in inline:
        inline = compact_json({name: value for name, value in json.loads(inline).items() if name != FIRST_FRAME})
    return inline, described.licence, described.source


def _known_keys(job: ScanJob, by_key: dict[str, Entry]) -> set[str]:
    if job.previous is None:
        return set()
    known, new_shards = set(), {info.key for info in job.new}
    for number in range(job.previous.num_lines):
        line = job.previous.line(number)
        entry = by_key.get(line.key)
        if line.quarantine:
            known |= {line.key} if line.parts[0].shard not in new_shards else set()
        elif entry is None or _said(entry) != _said(line):
            change = "are gone" if entry is None else "changed"
            raise ManifestError(
                f"{job.registration.name}: the annotations of {line.key!r} (line {number}) {change} since"
                f" version {job.previous.digest[:8]}; restore them, or register a new dataset"
            )
        else:
            known.add(line.key)
    return known
