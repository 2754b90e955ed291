"""Video files, alone or with captions as JSON lines: {"file", "caption", "start", "end", "licence", "source"}.

What a caption line says, but for `file`, `licence` and `source`, stands in the manifest line as JSON text.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from k25_pipelines.catalog.annotated import Entry, line_of, new_entries
from k25_pipelines.catalog.kinds.jsonl import parsed_record
from k25_pipelines.catalog.manifest import Line, Part
from k25_pipelines.catalog.probe import probe_video
from k25_pipelines.catalog.scan import ScanJob, compact_json, field_text, media_part
from k25_pipelines.errors import DatasetError, SampleError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
NOT_INLINE = ("file", "licence", "license", "source")


def scan(job: ScanJob) -> Iterator[Line]:
    """Yield a line for each caption line if there are captions, else for each file; files are probed once.

    Raises:
        DatasetError: a caption line is no JSON object or names no file.
    """
    if job.registration.annotations:
        entries = new_entries(job, caption_entries(job))
    else:
        entries = [Entry(key=info.key, shard=info.key, **job.terms({})) for info in job.new]
    by_file: dict[str, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(entry.shard, []).append(entry)
    return job.lines(partial(_file_lines, job), list(by_file.values()))


def caption_entries(job: ScanJob) -> list[Entry]:
    """Return an entry for each caption line; several captions of one file are told apart by their start and end."""
    where, data = job.annotations()
    entries = []
    for number, raw in enumerate(data.splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            record = parsed_record(raw)
            file = field_text(record, "file")
            if not file:
                raise SampleError("it names no 'file'")
        except SampleError as error:
            raise DatasetError(f"{where}: line {number}: {error}; expected {{'file': ..., 'caption': ...}}") from error
        entries.append(_entry(job, file, record))
    return entries


def _entry(job: ScanJob, file: str, record: dict) -> Entry:
    inline = {name: value for name, value in record.items() if name not in NOT_INLINE}
    is_window = "start" in record or "end" in record
    return Entry(
        key=f"{file}#{record.get('start', 0)}-{record.get('end', '')}" if is_window else file,
        shard=file,
        inline=compact_json(inline),
        text_length=len(field_text(record, "caption")),
        **job.terms(record),
    )


def _file_lines(job: ScanJob, entries: Sequence[Entry]) -> list[Line]:
    shard = entries[0].shard
    info = job.objects.get(shard)
    if info is None:
        part, reason = Part(kind="video", shard=shard), "the captions name it, but there is no such object"
        return [line_of(entry, part, reason) for entry in entries]
    try:
        data = job.store.get_range(shard, 0, info.num_bytes, etag=info.etag)
        part, reason = media_part("video", info, probe_video(data)), ""
    except SampleError as error:
        part, reason = media_part("video", info, None), str(error)
    return [line_of(entry, part, reason) for entry in entries]
