"""Memory, then disk, then the store: ranges of objects in, bytes out; each range is fetched once on a machine."""

import fcntl
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from k25_pipelines.errors import StoreError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

RAM_BYTES = 256 * 2**20
DISK_BYTES = 4 * 2**30
TRAILER_BYTES = 4
EVICTION = "evict"
"""Name of the lock under which files are dropped."""
LOCK_DIGITS = 3
"""Hex digits of a name that pick its lock file: 4,096 of them, which stay."""
RECOUNT_SHARE = 32
"""A process counts the folder anew after it wrote this part of the limit itself."""
KEPT_SHARE = 0.75
"""What an eviction leaves, so that many processes together stay below the limit between their counts."""
STALE_SECONDS = 3600
"""Age at which a temporary file belongs to a process that died."""


class ChunkCache:
    """Ranges of objects, bounded in bytes on both tiers; what was not used for longest goes first.

    Threads and processes may share the folder. A name holds the etag, so an object that was
    overwritten is another entry. A file carries a checksum: one cut short or changed is fetched again.
    """

    def __init__(self, folder: Path | None, *, ram_bytes: int = RAM_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        """Open the cache in `folder`; None keeps ranges in memory alone. Limits are in bytes.

        Raises:
            StoreError: the folder cannot be made or written.
        """
        self._disk = None if folder is None else _DiskTier(Path(folder), disk_bytes)
        self._lock = threading.Lock()
        self._ram: OrderedDict[str, bytes] = OrderedDict()
        self._ram_bytes, self._ram_used = ram_bytes, 0
        self._flights: dict[str, Future[bytes]] = {}

    def read(self, store: Store, key: str, offset: int, num_bytes: int, etag: str) -> bytes:
        """Return exactly `num_bytes` bytes from `offset` of the object that had `etag`; "" is one of unknown etag.

        Raises:
            ObjectChangedError: the object is another one by now; nothing is kept of it.
            StoreError: the store refused, or the object is shorter.
        """
        name = digest("chunk", store.url, key, offset, num_bytes, etag)
        with self._lock:
            if name in self._ram:
                self._ram.move_to_end(name)
                return self._ram[name]
            flight = self._flights.get(name)
            is_ours = flight is None
            if flight is None:
                flight = self._flights[name] = Future()
        if is_ours:
            fetch = partial(store.get_range, key, offset, num_bytes, etag=etag or None)
            self._fly(flight, name, fetch=fetch, num_bytes=num_bytes)
        return flight.result()

    def _fly(self, flight: Future[bytes], name: str, *, fetch: Callable[[], bytes], num_bytes: int) -> None:
        """Fetch one range for all who wait for it, and hand each of them the bytes or the error."""
        try:
            data = self._disk.read(name, num_bytes, fetch) if self._disk else fetch()
        except BaseException as error:
            with self._lock:
                del self._flights[name]
            flight.set_exception(error)
            raise
        with self._lock:
            self._keep_in_ram(name, data)
            del self._flights[name]
        flight.set_result(data)

    def _keep_in_ram(self, name: str, data: bytes) -> None:
        if len(data) > self._ram_bytes:
            return
        self._ram[name] = data
        self._ram_used += len(data)
        while self._ram_used > self._ram_bytes:
            _, dropped = self._ram.popitem(last=False)
            self._ram_used -= len(dropped)


class _DiskTier:
    """Files by name in a folder that other processes use as well."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._used = 0
        self._written = limit  # since the folder was counted; nothing was counted yet
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            (folder / "locks" / EVICTION).open("ab").close()
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cache folder {folder}: {reason}; name one that can be written, or none") from error

    def read(self, name: str, num_bytes: int, fetch: Callable[[], bytes]) -> bytes:
        path = self._folder / name[:2] / name
        data = _read_checked(path, num_bytes)
        if data is not None:
            return data
        with _locked(self._folder / "locks" / name[:LOCK_DIGITS]):
            data = _read_checked(path, num_bytes)  # another process may have fetched it while we waited
            if data is None:
                data = fetch()
                self._write(path, data)
        return data

    def _write(self, path: Path, data: bytes) -> None:
        size = len(data) + TRAILER_BYTES
        if size > self._limit * KEPT_SHARE:
            return
        self._make_room(size)
        temporary = path.with_name(f".{uuid4().hex}")
        with suppress(OSError):  # a full disk is no reason to stop: the bytes are in memory
            path.parent.mkdir(exist_ok=True)
            try:
                temporary.write_bytes(data + zlib.crc32(data).to_bytes(TRAILER_BYTES, "little"))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        with self._lock:
            is_counted = self._written + size <= self._limit // RECOUNT_SHARE
            if is_counted and self._used + size <= self._limit:
                self._used += size
                self._written += size
                return
        with _locked(self._folder / "locks" / EVICTION):
            used = _evict(self._folder, limit=self._limit, size=size)
        with self._lock:
            self._used, self._written = used + size, size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the kernel lets go of it when its holder dies, however it dies.

    Where the file of the lock cannot be made, as on a full disk, nothing can be kept either, and no lock is needed.
    """
    with ExitStack() as held:
        with suppress(OSError):
            file = held.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_checked(path: Path, num_bytes: int) -> bytes | None:
    """Return the bytes of a cache file, or None if it is not there, unreadable, cut short or changed."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[:-TRAILER_BYTES]
    if len(body) != num_bytes or zlib.crc32(body).to_bytes(TRAILER_BYTES, "little") != data[-TRAILER_BYTES:]:
        return None
    with suppress(OSError):  # it may be gone by now, or another user's
        os.utime(path)  # used now; the order of eviction is recorded nowhere
    return body


def _evict(folder: Path, *, limit: int, size: int) -> int:
    """Drop the files unused for longest if `size` bytes more would pass the limit; return the bytes that stay."""
    files = list(_cache_files(folder))
    used = sum(num_bytes for _, num_bytes, _ in files)
    if used + size <= limit * KEPT_SHARE:
        return used
    for _, num_bytes, path in sorted(files):
        if used + size <= limit * KEPT_SHARE:
            break
        with suppress(OSError):  # another user's file stays, and counts
            path.unlink(missing_ok=True)
            used -= num_bytes
    return used


def _cache_files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield time of last use, size and path of each file; sweep up what dead processes left half-written."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        with suppress(OSError):
            state = path.stat()
            if path.name.startswith(".") and time.time() - state.st_mtime > STALE_SECONDS:
                path.unlink()
                continue
            if not path.name.startswith("."):
                yield state.st_mtime_ns, state.st_size, path
