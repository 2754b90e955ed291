"""The chunk cache: one fetch a range on a machine, bounded in bytes, and no trust in what lies on the disk."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k25_pipelines.errors import ObjectChangedError, StoreError
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.local import LocalStore

CHUNK = 1000


class CountedStore(LocalStore):
    """A folder that leaves a file behind for each range that was fetched, and takes its time."""

    seconds = 0.0

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        fetched = Path(self.url).parent / "fetched"
        fetched.mkdir(exist_ok=True)
        (fetched / f"{key}-{offset}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        return super().get_range(key, offset, num_bytes, etag=etag)


ETAG = hashlib.md5(b"".join(bytes([number]) * CHUNK for number in range(20))).hexdigest()


def expected(number: int) -> bytes:
    return bytes([number]) * CHUNK


@pytest.fixture
def store(tmp_path) -> CountedStore:
    """An object of twenty chunks."""
    store = CountedStore(str(tmp_path / "store"))
    store.put("object", b"".join(map(expected, range(20))))
    return store


def num_fetched(store: LocalStore) -> int:
    folder = Path(store.url).parent / "fetched"
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def read(cache: ChunkCache, store: LocalStore, number: int, etag: str = "") -> bytes:
    return cache.read(store, "object", number * CHUNK, CHUNK, etag or ETAG)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_second_read_asks_nothing_of_the_store(tmp_path, store, on_disk):
    cache = ChunkCache(tmp_path / "cache" if on_disk else None)
    assert [read(cache, store, 3), read(cache, store, 3)] == [expected(3)] * 2
    assert num_fetched(store) == 1


def test_the_disk_serves_the_next_process(tmp_path, store):
    read(ChunkCache(tmp_path / "cache"), store, 3)
    assert read(ChunkCache(tmp_path / "cache"), store, 3) == expected(3)
    assert num_fetched(store) == 1


def test_another_etag_is_another_entry(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache")
    read(cache, store, 3)
    store.put("object", b"\xff" * CHUNK * 20)
    assert read(cache, store, 3, etag=store.head("object").etag) == b"\xff" * CHUNK
    assert read(cache, store, 3) == expected(3)


def test_bytes_of_an_overwritten_object_are_refused_and_not_kept_under_the_old_name(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache")
    read(cache, store, 3)
    store.put("object", b"\xff" * CHUNK * 20)
    with pytest.raises(ObjectChangedError, match=f"object was overwritten: .*, expected {ETAG}; restore"):
        read(cache, store, 4)
    assert len(files(tmp_path / "cache")) == 1
    store.put("object", b"".join(map(expected, range(20))))
    assert read(cache, store, 4) == expected(4)


def test_threads_that_want_the_same_range_share_one_flight(tmp_path, store):
    store.seconds, cache = 0.2, ChunkCache(tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read(cache, store, 5), range(8)))
    assert (found, num_fetched(store)) == ([expected(5)] * 8, 1)


def read_in_child(folder: Path, url: str, seconds: float) -> None:
    store = CountedStore(url)
    store.seconds = seconds
    if read(ChunkCache(folder), store, 5) != expected(5):
        raise SystemExit("wrong bytes")


def child(folder: Path, store: LocalStore, seconds: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=read_in_child, args=(folder, store.url, seconds))
    process.start()
    return process


def test_processes_that_want_the_same_range_share_one_flight(tmp_path, store):
    children = [child(tmp_path / "cache", store, 0.5) for _ in range(3)]
    for process in children:
        process.join()
    assert ([process.exitcode for process in children], num_fetched(store)) == ([0, 0, 0], 1)


def test_a_process_killed_while_it_fetches_holds_nobody_up(tmp_path, store):
    process = child(tmp_path / "cache", store, 600)
    while num_fetched(store) == 0:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read(ChunkCache(tmp_path / "cache"), store, 5) == expected(5)


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" + data[1:], lambda data: data + b"x"]
)
def test_a_cache_file_that_was_harmed_is_fetched_again_and_healed(tmp_path, store, harm):
    read(ChunkCache(tmp_path / "cache"), store, 3)
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    assert read(ChunkCache(tmp_path / "cache"), store, 3) == expected(3)
    assert (num_fetched(store), file.read_bytes()) == (2, whole)


def test_the_disk_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path, store):
    limit = 8 * CHUNK
    cache = ChunkCache(tmp_path / "cache", ram_bytes=0, disk_bytes=limit)
    for number in range(20):
        assert read(cache, store, number) == expected(number)
        read(cache, store, 0)
        assert sum(file.stat().st_size for file in files(tmp_path / "cache")) <= limit
        time.sleep(0.002)  # times of use differ
    before = num_fetched(store)
    read(cache, store, 0)
    read(cache, store, 19)
    assert num_fetched(store) == before
    assert before == 20


def test_memory_stays_below_its_limit(store):
    cache = ChunkCache(None, ram_bytes=3 * CHUNK)
    for number in [0, 1, 2, 0, 3]:
        read(cache, store, number)
    assert num_fetched(store) == 4
    read(cache, store, 0)
    assert num_fetched(store) == 4
    read(cache, store, 1)
    assert num_fetched(store) == 5


def test_a_range_beyond_either_limit_is_still_served(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache", ram_bytes=10, disk_bytes=10)
    assert [read(cache, store, 3), read(cache, store, 3)] == [expected(3)] * 2


def test_a_failed_fetch_fails_all_who_waited_and_is_tried_anew_by_the_next(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(StoreError, match="shorter"):
            cache.read(store, "object", 19 * CHUNK, 2 * CHUNK, ETAG)
    assert num_fetched(store) == 2
    assert files(tmp_path / "cache") == []


def test_a_full_disk_does_not_stop_a_read(tmp_path, store, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert read(ChunkCache(tmp_path / "cache"), store, 3) == expected(3)
    assert files(tmp_path / "cache") == []


def test_a_disk_too_full_for_a_lock_does_not_stop_a_read(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")  # neither a lock nor a chunk can be made any more
    assert read(cache, store, 3) == expected(3)


def test_a_cache_entry_that_cannot_be_read_is_fetched(tmp_path, store):
    read(ChunkCache(tmp_path / "cache"), store, 3)
    (file,) = files(tmp_path / "cache")
    file.unlink()
    file.mkdir()
    assert read(ChunkCache(tmp_path / "cache"), store, 3) == expected(3)


@pytest.mark.parametrize("below", ["/dev/null/cache", "/proc/cache"])
def test_a_folder_that_cannot_be_written_is_named_at_once(below):
    with pytest.raises(StoreError, match=f"cache folder {below}: .*; name one that can be written, or none"):
        ChunkCache(Path(below))


def test_threads_of_many_ranges_get_each_its_own(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache", ram_bytes=4 * CHUNK, disk_bytes=9 * CHUNK)
    barrier = threading.Barrier(8)

    def work(seed: int) -> bool:
        barrier.wait()
        return all(read(cache, store, (seed * 7 + step) % 20) == expected((seed * 7 + step) % 20) for step in range(40))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_what_a_dead_process_left_half_written_is_swept_up(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache")
    old, young = tmp_path / "cache" / "00" / ".old", tmp_path / "cache" / "00" / ".young"
    old.parent.mkdir()
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    read(cache, store, 3)
    assert (old.exists(), young.exists()) == (False, True)
