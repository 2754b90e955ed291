"""What `loader/prefetch.py` promises: bytes ahead are bounded, first steps read little, the cache knows what comes."""

import time
import uuid
from concurrent.futures import Future

import pytest

from k25_pipelines.catalog.line import lines_table
from k25_pipelines.catalog.manifest import Line, Part, make_manifest, write_manifest
from k25_pipelines.errors import StoreError
from k25_pipelines.loader.prefetch import HORIZON_STEPS, Prefetcher, Reader
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.memory import MemoryStore
from k25_pipelines.storage.store import open_store

PART = 2**18
CHUNK_LINES = 32


@pytest.fixture
def lake():
    """A dataset of 64 lines in two chunks of 8 MiB."""
    lake = open_store(f"memory://{uuid.uuid4().hex}")
    lake.put("raw/0.bin", bytes(number % 251 for number in range(PART)) * 64)
    etag = lake.head("raw/0.bin").etag
    lines = [
        Line(
            key=str(number),
            parts=(Part(kind="text", shard="0.bin", offset=number * PART, num_bytes=PART, etag=etag),),
            licence="CC0-1.0",
            source="made here",
        )
        for number in range(64)
    ]
    table = lines_table(lines)
    manifest = make_manifest("d", table, uri=f"{lake.url}/raw", kind="text", chunk_lines=CHUNK_LINES)
    write_manifest(lake, manifest)
    return lake, {"d": manifest.digest}


@pytest.fixture
def asked(monkeypatch):
    """Lengths of the ranges that the store was asked for."""
    lengths, whole = [], MemoryStore.get_range

    def counted(store, key, offset, num_bytes, **etag):
        lengths.append(num_bytes)
        return whole(store, key, offset, num_bytes, **etag)

    monkeypatch.setattr(MemoryStore, "get_range", counted)
    return lengths


def reader_of(lake, **cache) -> Reader:
    store, datasets = lake
    return Reader(store, datasets, ChunkCache(None, **cache), token_cache=lambda manifest: None)


def read(reader: Reader, line: int) -> bytes:
    (part,) = reader.source("d").manifest.line(line).parts
    return reader.fetch("d", line // CHUNK_LINES)(part.shard, part.offset, part.num_bytes, part.etag)


def until(is_true) -> None:
    for _ in range(1000):
        if is_true():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come about")


def test_a_first_step_reads_its_samples_and_not_their_chunks(lake, asked):
    reader = reader_of(lake)
    reader.read_early([("d", 3), ("d", 40)])
    expected = lake[0].get("raw/0.bin")
    assert read(reader, 3) == expected[3 * PART : 4 * PART]
    assert read(reader, 40) == expected[40 * PART : 41 * PART]
    assert asked == [PART, PART]
    assert read(reader, 4) == expected[4 * PART : 5 * PART]
    assert asked == [PART, PART, CHUNK_LINES * PART]
    reader.close()


def test_a_first_step_with_many_samples_of_a_chunk_reads_the_chunk(lake, asked):
    reader = reader_of(lake)
    reader.read_early([("d", line) for line in range(8)])
    assert asked == []
    read(reader, 0)
    assert asked == [CHUNK_LINES * PART]
    reader.close()


def test_an_early_read_that_failed_is_tried_again(lake, monkeypatch):
    reader, whole = reader_of(lake), MemoryStore.get_range

    def refuse(*_, **__):
        raise StoreError("503 slow down")

    monkeypatch.setattr(MemoryStore, "get_range", refuse)
    reader.read_early([("d", 3)])
    with pytest.raises(StoreError, match="503"):
        read(reader, 3)
    monkeypatch.setattr(MemoryStore, "get_range", whole)
    assert len(read(reader, 3)) == PART
    reader.close()


def test_each_chunk_is_fetched_once_and_before_it_is_asked_for(lake, asked):
    reader = reader_of(lake)
    prefetcher = Prefetcher(reader, chunks_of_step=lambda step: [("d", step % 2)], num_steps=6, limit=2**30)
    prefetcher.begin(0)
    until(lambda: len(asked) == 2)
    for step in range(6):
        prefetcher.begin(step)
        read(reader, step % 2 * CHUNK_LINES)
    assert asked == [CHUNK_LINES * PART] * 2
    reader.close()


class Told:
    """A reader that fetches nothing and remembers what it was told."""

    def __init__(self) -> None:
        self.fetched, self.uses = [], []

    def chunk_bytes(self, chunk) -> int:
        return 10

    def fetch_ahead(self, chunk) -> list:
        self.fetched.append(chunk[1])
        return []

    def expect(self, next_use) -> None:
        self.uses.append({chunk[1]: step for chunk, step in next_use.items()})

    def submit(self, work) -> Future:
        done = Future()
        done.set_result(work())
        return done


def test_chunks_are_fetched_in_the_order_of_use_and_no_more_bytes_than_may_stand_ready():
    told = Told()
    prefetcher = Prefetcher(told, chunks_of_step=lambda step: [("d", step), ("d", step + 1)], num_steps=9, limit=35)
    prefetcher.begin(0)
    assert told.fetched == [0, 1, 2]
    prefetcher.begin(1)
    assert told.fetched == [0, 1, 2, 3]
    prefetcher.begin(4)
    assert told.fetched == [0, 1, 2, 3, 4, 5, 6]
    prefetcher.begin(0)
    assert told.fetched == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]


def test_a_chunk_larger_than_the_bound_is_fetched_alone():
    told = Told()
    prefetcher = Prefetcher(told, chunks_of_step=lambda step: [("d", step)], num_steps=9, limit=5)
    for step in range(3):
        prefetcher.begin(step)
        assert told.fetched == list(range(step + 1))


def test_the_cache_is_told_the_next_use_of_every_chunk_within_the_horizon():
    told = Told()
    prefetcher = Prefetcher(told, chunks_of_step=lambda step: [("d", step % 3)], num_steps=10**9, limit=10**6)
    prefetcher.begin(10**6)
    assert told.uses[-1] == {10**6 % 3: 10**6, (10**6 + 1) % 3: 10**6 + 1, (10**6 + 2) % 3: 10**6 + 2}


def test_no_more_steps_are_looked_through_than_the_horizon_and_none_twice():
    told, seen = Told(), []
    prefetcher = Prefetcher(
        told, chunks_of_step=lambda step: seen.append(step) or [("d", step)], num_steps=10**9, limit=0
    )
    for step in range(500_000, 500_040):
        prefetcher.begin(step)
    assert seen == list(range(500_000, 500_039 + HORIZON_STEPS))
