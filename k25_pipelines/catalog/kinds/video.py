"""Video files, alone or with captions as JSON lines: {"file", "caption", "start", "end", "licence", "source"}.

What a caption line says, but for `file`, `licence` and `source`, stands in the manifest line as JSON
text. The part's frames are those of the caption's window, so that planned sizes follow it; the JSON
text's `first_frame` says where in the file they start, if not at 0.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from k25_pipelines.catalog.annotated import FIRST_FRAME, Entry, json_line_entries, line_of, missing_line, new_entries
from k25_pipelines.catalog.clip import window_frames, window_start
from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.catalog.media import VIDEOS, probed_object
from k25_pipelines.catalog.scan import ScanJob, compact_json
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = VIDEOS


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each caption line if there are captions, else for each file; files are probed once.

    Raises:
        DatasetError: a caption line is no JSON object or names no file.
    """
    if job.registration.annotations:
        entries = new_entries(job, json_line_entries(job))
    else:
        entries = [Entry(key=info.key, shard=info.key, **job.terms({})) for info in job.new]
    by_file: dict[str, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(entry.shard, []).append(entry)
    return job.tables(_file_lines, [(job.objects.get(file), tuple(found)) for file, found in by_file.items()])


def _file_lines(job: ScanJob, file: tuple[ObjectInfo | None, tuple[Entry, ...]]) -> Iterator[Line]:
    info, entries = file
    if info is None:
        yield from (missing_line(entry, "video") for entry in entries)
        return
    part, reason = probed_object(job.store, info, "video")
    for entry in entries:
        yield _line(entry, part, reason)


def _line(entry: Entry, part: Part, reason: str) -> Line:
    if reason:
        return line_of(entry, part, reason)
    try:
        frames = window_frames(entry.start, entry.end, frames=part.frames, fps=part.fps)
        first = window_start(entry.start, part.fps)
    except SampleError as error:
        return line_of(entry, part, str(error))
    if first:
        entry = replace(entry, inline=compact_json({**json.loads(entry.inline), FIRST_FRAME: first}))
    return line_of(entry, replace(part, frames=frames))
