"""What coming steps read: a plan's rows in; their chunks fetched ahead in the order of use, their bytes out.

Fetching ahead is bounded in bytes. The cache is told when each chunk comes next. A loader that has just
been placed at a step reads that step's samples by range, while their chunks are still on the way.
"""

import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from k25_pipelines.catalog.manifest import Manifest, read_manifest
from k25_pipelines.errors import K25Error, ObjectChangedError
from k25_pipelines.sample.read import Extent, Fetch, Tables, extents_of_chunk, merged
from k25_pipelines.sample.token_cache import TokenCache
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.store import Store, open_store

HORIZON_STEPS = 128
"""Steps whose chunks are known ahead."""
STEPS_BETWEEN_NEWS = 16
"""The cache is told anew after as many steps."""
FETCH_THREADS = 8
"""Requests at once."""
GROUP_BYTES = 8 * 2**20
"""Of a dataset that the cache can hold whole, chunks smaller than this are fetched with their neighbours [bytes]."""
GROUP_SAMPLE = 8
"""Chunks from which the size of all is reckoned."""
EXTENTS_KEPT = 4096
"""Chunks whose ranges are remembered."""
EARLY_SHARE = 8
"""At a first step a part is read by itself if its range is this many times as long, ..."""
EARLY_BYTES = 2**20
"""... and no shorter than this [bytes]."""

Chunk = tuple[str, int]
"""Dataset and number of a chunk, or of a group of neighbours that are fetched together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One dataset version of the plan, open for reading."""

    manifest: Manifest
    store: Store
    token_cache: TokenCache | None
    """The ids of its documents, where they are kept and wanted."""
    group: int = 1
    """Neighbouring chunks that are fetched together."""
    tables: Tables = field(default_factory=Tables)


class Reader:
    """The bytes of a plan's samples, in threads that it owns until closed."""

    def __init__(
        self,
        lake: Store,
        datasets: Mapping[str, str],
        cache: ChunkCache,
        *,
        token_cache: Callable[[Manifest], TokenCache | None],
        whole_bytes: int = 0,
        prefix: str = "fetch",
    ) -> None:
        """Read the dataset versions of a plan.

        Args:
            lake: where the manifests stand.
            datasets: manifest digest of each dataset.
            cache: which keeps what is fetched.
            token_cache: gives the ids of a dataset's documents, or None.
            whole_bytes: datasets up to this size stay in the cache once read, so that their small chunks are
                fetched with their neighbours: fewer requests, no more bytes [bytes].
            prefix: of the threads' names.
        """
        self._lake, self._datasets, self._cache, self._token_cache = lake, datasets, cache, token_cache
        self._whole_bytes = whole_bytes
        self._sources: dict[str, Source] = {}
        self._locks = {name: threading.Lock() for name in datasets}
        self._early: dict[tuple[str, Extent], tuple[Future[bytes], int]] = {}
        """Part of a dataset -> the read that holds it, and where in its bytes it begins."""
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix=prefix)
        self._extents = lru_cache(maxsize=EXTENTS_KEPT)(self._chunk_extents)

    def source(self, dataset: str) -> Source:
        """Return a dataset of the plan, opened when it is first asked for."""
        if dataset not in self._sources:
            with self._locks[dataset]:
                if dataset not in self._sources:
                    manifest = read_manifest(self._lake, dataset, self._datasets[dataset])
                    ids, store = self._token_cache(manifest), open_store(manifest.uri)
                    group = _group(manifest, ids, self._whole_bytes)
                    self._sources[dataset] = Source(manifest=manifest, store=store, token_cache=ids, group=group)
        return self._sources[dataset]

    def chunk_of(self, dataset: str, line: int) -> int:
        """Return the number of the chunk, or group of chunks, that holds a line."""
        source = self.source(dataset)
        return line // (source.manifest.chunk_lines * source.group)

    def fetch(self, dataset: str, chunk: int) -> Fetch:
        """Return what gives the bytes of ranges in a chunk, of others in its shards, and of kept token ids."""
        ranges = self._extents(dataset, chunk)

        def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
            part = shard, offset, num_bytes, etag
            early = self._early.pop((dataset, part), None) if self._early else None
            try:
                if early is None:
                    return self._part(dataset, _around(ranges, part), part)
                return early[0].result()[early[1] : early[1] + num_bytes]
            except ObjectChangedError as error:
                raise ObjectChangedError(f"{dataset}: {error}") from error

        return fetch

    def chunk_bytes(self, chunk: Chunk) -> int:
        """Return how much is fetched of a chunk [bytes]."""
        return sum(extent[2] for extent in self._wanted(chunk))

    def read_early(self, samples: Iterable[tuple[str, int]]) -> None:
        """Begin to read the samples of one step, those of few in a large chunk by themselves; forget earlier ones.

        Args:
            samples: dataset and line of each.
        """
        samples = list(dict.fromkeys(samples))
        opened = {name: self._pool.submit(self.source, name) for name in dict.fromkeys(name for name, _ in samples)}
        for source in opened.values():
            source.result()
        self._early = {}
        chunks = [(name, self.chunk_of(name, line)) for name, line in samples]
        share = Counter(chunks)
        for (name, line), chunk in zip(samples, chunks, strict=True):
            ranges = self._extents(*chunk)
            parts = self._parts(name, line)
            for run in merged(parts):  # a picture and its words mostly lie together
                whole = _around(ranges, run)
                if whole[2] < max(EARLY_BYTES, EARLY_SHARE * share[chunk] * run[2]):
                    continue
                read = self._pool.submit(self._part, name, whole, run, eager=True)
                self._early |= {(name, part): (read, part[1] - run[1]) for part in parts if _around([run], part) == run}

    def fetch_ahead(self, chunk: Chunk) -> list[Future[bytes]]:
        """Begin to fetch a chunk; what fails is met again, and raised, where its bytes are needed."""
        return [
            self._pool.submit(self._cache.read, self._store(chunk[0], extent[0]), *extent)
            for extent in self._wanted(chunk)
        ]

    def expect(self, next_use: Mapping[Chunk, int]) -> None:
        """Tell the cache at which step each chunk comes next."""
        self._cache.expect(
            {
                (self._store(chunk[0], extent[0]).url, *extent): step
                for chunk, step in next_use.items()
                for extent in self._wanted(chunk)
            }
        )

    def statistics(self) -> dict[str, int]:
        """Return what the cache counted."""
        return self._cache.statistics()

    def submit(self, work: Callable[..., None], *arguments: object) -> Future[None]:
        """Do something in one of the threads."""
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        """End the threads, and let go of what was kept in memory."""
        self._pool.shutdown(cancel_futures=True)
        self._early, self._cache = {}, ChunkCache(None, ram_bytes=0)

    def _chunk_extents(self, dataset: str, chunk: int) -> list[Extent]:
        """Return the ranges of a chunk or group, sorted: those of its kept ids, else of its bytes."""
        source = self.source(dataset)
        numbers = range(chunk * source.group, min((chunk + 1) * source.group, source.manifest.num_chunks))
        return merged(extent for number in numbers for extent in _ranges(source.manifest, source.token_cache, number))

    def _wanted(self, chunk: Chunk) -> list[Extent]:
        """Return the ranges of a chunk that its samples will ask for: of bytes, only where no ids are kept."""
        ranges = self._extents(*chunk)
        ids = [extent for extent in ranges if self._is_ids(chunk[0], extent[0])]
        return ids or ranges

    def _parts(self, dataset: str, line: int) -> list[Extent]:
        """Return the ranges that one line is read from; none where they are row groups, read whole in any case."""
        source = self.source(dataset)
        if source.token_cache is not None and source.token_cache.has(line):
            return [source.token_cache.extent(line)]
        parts = source.manifest.line(line).parts
        return [(part.shard, part.offset, part.num_bytes, part.etag) for part in parts if part.row < 0]

    def _store(self, dataset: str, shard: str) -> Store:
        return self._lake if self._is_ids(dataset, shard) else self.source(dataset).store

    def _is_ids(self, dataset: str, shard: str) -> bool:
        kept = self.source(dataset).token_cache
        return kept is not None and shard.startswith(kept.prefix)

    def _part(self, dataset: str, whole: Extent, part: Extent, *, eager: bool = False) -> bytes:
        store = self._store(dataset, part[0])
        return self._cache.part(store, *whole, start=part[1] - whole[1], length=part[2], eager=eager)


class Prefetcher:
    """Fetches the chunks of coming steps, as many bytes as may stand ready at once."""

    def __init__(
        self, reader: Reader, *, chunks_of_step: Callable[[int], Iterable[Chunk]], num_steps: int, limit: int
    ) -> None:
        """Look ahead in a plan.

        Args:
            reader: what fetches.
            chunks_of_step: the chunks that a step reads, in order.
            num_steps: of the plan.
            limit: bytes of chunks that are fetched and not yet done with [bytes].
        """
        self._reader, self._chunks_of_step = reader, chunks_of_step
        self._num_steps, self._limit = num_steps, limit
        self._lock = threading.Lock()
        self._wanted = 0
        """The step that was begun last."""
        self._looking: Future[None] | None = None
        self._flights: dict[Chunk, list[Future[bytes]]] = {}
        self._restart(0)

    def begin(self, step: int) -> None:
        """Go on from a step, which is loaded now; returns at once."""
        self._wanted = step
        if self._looking is not None and self._looking.done() and not self._looking.cancelled():
            self._looking.result()  # a mistake of ours is not kept to itself
        self._looking = self._reader.submit(self._look)

    def _restart(self, step: int) -> None:
        for flights in self._flights.values():
            for flight in flights:
                flight.cancel()
        self._flights.clear()
        self._first, self._scanned = step, step
        """Steps of which the chunks are known: from the first up to but not the second."""
        self._steps: deque[list[Chunk]] = deque()
        self._last_use: dict[Chunk, int] = {}
        self._waiting: deque[Chunk] = deque()
        self._bytes: dict[Chunk, int] = {}
        self._used = 0
        self._told: int | None = None

    def _look(self) -> None:
        """Bring everything up to the step that is loaded now; one thread does, the others have nothing to do."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            with suppress(K25Error, OSError):  # what is wrong is met again where it is needed
                while self._is_behind():
                    self._advance(self._wanted)
        finally:
            self._lock.release()

    def _is_behind(self) -> bool:
        return self._first != self._wanted or self._scanned < self._end()

    def _end(self) -> int:
        return min(self._wanted + HORIZON_STEPS, self._num_steps)

    def _advance(self, step: int) -> None:
        if not self._first <= step <= self._scanned:
            self._restart(step)
        while self._first < step:
            self._drop_first()
        for _ in range(min(8, self._end() - self._scanned)):  # fetching begins before all is looked through
            self._scan()
        self._fetch()
        if self._told is None or step - self._told >= STEPS_BETWEEN_NEWS:
            self._told = step if self._scanned >= self._end() else None
            self._reader.expect(self._next_uses())

    def _scan(self) -> None:
        chunks = list(dict.fromkeys(self._chunks_of_step(self._scanned)))
        for chunk in chunks:
            if chunk not in self._last_use:
                self._waiting.append(chunk)
            self._last_use[chunk] = self._scanned
        self._steps.append(chunks)
        self._scanned += 1

    def _drop_first(self) -> None:
        for chunk in self._steps.popleft():
            if self._last_use[chunk] == self._first:
                del self._last_use[chunk]
                self._used -= self._bytes.pop(chunk, 0)
                for flight in self._flights.pop(chunk, ()):
                    flight.cancel()
        self._first += 1

    def _fetch(self) -> None:
        while self._waiting:
            chunk = self._waiting[0]
            if chunk in self._last_use and chunk not in self._bytes:
                num_bytes = self._reader.chunk_bytes(chunk)
                if self._used and self._used + num_bytes > self._limit:
                    return
                self._bytes[chunk] = num_bytes
                self._used += num_bytes
                self._flights[chunk] = self._reader.fetch_ahead(chunk)
            self._waiting.popleft()

    def _next_uses(self) -> dict[Chunk, int]:
        found: dict[Chunk, int] = {}
        for step, chunks in enumerate(self._steps, start=self._first):
            for chunk in chunks:
                found.setdefault(chunk, step)
        return found


def _ranges(manifest: Manifest, kept: TokenCache | None, chunk: int) -> list[Extent]:
    return [*(kept.extents_of_chunk(chunk) if kept else []), *extents_of_chunk(manifest, chunk)]


def _group(manifest: Manifest, kept: TokenCache | None, whole_bytes: int) -> int:
    """Return how many neighbouring chunks are fetched together: some, where the whole dataset may stay in the cache."""
    num_chunks = manifest.num_chunks
    sample = sorted({place * num_chunks // GROUP_SAMPLE for place in range(GROUP_SAMPLE)}) if num_chunks else []
    sizes = [extent[2] for chunk in sample for extent in _ranges(manifest, kept, chunk)]
    mean = sum(sizes) / max(1, len(sample))
    return max(1, int(GROUP_BYTES / mean)) if 0 < mean * num_chunks <= whole_bytes else 1


def _around(ranges: list[Extent], part: Extent) -> Extent:
    """Return the one of a chunk's sorted ranges in which a part lies, else the part itself."""
    shard, offset, num_bytes, _ = part
    place = bisect_right(ranges, (shard, offset, 2**63, "")) - 1
    if place >= 0:
        whole = ranges[place]
        if whole[0] == shard and offset + num_bytes <= whole[1] + whole[2]:
            return whole
    return part
