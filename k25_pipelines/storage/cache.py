"""Memory, then disk, then the store: ranges of objects in, bytes out; each range is fetched once on a machine."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from k25_pipelines.errors import StoreError
from k25_pipelines.keys import digest
from k25_pipelines.storage import horizon
from k25_pipelines.storage.disk import LIMIT, STALE_SECONDS, DiskTier, chunk_files
from k25_pipelines.storage.store import Store

Name = tuple[str, str, int, int, str]
"""A range: URL of its store, key, offset [bytes], number of bytes, etag ("" where it is unknown)."""

RAM_BYTES = 256 * 2**20
DISK_BYTES = 4 * 2**30
FLIGHT_BYTES = 128 * 2**20
"""Ranges under way at once beside what memory keeps, at most; a single one may be larger [bytes]."""
MANY = 512
"""From so many ranges in memory on, a sixteenth goes at once, as finding the ones to drop takes time."""
COUNTED = (
    "ram_hits",
    "disk_hits",
    "misses",
    "direct",
    "waits",
    "fetched_bytes",
    "ram_evictions",
    "disk_evictions",
    "corrupt",
)


class ChunkCache:
    """Ranges of objects, bounded in bytes on both tiers; what is used last goes first, as far as that is known.

    Threads and processes may share the folder. A name holds the etag, so an object that was
    overwritten is another entry. A file carries checksums: one cut short or changed is fetched again.
    """

    def __init__(self, folder: Path | None, *, ram_bytes: int = RAM_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        """Open the cache in `folder`; None keeps ranges in memory alone. Limits are in bytes.

        Raises:
            StoreError: the folder cannot be made or written.
        """
        self._disk = None if folder is None else DiskTier(Path(folder), disk_bytes, self._count)
        self._lock = threading.Lock()
        self._landed = threading.Condition(self._lock)
        self._ram: OrderedDict[Name, bytes] = OrderedDict()
        self._ram_bytes, self._ram_used = ram_bytes, 0
        self._flights: dict[Name, Future[bytes]] = {}
        self._flying = 0
        self._uses: dict[Name, int] = {}
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def read(self, store: Store, key: str, offset: int, num_bytes: int, etag: str) -> bytes:
        """Return exactly `num_bytes` bytes from `offset` of the object that had `etag`; "" is one of unknown etag.

        Raises:
            ObjectChangedError: the object is another one by now; nothing is kept of it.
            StoreError: the store refused, or the object is shorter.
        """
        name = (store.url, key, offset, num_bytes, etag)
        with self._lock:
            if (data := self._in_ram(name)) is not None:
                return data
            flight = self._flights.get(name)
            is_ours = flight is None
            if flight is None:
                flight = self._flights[name] = Future()
            self._counts["waits"] += not is_ours
        return self._fly(flight, store, name) if is_ours else flight.result()

    def part(
        self, store: Store, key: str, offset: int, num_bytes: int, etag: str, *, start: int, length: int, eager=False
    ) -> bytes:
        """Return `length` bytes from `start` of the range that `read` would return, for less where that is possible.

        A file of the cache is read and checked only where the part lies. Of what is neither here nor
        under way the whole range is fetched and kept, or, if `eager`, the part alone, which is not kept.

        Raises:
            ValueError: the part does not lie in the range.
            ObjectChangedError, StoreError: as from `read`.
        """
        if start < 0 or length < 0 or start + length > num_bytes:
            raise ValueError(f"bytes {start} to {start + length} do not lie in a range of {num_bytes}")
        name = (store.url, key, offset, num_bytes, etag)
        with self._lock:
            data = self._in_ram(name)
            flight = self._flights.get(name)
            self._counts["waits"] += flight is not None
        if data is None and flight is not None:
            data = flight.result()
        if data is not None:
            return data[start : start + length]
        if self._disk and (found := self._disk.part(_file_name(name), num_bytes, start, length)) is not None:
            self._count(disk_hits=1)
            return found
        if not eager:
            return self.read(store, key, offset, num_bytes, etag)[start : start + length]
        self._count(direct=1, fetched_bytes=length)
        return store.get_range(key, offset + start, length, etag=etag or None)

    def expect(self, uses: Mapping[Name, int]) -> None:
        """Say when ranges are used next, in any number that increases, such as the step; replaces what was said.

        On both tiers, ranges of which nothing is said go first, those unused for longest before others; then
        those used farthest ahead. Processes hear of each other's uses, as distances from the nearest one.
        """
        if uses == self._uses:
            return
        with self._lock:
            self._uses = dict(uses)
        if self._disk:
            self._disk.expect({_file_name(name): use for name, use in uses.items()})

    def statistics(self) -> dict[str, int]:
        """Return what happened so far: reads served by memory, disk and another's flight, misses, bytes, evictions."""
        with self._lock:
            return dict(self._counts)

    def _in_ram(self, name: Name) -> bytes | None:
        data = self._ram.get(name)
        if data is not None:
            self._ram.move_to_end(name)
            self._counts["ram_hits"] += 1
        return data

    def _fly(self, flight: Future[bytes], store: Store, name: Name) -> bytes:
        """Get one range for all who wait for it, and hand each of them the bytes or the error."""
        try:
            with self._room(name[3]):
                data = self._fetched(store, name)
        except BaseException as error:
            with self._lock:
                del self._flights[name]
            flight.set_exception(error)
            raise
        with self._lock:
            self._keep_in_ram(name, data)
            del self._flights[name]
        flight.set_result(data)
        return data

    def _fetched(self, store: Store, name: Name) -> bytes:
        _, key, offset, num_bytes, etag = name

        def fetch() -> bytes:
            data = store.get_range(key, offset, num_bytes, etag=etag or None)
            self._count(misses=1, fetched_bytes=num_bytes)
            return data

        if not self._disk:
            return fetch()
        data, is_new = self._disk.read(_file_name(name), num_bytes, fetch)
        self._count(disk_hits=not is_new)
        return data

    @contextmanager
    def _room(self, num_bytes: int) -> Iterator[None]:
        with self._landed:
            self._landed.wait_for(lambda: not self._flying or self._flying + num_bytes <= FLIGHT_BYTES)
            self._flying += num_bytes
        try:
            yield
        finally:
            with self._landed:
                self._flying -= num_bytes
                self._landed.notify_all()

    def _keep_in_ram(self, name: Name, data: bytes) -> None:
        if len(data) > self._ram_bytes:
            return
        self._ram[name] = data
        self._ram_used += len(data)
        if self._ram_used <= self._ram_bytes:
            return
        most = self._ram_bytes if len(self._ram) < MANY else self._ram_bytes * 15 // 16
        for dropped in self._by_worth():
            if self._ram_used <= most:
                break
            self._ram_used -= len(self._ram.pop(dropped))
            self._counts["ram_evictions"] += 1

    def _by_worth(self) -> list[Name]:
        """Return what memory keeps: first those nobody expects, in the order of their last uses; then from far to near.

        With no expectations that is the order of last uses.
        """
        if not self._uses:
            return list(self._ram)
        unknown = [name for name in self._ram if name not in self._uses]
        return unknown + sorted(self._ram.keys() & self._uses.keys(), key=lambda name: (-self._uses[name], name))

    def _count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)


@lru_cache(maxsize=2**16)
def _file_name(name: Name) -> str:
    return digest("chunk", *name)


def cache_summary(folder: Path) -> dict:
    """Return what a cache folder holds: files, bytes, limit [bytes], oldest use [Unix time], what dead writers left.

    Raises:
        StoreError: no cache lies there.
    """
    folder, files = _existing(folder), list(chunk_files(folder))
    stale = _stale(folder)
    limit = (folder / LIMIT).read_text() if (folder / LIMIT).exists() else ""
    return {
        "folder": str(folder),
        "files": len(files),
        "bytes": sum(num_bytes for _, num_bytes, _ in files),
        "limit": int(limit) if limit.isdecimal() else None,
        "oldest_use": min((used for used, _, _ in files), default=0) / 1e9 or None,
        "stale_files": len(stale),
        "stale_bytes": sum(num_bytes for num_bytes, _ in stale),
    }


def clear_cache(folder: Path) -> dict:
    """Drop every range that a cache folder keeps and what dead writers left, and return how much that was.

    Processes that use it go on and fetch anew; the files of locks stay, as they may be held.

    Raises:
        StoreError: no cache lies there, or a file cannot be removed.
    """
    folder, removed = _existing(folder), {"files": 0, "bytes": 0}
    for num_bytes, path in [(num_bytes, path) for _, num_bytes, path in chunk_files(folder)] + _stale(folder):
        try:
            path.unlink()
        except FileNotFoundError:  # its user was faster
            continue
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}; clear it as its owner") from error
        removed["files"] += 1
        removed["bytes"] += num_bytes
    return {"folder": str(folder), **removed}


def _existing(folder: Path) -> Path:
    if not (Path(folder) / "locks").is_dir():
        raise StoreError(f"cache folder {folder}: no cache lies there; name the folder that a loader was given")
    return Path(folder)


def _stale(folder: Path) -> list[tuple[int, Path]]:
    """Return size [bytes] and path of the temporary files of dead writers."""
    found = []
    for path in [*folder.glob("[0-9a-f][0-9a-f]/.*"), *folder.glob(f"{horizon.FOLDER}/.*")]:
        with suppress(OSError):
            state = path.stat()
            if time.time() - state.st_mtime > STALE_SECONDS:
                found.append((state.st_size, path))
    return found
