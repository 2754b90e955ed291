"""WebDataset shards: objects `*.tar`; consecutive members that share a stem are one sample.

Any naming that the `webdataset` library reads (`catalog/shard.py`), also shards prepared for Energon.
Members are known by the end of their extension: `0001.left.jpg` and `0001.seg.png` are images.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa

from k25_pipelines.catalog.annotated import counts_text
from k25_pipelines.catalog.annotation import annotation_fault, annotation_words, cleaned
from k25_pipelines.catalog.line import MEDIA_KINDS, Line, Part
from k25_pipelines.catalog.media import IMAGES, VIDEOS, media_part, probed
from k25_pipelines.catalog.record import parsed_record, parsed_text
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.catalog.shard import Member, ShardSample, shard_samples
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".tar",)
REFUSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tzst")
TEXTS = ("txt", "text", "transcript")
RECORDS = ("json", "jsn")
KINDS = {
    **{suffix[1:]: "image" for suffix in IMAGES},
    **{suffix[1:]: "video" for suffix in VIDEOS},
    **dict.fromkeys(TEXTS, "text"),
    **dict.fromkeys(RECORDS, "json"),
}
CAPTION = "caption"


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each sample of the new shards.

    A sample has media (in the order of the members), a text, or both, and perhaps a json with
    `caption`, `annotations`, `licence`, `source`. Of several texts, or several jsons, the one with
    the fewest extensions counts, then the first; other members are ignored. A broken member
    quarantines its sample.

    Raises:
        DatasetError: a shard is compressed or cut short; it names shard and byte.
    """
    return job.tables(_shard_lines, job.new)


def chosen_members(sample: ShardSample) -> list[tuple[str, Member]]:
    """Return kind and member of what is learnt from: all media, then the text, then the json."""
    known = [(KINDS.get(member.extension.rpartition(".")[2], ""), member) for member in sample.members]
    media = [(kind, member) for kind, member in known if kind in MEDIA_KINDS]
    for wanted in ("text", "json"):
        found = [member for kind, member in known if kind == wanted]
        if found:
            media.append((wanted, min(found, key=lambda member: member.extension.count("."))))
    return media


def _shard_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    file = RangedFile(job.store, info)
    name = job.registration.name
    for sample in shard_samples(file, info, where=f"{name}: shard {job.registration.uri}/{info.key}"):
        yield _line(job, info, file, sample)


def _line(job: ScanJob, info: ObjectInfo, file: RangedFile, sample: ShardSample) -> Line:
    parts, record, length, reasons = [], {}, 0, [sample.fault] if sample.fault else []
    for kind, member in chosen_members(sample):
        part = media_part(kind, info, None, offset=member.offset, num_bytes=member.num_bytes)
        try:
            part, found, characters = _read_part(part, member, file)
            record, length = record or found, length or characters
        except SampleError as error:
            reasons.append(f"{member.name}: {error}")
        parts.append(part)
    if not any(part.kind != "json" or part.column for part in parts):
        reasons.append("neither an image nor a text")
    return Line(
        key=sample.key.encode("utf-8", "backslashreplace").decode(),  # a tar's names may be any bytes
        parts=tuple(parts),
        text_length=length,
        quarantine="; ".join(reasons),
        annotations=counts_text(record),
        **job.terms(record),
    )


def _read_part(part: Part, member: Member, file: RangedFile) -> tuple[Part, dict, int]:
    """Return the part with what its bytes say, the record in them, and their words' length [characters]."""
    if member.fault:
        raise SampleError(member.fault)
    read = partial(_read_member, file, member)
    if part.kind in MEDIA_KINDS:
        header, content = probed(part.kind, read, member.num_bytes)
        size = {name: getattr(header, name) for name in ("width", "height", "frames", "fps", "orientation")}
        return replace(part, content=content, **size), {}, 0
    data = read(0, member.num_bytes)
    if part.kind == "text":
        return part, {}, len(parsed_text(data))
    record = cleaned(parsed_record(data))
    if fault := annotation_fault(record):
        raise SampleError(fault)
    column = CAPTION if isinstance(record.get(CAPTION), str) else ""
    return replace(part, column=column), record, annotation_words(record)


def _read_member(file: RangedFile, member: Member, offset: int, num_bytes: int) -> bytes:
    return file.read_at(member.offset + offset, num_bytes)
