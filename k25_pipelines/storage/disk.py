"""The cache's disk tier: a folder of checked files that processes share, each of which a process may die in."""

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from k25_pipelines.errors import StoreError
from k25_pipelines.storage.horizon import Horizon, known_uses

BLOCK_BYTES = 64 * 2**10
"""A file has a checksum for each block of this size, so that a part is checked without reading the whole."""
CHECKSUM_BYTES = 4
LOCKS, EVICTION, LIMIT = "locks", "evict", "limit"
"""Folder of the locks; the lock under which files are dropped; the file that names the limit [bytes]."""
LOCK_DIGITS = 3
"""Hex digits of a name that pick its lock file: 4,096 of them, which stay."""
RECOUNT_SHARE = 64
"""A process counts the folder anew after it wrote this part of the limit itself."""
KEPT_SHARE = 0.875
"""What an eviction leaves, so that eight processes together stay below the limit between their counts."""
STALE_SECONDS = 3600
"""Age at which a temporary file belongs to a process that died."""


class DiskTier:
    """Files by name in a folder that other processes use as well."""

    def __init__(self, folder: Path, limit: int, count: Callable[..., None]) -> None:
        """Open `folder`, which keeps `limit` bytes at most; `count` is told of evictions and corrupt files.

        Raises:
            StoreError: the folder cannot be made or written.
        """
        self._folder, self._limit, self._count = folder, limit, count
        self._lock = threading.Lock()
        self._used = 0
        self._written = limit  # since the folder was counted; nothing was counted yet
        try:
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
            (folder / LOCKS / EVICTION).open("ab").close()
            (folder / LIMIT).write_text(str(limit))
            self._horizon = Horizon(folder)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cache folder {folder}: {reason}; name one that can be written, or none") from error

    def expect(self, uses: Mapping[str, int]) -> None:
        """Say when each name is used next; replaces what this process said before."""
        self._horizon.publish(uses)

    def part(self, name: str, num_bytes: int, start: int, length: int) -> bytes | None:
        """Return a part of a file of `num_bytes` bytes of content; None if it is not there, cut short or changed."""
        path = self._path(name)
        try:
            with path.open("rb", buffering=0) as file:
                data = _checked_part(file.fileno(), num_bytes, start, length)
        except OSError:
            return None
        if data is None:
            self._count(corrupt=1)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # it may be gone by now, or another user's
            os.utime(path)  # used now: the order of eviction where no next use is known
        return data

    def read(self, name: str, num_bytes: int, fetch: Callable[[], bytes]) -> tuple[bytes, bool]:
        """Return a file's content, and whether we fetched it: one process fetches, the others wait for it."""
        data = self.part(name, num_bytes, 0, num_bytes)
        if data is not None:
            return data, False
        with _locked(self._folder / LOCKS / name[:LOCK_DIGITS]) as waited:
            data = self.part(name, num_bytes, 0, num_bytes)  # another process may have fetched it while we waited
            if data is not None:
                self._count(waits=waited)
                return data, False
            data = fetch()
            self._write(name, data)
        return data, True

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _write(self, name: str, data: bytes) -> None:
        checksums = _checksums(data)
        size = len(data) + len(checksums)
        if size > self._limit * KEPT_SHARE or not self._make_room(name, size):
            return
        path = self._path(name)
        temporary = path.with_name(f".{uuid4().hex}")
        with suppress(OSError):  # a full disk is no reason to stop: the bytes are in memory
            path.parent.mkdir(exist_ok=True)
            try:
                with temporary.open("wb", buffering=0) as file:
                    _write_all(file.fileno(), data, checksums)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, name: str, size: int) -> bool:
        """Drop files until `size` bytes more fit; return False if all the others are used before `name` is."""
        with self._lock:
            is_counted = self._written + size <= self._limit // RECOUNT_SHARE
            if is_counted and self._used + size <= self._limit:
                self._used += size
                self._written += size
                return True
        with _locked(self._folder / LOCKS / EVICTION):
            used, num_dropped, has_room = _evict(self._folder, limit=self._limit, name=name, size=size)
        self._count(disk_evictions=num_dropped)
        with self._lock:
            self._used, self._written = used + size * has_room, size * has_room
        return has_room


def _checksums(data: bytes) -> bytes:
    """Return what stands behind the content of a file: a checksum a block, then one of these."""
    view = memoryview(data)
    sums = b"".join(
        zlib.crc32(view[start : start + BLOCK_BYTES]).to_bytes(CHECKSUM_BYTES, "little")
        for start in range(0, len(data), BLOCK_BYTES)
    )
    return sums + zlib.crc32(sums).to_bytes(CHECKSUM_BYTES, "little")


def _checked_part(file: int, num_bytes: int, start: int, length: int) -> bytes | None:
    """Read the blocks that a part touches, and compare each with its checksum; None where one differs."""
    num_sums = -(-num_bytes // BLOCK_BYTES)
    if os.fstat(file).st_size != num_bytes + (num_sums + 1) * CHECKSUM_BYTES:
        return None
    first, end = start // BLOCK_BYTES, min(-(-(start + length) // BLOCK_BYTES), num_sums)
    begin = first * BLOCK_BYTES
    read = os.pread(file, min(end * BLOCK_BYTES, num_bytes) - begin, begin)
    blocks = memoryview(read)
    trailer = os.pread(file, (num_sums + 1) * CHECKSUM_BYTES, num_bytes)
    if len(blocks) != min(end * BLOCK_BYTES, num_bytes) - begin:
        return None
    sums = trailer[:-CHECKSUM_BYTES]
    if zlib.crc32(sums).to_bytes(CHECKSUM_BYTES, "little") != trailer[-CHECKSUM_BYTES:]:
        return None
    for number in range(first, end):
        block = blocks[number * BLOCK_BYTES - begin : (number + 1) * BLOCK_BYTES - begin]
        place = number * CHECKSUM_BYTES
        if zlib.crc32(block).to_bytes(CHECKSUM_BYTES, "little") != sums[place : place + CHECKSUM_BYTES]:
            return None
    return read if len(read) == length else read[start - begin : start - begin + length]


def _write_all(file: int, *parts: bytes) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(file, view) :]


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock between processes, and tell whether another held it before us; the kernel frees a dead one's.

    Where the file of the lock cannot be made, as on a full disk, nothing can be kept either, and no lock is needed.
    """
    with ExitStack() as held:
        waited = False
        with suppress(OSError):
            file = held.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
        yield waited


def _evict(folder: Path, *, limit: int, name: str, size: int) -> tuple[int, int, bool]:
    """Drop what is used last if `size` bytes more would pass the limit.

    First those go whose next use nobody knows, of these the one unused for longest; then the one used farthest
    ahead (Belady 1966). If that is `name` itself, which is to be written, nothing goes for it.

    Returns:
        bytes that stay, files dropped, whether `name` has room.
    """
    files = list(chunk_files(folder))
    used = sum(num_bytes for _, num_bytes, _ in files) + sum(num_bytes for num_bytes, _ in temporaries(folder))
    if used + size <= limit * KEPT_SHARE:
        return used, 0, True
    uses = known_uses(folder)
    own = _worth(uses.get(name), time.time_ns())
    num_dropped = 0
    for worth, num_bytes, path in sorted((_worth(uses.get(path.name), used_ns), n, path) for used_ns, n, path in files):
        if used + size <= limit * KEPT_SHARE:
            break
        if worth > own:
            return used, num_dropped, False
        with suppress(OSError):  # another user's file stays, and counts
            path.unlink(missing_ok=True)
            used -= num_bytes
            num_dropped += 1
    return used, num_dropped, True


def _worth(steps_ahead: int | None, used_ns: int) -> tuple[bool, int]:
    """Return what orders files by how soon they are needed, the last needed first."""
    return (False, used_ns) if steps_ahead is None else (True, -steps_ahead)


def chunk_files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield time of last use [ns], size [bytes] and path of each file of the cache in `folder`."""
    for path in folder.glob("[0-9a-f][0-9a-f]/[0-9a-f]*"):
        with suppress(OSError):
            state = path.stat()
            yield state.st_mtime_ns, state.st_size, path


def temporaries(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield size [bytes] and path of what is being written; sweep up what dead processes left half-written."""
    for path in folder.glob("[0-9a-f][0-9a-f]/.*"):
        with suppress(OSError):
            state = path.stat()
            if time.time() - state.st_mtime > STALE_SECONDS:
                path.unlink()
            else:
                yield state.st_size, path
