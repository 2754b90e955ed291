"""Whether a copy holds the bytes of its source: two objects in, their one MD5 out; or an error that names them.

Stores name an object that was sent in one PUT by its MD5. Where one does not, or the two names differ (encryption on
the server changes them), the bytes are read.
"""

import hashlib
import re
from dataclasses import dataclass

from k25_pipelines.errors import ObjectChangedError, StoreError
from k25_pipelines.storage.store import ObjectInfo, Store

READ_BYTES = 16 * 2**20
_MD5 = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A copy that holds what its source does."""

    key: str
    num_bytes: int
    etag: str
    """Of the source."""
    copied_etag: str
    """Of the copy."""
    md5: str
    bytes_read: int
    """From either store, to find out [bytes]."""


def reported_md5(etag: str) -> str | None:
    """Return the MD5 that an etag is; None where it is something else, such as of an upload in parts."""
    return etag if _MD5.fullmatch(etag) else None


def compared(source: Store, info: ObjectInfo, destination: Store, copy: ObjectInfo) -> Compared:
    """Return what was found out about an object and its copy.

    Raises:
        ObjectChangedError: the source was overwritten since it was listed.
        StoreError: the copy holds other bytes.
    """
    where = f"{destination.url}/{copy.key}"
    if info.num_bytes != copy.num_bytes:
        raise StoreError(_differs(where, f"{copy.num_bytes:,} bytes, its source {info.num_bytes:,}"))
    ours, theirs, num_read = reported_md5(info.etag), reported_md5(copy.etag), 0
    if ours is None or ours != theirs:
        if ours is None:
            ours, num_read = read_md5(source, info), info.num_bytes
        if ours != theirs:
            theirs, num_read = read_md5(destination, copy), num_read + info.num_bytes
        if ours != theirs and reported_md5(info.etag):  # its etag may be no MD5 of its bytes
            ours, num_read = read_md5(source, info), num_read + info.num_bytes
    if ours != theirs:
        raise StoreError(_differs(where, f"MD5 {theirs}, its source {ours}"))
    return Compared(
        key=info.key,
        num_bytes=info.num_bytes,
        etag=info.etag,
        copied_etag=copy.etag,
        md5=ours,
        bytes_read=num_read,
    )


def read_md5(store: Store, info: ObjectInfo) -> str:
    """Return the MD5 of an object, read in ranges. Raises ObjectChangedError: it was overwritten meanwhile."""
    hashed = hashlib.md5(usedforsecurity=False)
    for offset in range(0, info.num_bytes, READ_BYTES):
        size = min(READ_BYTES, info.num_bytes - offset)
        hashed.update(store.get_range(info.key, offset, size, etag=info.etag))
    return hashed.hexdigest()


def check_unchanged(source: Store, info: ObjectInfo) -> None:
    """Compare an object with what was listed. Raises ObjectChangedError."""
    found = source.head(info.key)
    if found.etag != info.etag:
        raise ObjectChangedError(
            f"{source.url}/{info.key} was overwritten while it was copied: its etag is {found.etag}, "
            f"was {info.etag}; sync again when it stands still"
        )


def _differs(where: str, how: str) -> str:
    return f"{where} is no copy: it has {how}; --overwrite sends it anew, or choose another destination"
