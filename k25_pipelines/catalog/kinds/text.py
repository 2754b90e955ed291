"""Plain text and code trees: one object, one sample."""

from collections.abc import Iterator

import pyarrow as pa

from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.catalog.record import parsed_text
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.store import ObjectInfo

PROSE = (".txt", ".md", ".rst", ".tex")
CODE = (".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh", ".sql", ".jl")
SUFFIXES = PROSE + CODE
UNIT = 64
"""Objects that are found and kept together."""


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each new object; one that is empty or not UTF-8 is quarantined."""
    return job.tables(_object_lines, job.new, unit=UNIT)


def _object_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    data, text, reason = job.store.get_range(info.key, 0, info.num_bytes, etag=info.etag), "", ""
    try:
        text = parsed_text(data)
        reason = "" if text.strip() else "empty"
    except SampleError as error:
        reason = str(error)
    yield Line(
        key=info.key,
        parts=(Part(kind="text", shard=info.key, num_bytes=len(data), etag=info.etag, shard_bytes=info.num_bytes),),
        text_length=len(text),
        quarantine=reason,
        **job.terms({}),
    )
