"""A machine of the simulated training: its cache, prefetcher and throttle are real, its threads greenlets."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from benchmarks.virtual import FaultError, RefusedError, Signal, StoreModel, VirtualClock
from k25_pipelines.errors import StoreError
from k25_pipelines.loader.planloader import FETCHED_BYTES, STEPS_AHEAD
from k25_pipelines.loader.prefetch import EARLY_BYTES, EARLY_SHARE, FETCH_THREADS, Chunk, Prefetcher, Reader
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.store import Store
from k25_pipelines.storage.throttle import PATIENT
from k25_pipelines.storage.traffic import Traffic

IMAGE_BYTES = 100_000
SMALLER = 2048
"""A byte on the disk of the simulation stands for so many."""
RAM_BYTES, DISK_BYTES = 256 * 2**20, 2 * 2**30


class PlannedRows(Protocol):
    """What a node asks of a plan."""

    num_steps: int

    def samples(self, node: int, step: int) -> list[Chunk]:
        """Return the chunk of each sample."""
        ...

    def chunks(self, node: int, step: int) -> list[Chunk]:
        """Return the chunks, once each."""
        ...

    def bytes_of(self, chunk: Chunk) -> int:
        """Return the size of a chunk [bytes]."""
        ...


class Absent(StoreError):
    """The cache has to fetch."""


class Shelf:
    """What stands for the store below the cache: nothing, or, once the request was simulated, its bytes."""

    url = "sim://lake"

    def __init__(self) -> None:
        """Have nothing yet."""
        self.has_come = False

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return zeros, or raise Absent."""
        if not self.has_come:
            raise Absent(key)
        return bytes(num_bytes)


class Node:
    """One machine: a cache, a budget, threads that fetch, and how far it has loaded. A `Reader` to the prefetcher."""

    def __init__(
        self, folder: Path, clock: VirtualClock, model: StoreModel, rows: PlannedRows, number: int, ready: Signal
    ) -> None:
        """Set it up with an empty cache."""
        self.clock, self.model, self.rows, self.number = clock, model, rows, number
        self.ready = ready
        self.cache = ChunkCache(folder / "cache", ram_bytes=RAM_BYTES // SMALLER, disk_bytes=DISK_BYTES // SMALLER)
        self.traffic = Traffic(
            folder / "budget",
            clock.time,
            clock.sleep,
            is_transient=lambda error: isinstance(error, RefusedError | FaultError),
            refusal=lambda error: (isinstance(error, RefusedError), None),
        )
        self.shelf, self.queue = Shelf(), list[tuple[Future[bytes], Callable[[], None]]]()
        self.idle, self.landed, self.asked = clock.waiter(), clock.waiter(), clock.waiter()
        self.under_way, self.loaded, self.wanted, self.is_over = set[Chunk](), -1, -1, False
        self.early, self.late = 0, list[Chunk]()
        self.prefetcher = Prefetcher(
            cast(Reader, self),
            chunks_of_step=partial(rows.chunks, number),
            num_steps=rows.num_steps,
            limit=max(RAM_BYTES, min(DISK_BYTES // 2, FETCHED_BYTES)),
        )
        for _ in range(FETCH_THREADS):
            clock.start(self._work)
        clock.start(self._load)

    def ask(self, step: int) -> None:
        """Begin with a step, as `PlanLoader.batch` does."""
        if step == 0:
            self._read_early()
        self.wanted = step
        self.prefetcher.begin(step)
        self.asked.happen()

    def close(self) -> None:
        """Let the threads end."""
        self.is_over = True
        self.idle.happen()

    def chunk_bytes(self, chunk: Chunk) -> int:
        """Return the size of a chunk [bytes]."""
        return self.rows.bytes_of(chunk)

    def fetch_ahead(self, chunk: Chunk) -> list[Future[bytes]]:
        """Queue a chunk."""
        return [self._queued(partial(self._fetch, chunk))]

    def expect(self, uses: Mapping[Chunk, int]) -> None:
        """Tell the cache."""
        self.cache.expect({(self.shelf.url, *self._extent(chunk)): step for chunk, step in uses.items()})

    def submit(self, work: Callable[..., None], *arguments: object) -> Future[None]:
        """Do it at once: it does not block."""
        done: Future[None] = Future()
        work(*arguments)
        done.set_result(None)
        return done

    def _load(self) -> None:
        """Read the chunks of each step, as many steps ahead of the one asked for as the loader decodes."""
        for step in range(self.rows.num_steps):
            while step > self.wanted + STEPS_AHEAD or self.wanted < 0:
                self.asked.wait()
            chunks = self.rows.chunks(self.number, step)
            while step == 0 and self.early:
                self.landed.wait()
            for chunk in chunks if step else self.late:
                while not self._is_here(chunk):
                    if chunk in self.under_way:
                        self.landed.wait()
                    else:
                        self._fetch(chunk)
            self.loaded = step
            self.ready.happen()

    def _read_early(self) -> None:
        """Read the first step's samples by range where their chunks are large, by the rule of `Reader.read_early`."""
        share = Counter(self.rows.samples(self.number, 0))
        is_early = {
            chunk: self.rows.bytes_of(chunk) >= max(EARLY_BYTES, EARLY_SHARE * count * IMAGE_BYTES)
            for chunk, count in share.items()
        }
        self.late = [chunk for chunk in share if not is_early[chunk]]
        self.early = sum(count for chunk, count in share.items() if is_early[chunk])
        for chunk in self.rows.samples(self.number, 0):
            if is_early[chunk]:
                self._queued(partial(self._fetch_sample, chunk))

    def _fetch_sample(self, chunk: Chunk) -> None:
        self._request(chunk, IMAGE_BYTES)
        self.early -= 1
        self.landed.happen()

    def _fetch(self, chunk: Chunk) -> None:
        """Bring a chunk into the cache; one that another thread fetches is its business, as in the cache itself."""
        if chunk in self.under_way or self._is_here(chunk):
            return
        self.under_way.add(chunk)
        try:
            self._request(chunk, self.rows.bytes_of(chunk))
            self.shelf.has_come = True
            self.cache.read(cast(Store, self.shelf), *self._extent(chunk))
        finally:
            self.shelf.has_come = False
            self.under_way.discard(chunk)
            self.landed.happen()

    def _request(self, chunk: Chunk, num_bytes: int) -> None:
        def get() -> bytes:
            self.model.get("one", num_bytes)
            return b""

        self.traffic.read(get, policy=lambda: PATIENT, num_bytes=num_bytes)

    def _is_here(self, chunk: Chunk) -> bool:
        try:
            self.cache.part(cast(Store, self.shelf), *self._extent(chunk), start=0, length=1)
        except Absent:
            return False
        return True

    def _extent(self, chunk: Chunk) -> tuple[str, int, int, str]:
        return f"{chunk[0]}/{chunk[1]:08}", 0, self.rows.bytes_of(chunk) // SMALLER, "e"

    def _queued(self, work: Callable[[], None]) -> Future[bytes]:
        future: Future[bytes] = Future()
        self.queue.append((future, work))
        self.idle.happen()
        return future

    def _work(self) -> None:
        while not self.is_over:
            while self.queue:
                future, work = self.queue.pop(0)
                if future.set_running_or_notify_cancel():
                    work()
                    future.set_result(b"")
            self.idle.wait()
