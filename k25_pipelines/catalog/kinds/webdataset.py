"""WebDataset shards: objects `*.tar`; members that share a stem are one sample."""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby

from k25_pipelines.catalog.kinds.jsonl import parsed_record
from k25_pipelines.catalog.manifest import Line
from k25_pipelines.catalog.probe import probe_image_at
from k25_pipelines.catalog.scan import ScanJob, media_part
from k25_pipelines.errors import DatasetError, SampleError
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = (".tar",)
REFUSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
IMAGES = ("jpg", "jpeg", "png", "webp")
KINDS = {**dict.fromkeys(IMAGES, "image"), "txt": "text", "json": "json"}
ORDER = ("image", "text", "json")
CAPTION = "caption"
GZIP_MAGIC = b"\x1f\x8b"


def scan(job: ScanJob) -> Iterator[Line]:
    """Yield a line for each sample of the new shards.

    A sample has an image (jpg, jpeg, png, webp), a text (txt), or both, and perhaps a json with
    `caption`, `licence`, `source`. A broken member quarantines its sample.

    Raises:
        DatasetError: a shard is compressed or cut short; it names shard and byte.
    """
    return job.lines(lambda info: _shard_lines(job, info), job.new)


def _shard_lines(job: ScanJob, info: ObjectInfo) -> Iterator[Line]:
    file = RangedFile(job.store, info)
    where = f"{job.registration.name}: shard {job.registration.uri}/{info.key}"
    for stem, members in groupby(_members(file, info, where=where), key=lambda member: _split(member.name)[0]):
        yield _line(job, info, file, stem=stem, members=members)


def _members(file: RangedFile, info: ObjectInfo, *, where: str) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar, and make sure that its end was reached."""
    if file.read_at(0, min(2, info.num_bytes)) == GZIP_MAGIC:
        raise DatasetError(f"{where} is gzip-compressed: its samples have no byte ranges; upload it as a plain tar")
    cut = f"{where} is truncated at byte {info.num_bytes}; upload it again"
    if info.num_bytes < tarfile.BLOCKSIZE:
        raise DatasetError(cut)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > info.num_bytes:
                    raise DatasetError(cut)
                if member.isreg():
                    yield member
            end = tar.offset
    except tarfile.TarError as error:
        raise DatasetError(cut if "end of data" in str(error) else f"{where} is no tar ({error})") from error
    # tarfile takes a cut or garbled header for the end
    block = file.read_at(end, min(tarfile.BLOCKSIZE, info.num_bytes - end))
    if len(block) < tarfile.BLOCKSIZE:
        raise DatasetError(cut)
    if any(block):
        raise DatasetError(f"{where}: the bytes at {end} are no tar header; upload it again")


def _split(name: str) -> tuple[str, str]:
    """Return stem and extension: the stem ends at the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.rpartition(".")[2].lower()


def _line(job: ScanJob, info: ObjectInfo, file: RangedFile, *, stem: str, members: Iterable[tarfile.TarInfo]) -> Line:
    parts, record, lengths, reasons = [], {}, {}, []
    for member in members:
        kind = KINDS.get(_split(member.name)[1])
        if kind is None:
            continue
        read, header, column = partial(_read_member, file, member), None, ""
        try:
            if kind == "image":
                header = probe_image_at(read, member.size)
            elif kind == "text":
                lengths["text"] = len(_text(read(0, member.size)))
            else:
                record = parsed_record(read(0, member.size))
                column = CAPTION if isinstance(record.get(CAPTION), str) else ""
                lengths[column] = len(record[column]) if column else 0
        except SampleError as error:
            reasons.append(f"{member.name}: {error}")
        part = media_part(kind, info, header, offset=member.offset_data, num_bytes=member.size)
        parts.append(replace(part, column=column))
    if not any(part.kind in ("image", "text") or part.column for part in parts):
        reasons.append("neither an image nor a text")
    return Line(
        key=stem.encode("utf-8", "backslashreplace").decode(),  # a tar's names may be any bytes
        parts=tuple(sorted(parts, key=lambda part: ORDER.index(part.kind))),
        text_length=lengths.get("text", lengths.get(CAPTION, 0)),
        quarantine="; ".join(reasons),
        **job.terms(record),
    )


def _read_member(file: RangedFile, member: tarfile.TarInfo, offset: int, num_bytes: int) -> bytes:
    return file.read_at(member.offset_data + offset, num_bytes)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError(f"not UTF-8 at byte {error.start}") from error
