"""The protocol of an object store: keys below one root URL in, bytes out; `open_store` picks the backend."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from k25_pipelines.errors import ObjectChangedError, StoreError

HEDGE_SECONDS = 1.0
"""No small read is late before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One object as a listing shows it."""

    key: str
    """Name below the store's root, with forward slashes."""
    num_bytes: int
    """Size [bytes]."""
    etag: str
    """What changes when the bytes do; unquoted."""


class Store(Protocol):
    """Objects below one root. Keys never start with a slash; a failure is a named `StoreError`."""

    @property
    def url(self) -> str:
        """The root, such as `s3://bucket/prefix` or `/folder`, without a slash at the end."""
        ...

    def get(self, key: str) -> bytes:
        """Return a whole object. Raises ObjectNotFoundError."""
        ...

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return exactly `num_bytes` bytes from `offset`; a short object is a StoreError.

        With an `etag`, bytes come back only of the object that has it; of another one at the same
        key, whatever its size, comes ObjectChangedError. No further request is made.
        """
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return size and etag of an object. Raises ObjectNotFoundError."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all, replacing what stood there: for pointers only."""
        ...

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object once. The same bytes again are fine; others raise ObjectExistsError."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix`, in the order of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...


def open_store(url: str) -> Store:
    """Return the store below `url`.

    Args:
        url: `s3://bucket[/prefix]` (configured by the standard AWS_* variables alone),
            `memory://name` (one per name and process, for tests), or a folder.

    S3 is asked under limits that a user's processes on this machine share, through a file below the
    folder of temporary files (TMPDIR). They are set by variables, too:
    K25_S3_REQUESTS_PER_SECOND and K25_S3_BYTES_PER_SECOND, else there is none until the server first
    refuses, and then one is found; K25_S3_HEDGE [seconds, or `off`; 1 if not set], before which no
    small read is called late and asked for a second time.

    Raises:
        StoreError: the URL names no known backend, or a limit is no number.
    """
    from k25_pipelines.storage.local import LocalStore
    from k25_pipelines.storage.memory import memory_store

    if url.startswith("s3://"):
        from k25_pipelines.storage.s3 import S3Store  # boto3 loads slowly; a folder needs none

        return S3Store(url, **_limits())
    if url.startswith("memory://"):
        return memory_store(url)
    return LocalStore(url)


def _limits() -> dict[str, float | None]:
    """Return what limits S3 access, from the environment."""
    hedge = os.environ.get("K25_S3_HEDGE") or str(HEDGE_SECONDS)
    return {
        "requests_per_second": _positive("K25_S3_REQUESTS_PER_SECOND", os.environ.get("K25_S3_REQUESTS_PER_SECOND")),
        "bytes_per_second": _positive("K25_S3_BYTES_PER_SECOND", os.environ.get("K25_S3_BYTES_PER_SECOND")),
        "hedge_seconds": None if hedge == "off" else _positive("K25_S3_HEDGE", hedge),
    }


def _positive(name: str, words: str | None) -> float | None:
    if not words:
        return None
    try:
        value = float(words)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise StoreError(f"{name} is {words!r}; set a number above 0, or unset it")
    return value


def checked_key(key: str) -> str:
    """Return `key` if every backend can hold it. Raises StoreError: empty, absolute, or with "." or ".." in it."""
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise StoreError(f"key {key!r} is not a relative path of plain names; keys cannot leave the root of the store")
    return key


def checked_length(data: bytes, num_bytes: int, *, where: str) -> bytes:
    """Return `data` if it is as long as asked for. Raises StoreError: the object is shorter."""
    if len(data) != num_bytes:
        raise StoreError(f"{where} gave {len(data)} bytes where {num_bytes} were asked for: the object is shorter")
    return data


def checked_etag(found: str, etag: str | None, *, where: str) -> None:
    """Compare an object's etag with the one it had when it was indexed, if that is known. Raises ObjectChangedError."""
    if etag is not None and found != etag:
        raise ObjectChangedError(
            f"{where} was overwritten: its etag is {found}, expected {etag};"
            " restore it, or register the new state as a new dataset"
        )


def read_url(url: str) -> bytes:
    """Return the object that a full URL names, such as `s3://bucket/a/b.json` or `/folder/b.json`."""
    root, _, name = url.rpartition("/")
    return open_store(root or "/").get(name)
