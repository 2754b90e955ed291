"""Plain text and code trees: one object, one sample."""

from collections.abc import Iterator

from k25_pipelines.catalog.manifest import Line, Part
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.storage.store import ObjectInfo

PROSE = (".txt", ".md", ".rst", ".tex")
CODE = (".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh", ".sql", ".jl")
SUFFIXES = PROSE + CODE


def scan(job: ScanJob) -> Iterator[Line]:
    """Yield a line for each new object; one that is empty or not UTF-8 is quarantined."""
    return job.lines(lambda info: [_line(job, info)], job.new)


def _line(job: ScanJob, info: ObjectInfo) -> Line:
    data, text, reason = job.store.get_range(info.key, 0, info.num_bytes, etag=info.etag), "", ""
    try:
        text = data.decode("utf-8")
        reason = "" if text.strip() else "empty"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    return Line(
        key=info.key,
        parts=(Part(kind="text", shard=info.key, num_bytes=len(data), etag=info.etag, shard_bytes=info.num_bytes),),
        text_length=len(text),
        quarantine=reason,
        **job.terms({}),
    )
