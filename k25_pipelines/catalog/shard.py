"""Tar shards: an object in, each sample's members by their extensions out, as the `webdataset` library groups them.

Rules and regular expressions are those of webdataset 1.0.2, `tariterators.py` (`base_plus_ext`,
`tar_file_iterator`, `group_by_keys`); a test compares both readers.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import ObjectInfo

BASE_PLUS_EXTENSIONS = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
META = re.compile(r"__[^/]*__($|/)")
BAD = "__bad__"
TAKEN = ("__key__", "__url__")
"""Fields that the library keeps in each sample, so that a member cannot have them as its extension."""
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    extension: str
    """All extensions after the first dot of the file's own name, in lower case."""
    offset: int
    """First byte in the shard."""
    num_bytes: int
    fault: str = ""
    """Why its bytes cannot be read as a range; "" if they can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSample:
    """Consecutive members of one stem."""

    key: str
    members: tuple[Member, ...]
    """In the order of the tar, one an extension."""
    fault: str = ""
    """What keeps the library from reading the sample."""


def shard_samples(file: RangedFile, info: ObjectInfo, *, where: str) -> Iterator[ShardSample]:
    """Yield the samples of a tar.

    Args:
        file: the shard's bytes.
        info: the shard.
        where: what it is called in errors.

    Raises:
        DatasetError: the shard is compressed, cut short or no tar.
    """
    key, members, fault = None, {}, ""
    for stem, member in _named_members(file, info, where=where):
        if stem != key:
            if key is not None and (fault or not _is_bad(members)):
                yield ShardSample(key=key, members=tuple(members.values()), fault=fault)
            key, members, fault = stem, {}, ""
        if member.extension in members or member.extension in TAKEN:
            fault = fault or f"{member.name}: a second member with the extension {member.extension!r}"
        else:
            members[member.extension] = member
    if key is not None and (fault or not _is_bad(members)):
        yield ShardSample(key=key, members=tuple(members.values()), fault=fault)


def _is_bad(members: dict[str, Member]) -> bool:
    return BAD in members and members[BAD].num_bytes > 0


def _named_members(file: RangedFile, info: ObjectInfo, *, where: str) -> Iterator[tuple[str, Member]]:
    """Yield stem and member of each file that belongs to a sample."""
    for found in _files(file, info, where=where):
        named = None if META.match(found.name) else BASE_PLUS_EXTENSIONS.match(found.name)
        if named:
            sparse = "a sparse file, whose bytes are no range; write the tar without --sparse"
            yield (
                named.group(1),
                Member(
                    name=found.name,
                    extension=named.group(2).lower(),
                    offset=found.offset_data,
                    num_bytes=found.size,
                    fault=sparse if found.issparse() else "",
                ),
            )


def _files(file: RangedFile, info: ObjectInfo, *, where: str) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar, and make sure that its end was reached."""
    if file.read_at(0, min(2, info.num_bytes)) == GZIP_MAGIC:
        raise DatasetError(f"{where} is gzip-compressed: its samples have no byte ranges; upload it as a plain tar")
    cut = f"{where} is truncated at byte {info.num_bytes}; upload it again"
    if info.num_bytes < tarfile.BLOCKSIZE:
        raise DatasetError(cut)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # a shard may hold a million
                if not member.issparse() and member.offset_data + member.size > info.num_bytes:
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
