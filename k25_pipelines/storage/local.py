"""A store in a folder: one file an object, written beside its place and renamed into it."""

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from k25_pipelines.storage.store import ObjectInfo, checked_etag, checked_key, checked_length

TEMPORARY_PREFIX = ".k25-tmp-"
ETAG_LOCKS = 16
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""What starts a URL, also one with a slash too few, which would be an odd folder."""


class LocalStore:
    """Objects below a folder, which comes into being with the first of them. Etags are MD5, as S3's are."""

    def __init__(self, url: str) -> None:
        """Open the folder `url` (a path, or `file:///path`). Raises StoreError: another scheme."""
        if SCHEME.match(url) and not url.startswith("file://"):
            raise StoreError(f"{url}: no such kind of store; use s3://bucket/prefix, memory://name or a folder")
        self.root = Path(os.path.abspath(url.removeprefix("file://")))
        self.url = str(self.root)
        self._etags: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._etag_locks = [threading.Lock() for _ in range(ETAG_LOCKS)]

    def get(self, key: str) -> bytes:
        """Return a whole object. Raises ObjectNotFoundError."""
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise self._translated(error, key) from error

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return exactly `num_bytes` bytes from `offset`, of the object of that etag alone if one is given."""
        try:
            with self._path(key).open("rb") as file:
                if etag is not None:
                    checked_etag(self._etag(key, file), etag, where=f"{self.url}/{key}")
                file.seek(offset)
                data = file.read(num_bytes)
        except OSError as error:
            raise self._translated(error, key) from error
        return checked_length(data, num_bytes, where=f"{self.url}/{key} from byte {offset}")

    def head(self, key: str) -> ObjectInfo:
        """Return size and etag of an object. Raises ObjectNotFoundError."""
        try:
            return self._info(key, self._path(key))
        except OSError as error:
            raise self._translated(error, key) from error

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all, replacing what stood there."""
        self._write(key, data, publish=os.replace)

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object once, also between processes. Raises ObjectExistsError where other bytes stand."""
        try:
            self._write(key, data, publish=os.link)  # a hard link never replaces
        except ObjectExistsError:
            if self.get(key) != data:
                raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix`, in the order of their keys."""
        for key in sorted(self._keys(prefix)):
            try:
                yield self._info(key, self.root / key)
            except FileNotFoundError:
                continue  # deleted while we listed
            except OSError as error:
                raise self._translated(error, key) from error

    def delete(self, key: str) -> None:
        """Remove an object, and the folders that it leaves empty; one that is not there is no error."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except (NotADirectoryError, IsADirectoryError):
            return
        except OSError as error:
            raise self._translated(error, key) from error
        for folder in path.parents[: len(path.relative_to(self.root).parts) - 1]:
            with suppress(OSError):  # not empty
                folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _keys(self, prefix: str) -> Iterator[str]:
        start, _, _ = prefix.rpartition("/")
        if start:
            checked_key(start)
        for folder, _, names in os.walk(self.root / start, followlinks=True):
            below = os.path.relpath(folder, self.root)
            for name in names:
                key = name if below == "." else f"{below}/{name}"
                if key != key.encode("utf-8", "replace").decode():
                    raise StoreError(f"{self.url}/{key!a}: the file's name is not UTF-8; rename it")
                if key.startswith(prefix) and not name.startswith(TEMPORARY_PREFIX):
                    yield key

    def _info(self, key: str, path: Path) -> ObjectInfo:
        with path.open("rb") as file:
            return ObjectInfo(key=key, num_bytes=os.fstat(file.fileno()).st_size, etag=self._etag(key, file))

    def _etag(self, key: str, file: BufferedReader) -> str:
        """Return the MD5 of an open file, which is read through only when it is new to us or has changed."""
        state = os.fstat(file.fileno())
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
        with self._etag_locks[zlib.crc32(key.encode()) % len(self._etag_locks)]:  # threads wait for one that hashes it
            known = self._etags.get(key)
            if known is None or known[0] != stamp:
                hashed = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                known = self._etags[key] = stamp, hashed
            return known[1]

    def _write(self, key: str, data: bytes, publish: Callable[[Path, Path], None]) -> None:
        path = self._path(key)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid4().hex}"
        try:
            _write_synced(temporary, data)
        except OSError as error:
            raise StoreError(f"{self.url}/{key}: {error.strerror or error}; check rights, space and names") from error
        try:
            publish(temporary, path)
            _sync_folder(path.parent)
        except OSError as error:
            raise self._translated(error, key) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _translated(self, error: OSError, key: str) -> StoreError:
        where = f"{self.url}/{key}"
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return ObjectNotFoundError(f"{where}: no such object")
        if isinstance(error, FileExistsError):
            return ObjectExistsError(f"{where} stands already, with other bytes; it is written once")
        return StoreError(f"{where}: {error.strerror or error}; check the folder's rights and free space")


def _write_synced(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
