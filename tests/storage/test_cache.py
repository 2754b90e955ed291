"""The chunk cache: one fetch a range on a machine, bounded in bytes, and no trust in what lies on the disk."""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.errors import ObjectChangedError, StoreError
from k25_pipelines.storage import cache as cache_module
from k25_pipelines.storage.cache import ChunkCache, cache_summary, clear_cache
from k25_pipelines.storage.disk import BLOCK_BYTES
from k25_pipelines.storage.local import LocalStore
from k25_pipelines.storage.memory import MemoryStore
from k25_pipelines.storage.store import open_store
from tests.conftest import ROOT

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


def test_a_disk_that_fills_up_in_the_middle_of_a_write_does_not_stop_a_read(tmp_path, store, monkeypatch):
    cache, write = ChunkCache(tmp_path / "cache"), os.write

    def full(file, data):
        if len(data) < CHUNK:
            raise OSError(28, "No space left on device")
        return write(file, data[: CHUNK // 2])

    monkeypatch.setattr(os, "write", full)
    assert read(cache, store, 3) == expected(3)
    assert list((tmp_path / "cache").glob("??/*")) == list((tmp_path / "cache").glob("??/.*")) == []


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


def part(cache: ChunkCache, store: LocalStore, number: int, start: int, length: int, *, eager: bool = False) -> bytes:
    return cache.part(store, "object", number * CHUNK, CHUNK, ETAG, start=start, length=length, eager=eager)


def counted(cache: ChunkCache) -> dict[str, int]:
    return {name: count for name, count in cache.statistics().items() if count}


def test_a_part_comes_from_memory_or_the_disk_or_with_the_whole(tmp_path, store):
    first, second = ChunkCache(tmp_path / "cache"), ChunkCache(tmp_path / "cache")
    assert [part(first, store, 3, 10, 20), part(first, store, 3, 0, CHUNK), part(first, store, 3, 999, 1)] == [
        b"\3" * 20,
        b"\3" * CHUNK,
        b"\3",
    ]
    assert part(second, store, 3, 10, 20) == b"\3" * 20
    assert counted(first) == {"misses": 1, "fetched_bytes": CHUNK, "ram_hits": 2}
    assert counted(second) == {"disk_hits": 1}


def test_an_eager_part_is_fetched_alone_until_its_range_is_there(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache")
    assert part(cache, store, 3, 10, 20, eager=True) == b"\3" * 20
    assert (counted(cache), files(tmp_path / "cache")) == ({"direct": 1, "fetched_bytes": 20}, [])
    read(cache, store, 3)
    assert part(cache, store, 3, 10, 20, eager=True) == b"\3" * 20
    assert counted(cache) == {"direct": 1, "fetched_bytes": 20 + CHUNK, "misses": 1, "ram_hits": 1}


def test_an_eager_part_waits_for_its_range_where_that_is_under_way(tmp_path, store):
    store.seconds, cache = 0.3, ChunkCache(tmp_path / "cache")
    with ThreadPoolExecutor(1) as pool:
        flight = pool.submit(read, cache, store, 5)
        while num_fetched(store) == 0:
            time.sleep(0.005)
        assert part(cache, store, 5, 1, 2, eager=True) == b"\5\5"
        assert flight.result() == expected(5)
    assert counted(cache) == {"misses": 1, "fetched_bytes": CHUNK, "waits": 1}


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, CHUNK + 1), (CHUNK, 1), (5, -1)])
def test_a_part_outside_its_range_is_refused(store, start, length):
    with pytest.raises(ValueError, match=f"do not lie in a range of {CHUNK}"):
        part(ChunkCache(None), store, 3, start, length)


LARGE = bytes(number % 251 for number in range(5 * BLOCK_BYTES + 17))


@pytest.fixture
def large(tmp_path) -> LocalStore:
    store = LocalStore(str(tmp_path / "store"))
    store.put("large", LARGE)
    return store


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_of_a_file_is_what_it_is_of_the_range(tmp_path_factory, data):
    store = MemoryStore(url="memory://parts", objects={"large": LARGE})
    folder = tmp_path_factory.getbasetemp() / "parts"
    start = data.draw(st.integers(0, len(LARGE)))
    length = data.draw(st.integers(0, len(LARGE) - start))
    found = ChunkCache(folder).part(store, "large", 0, len(LARGE), "", start=start, length=length)
    assert found == LARGE[start : start + length]


def test_harm_in_one_block_of_a_file_is_seen_where_it_lies_and_healed(tmp_path, large):
    def small(start: int) -> bytes:
        cache = ChunkCache(tmp_path / "cache")
        found = cache.part(large, "large", 0, len(LARGE), "", start=start, length=100)
        told.append(counted(cache))
        return found

    told: list[dict] = []
    small(0)
    (file,) = files(tmp_path / "cache")
    data = bytearray(file.read_bytes())
    data[3 * BLOCK_BYTES + 5] ^= 1
    file.write_bytes(data)
    assert [small(0), small(3 * BLOCK_BYTES), small(3 * BLOCK_BYTES)] == [
        LARGE[:100],
        *[LARGE[3 * BLOCK_BYTES :][:100]] * 2,
    ]
    fetched = {"misses": 1, "fetched_bytes": len(LARGE)}
    assert told == [fetched, {"disk_hits": 1}, {**fetched, "corrupt": 1}, {"disk_hits": 1}]


def use(store: LocalStore, number: int) -> tuple:
    return store.url, "object", number * CHUNK, CHUNK, ETAG


def test_memory_drops_first_what_nobody_expects_then_what_is_used_farthest_ahead(store):
    cache = ChunkCache(None, ram_bytes=3 * CHUNK)
    for number in [0, 1, 2]:
        read(cache, store, number)
    cache.expect({use(store, 0): 9, use(store, 2): 7, use(store, 3): 8, use(store, 4): 5})
    for number in [3, 4]:  # drops 1, which nobody expects, then 0
        read(cache, store, number)
    before = num_fetched(store)
    for number in [2, 3, 4]:
        read(cache, store, number)
    assert num_fetched(store) == before
    read(cache, store, 0)  # farthest ahead of all: the others stay
    for number in [2, 3, 4]:
        read(cache, store, number)
    assert num_fetched(store) == before + 1


def test_what_is_expected_replaces_what_was(store):
    cache = ChunkCache(None, ram_bytes=2 * CHUNK)
    cache.expect({use(store, 0): 1, use(store, 1): 2})
    for number in [0, 1]:
        read(cache, store, number)
    cache.expect({})
    for number in [2, 3, 2, 3]:
        read(cache, store, number)
    assert num_fetched(store) == 4


def fetches(order: list[int], room: int, *, expects: bool) -> int:
    store = MemoryStore(url="memory://order", objects={"object": bytes(20)})
    cache = ChunkCache(None, ram_bytes=room)
    for place, number in enumerate(order):
        if expects:
            ahead = {later: step for step, later in reversed([*enumerate(order)][place + 1 :])}
            cache.expect({(store.url, "object", later, 1, ""): step for later, step in ahead.items()})
        cache.read(store, "object", number, 1, "")
    return cache.statistics()["misses"]


def fewest_fetches(order: list[int], room: int) -> int:
    """Belady's rule, straight from its words; what is never used again need not be kept."""
    kept: set[int] = set()
    num_fetches = 0
    for place, number in enumerate(order):
        later = order[place + 1 :]
        num_fetches += number not in kept
        kept.add(number)
        if len(kept) > room:
            kept.remove(max(kept, key=lambda item: later.index(item) if item in later else len(order)))
    return num_fetches


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_who_knows_all_uses_fetches_the_fewest_that_can_be(order, room):
    known, unknown = fetches(order, room, expects=True), fetches(order, room, expects=False)
    assert known == fewest_fetches(order, room) <= unknown


def test_the_disk_drops_first_what_no_process_expects_then_what_is_used_farthest_ahead(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache", ram_bytes=0, disk_bytes=8 * CHUNK)
    cache.expect({use(store, number): 100 - number for number in range(4, 20)})
    for number in range(20):
        read(cache, store, number)
        time.sleep(0.002)  # times of use differ
    before = num_fetched(store)
    for number in range(15, 20):
        read(cache, store, number)
    assert (before, num_fetched(store)) == (20, 20)


EXPECTING = """
import sys, time
from pathlib import Path
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.local import LocalStore
cache, store = ChunkCache(Path(sys.argv[1])), LocalStore(sys.argv[2])
cache.expect({(store.url, "object", number * 1000, 1000, sys.argv[3]): 700 + number for number in range(3)})
print("said", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_another_process_expects_stays_on_the_disk_as_long_as_that_process_lives(tmp_path, store, is_killed):
    command = [sys.executable, "-c", EXPECTING, str(tmp_path / "cache"), store.url, ETAG]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"said\n"
    if is_killed:
        other.kill()
        other.wait()
    cache = ChunkCache(tmp_path / "cache", ram_bytes=0, disk_bytes=8 * CHUNK)
    for number in range(20):
        read(cache, store, number)
        time.sleep(0.002)  # times of use differ
    for number in range(3):
        read(cache, store, number)
    assert num_fetched(store) == (23 if is_killed else 20)
    other.kill()
    other.communicate()


def test_ranges_under_way_are_bounded_in_bytes_but_one_always_flies(store, monkeypatch):
    monkeypatch.setattr(cache_module, "FLIGHT_BYTES", 2 * CHUNK)
    flying, most, lock = 0, 0, threading.Lock()
    get_range = store.get_range

    def watched(key, offset, num_bytes, *, etag=None):
        nonlocal flying, most
        with lock:
            flying += num_bytes
            most = max(most, flying)
        time.sleep(0.02)
        data = get_range(key, offset, num_bytes, etag=etag)
        with lock:
            flying -= num_bytes
        return data

    monkeypatch.setattr(store, "get_range", watched)
    cache = ChunkCache(None)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: read(cache, store, number), range(8))) == [*map(expected, range(8))]
        assert most == 2 * CHUNK
        assert len(cache.read(store, "object", 0, 3 * CHUNK, ETAG)) == 3 * CHUNK


@pytest.mark.parametrize("milliseconds", range(0, 60, 12))
def test_a_process_killed_at_any_moment_leaves_nothing_half_written(tmp_path, large, milliseconds):
    code = (
        "import sys\nfrom pathlib import Path\nfrom k25_pipelines.storage.cache import ChunkCache\n"
        "from k25_pipelines.storage.local import LocalStore\nstore = LocalStore(sys.argv[2])\n"
        "cache = ChunkCache(Path(sys.argv[1]), ram_bytes=0, disk_bytes=2**22)\nprint('ready', flush=True)\n"
        "for number in range(10**6): cache.read(store, 'large', number % 99, 300000, '')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), large.url]
    reader = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"ready\n"
    time.sleep(milliseconds / 1000)
    reader.kill()
    reader.communicate()
    cache = ChunkCache(tmp_path / "cache")
    assert all(cache.read(large, "large", number, 300000, "") == LARGE[number:][:300000] for number in range(99))
    assert cache.statistics()["corrupt"] == 0


class Log(logging.Handler):
    """The server's own record of the GETs it answered; it holds each answer back until `seconds` have passed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "GET /lake/" in record.getMessage():
            self.asked.append(record.getMessage())
            time.sleep(1.0)


SHARING = """
import json, sys
from pathlib import Path
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.store import open_store
store, cache = open_store(sys.argv[1]), ChunkCache(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
found = cache.read(store, "object", 5000, 1000, sys.argv[3])
print(json.dumps([found == bytes([5]) * 1000, {name: n for name, n in cache.statistics().items() if n}]))
"""


def test_processes_on_one_cache_ask_a_server_once_and_wait_for_the_first(tmp_path, moto_lake):
    store = open_store(moto_lake)
    store.put("object", b"".join(map(expected, range(20))))
    command = [sys.executable, "-c", SHARING, moto_lake, str(tmp_path / "cache"), ETAG]
    log, server = Log(), logging.getLogger("werkzeug")
    server.addHandler(log)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()
    told = [json.loads(reader.communicate()[0]) for reader in readers]
    server.removeHandler(log)
    waited = {"disk_hits": 1, "waits": 1}
    assert sorted(told, key=str) == [[True, waited], [True, waited], [True, {"misses": 1, "fetched_bytes": 1000}]]
    assert len(log.asked) == 1


def test_a_summary_tells_what_a_folder_holds(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache", disk_bytes=50 * CHUNK)
    for number in range(3):
        read(cache, store, number)
    os.utime(files(tmp_path / "cache")[0], (1000, 1000))
    for age in (0, 7200):
        left = files(tmp_path / "cache")[0].with_name(f".left-{age}")
        left.write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    assert cache_summary(tmp_path / "cache") == {
        "folder": str(tmp_path / "cache"),
        "files": 3,
        "bytes": 3 * (CHUNK + 8),
        "limit": 50 * CHUNK,
        "oldest_use": 1000.0,
        "stale_files": 1,
        "stale_bytes": 4,
    }


def test_a_cleared_cache_fetches_anew_also_where_it_is_in_use(tmp_path, store):
    cache = ChunkCache(tmp_path / "cache", ram_bytes=0)
    for number in range(3):
        read(cache, store, number)
    cleared = clear_cache(tmp_path / "cache")
    assert cleared == {"folder": str(tmp_path / "cache"), "files": 3, "bytes": 3 * (CHUNK + 8)}
    assert [read(cache, store, number) for number in range(3)] == [expected(0), expected(1), expected(2)]
    assert (num_fetched(store), cache_summary(tmp_path / "cache")["files"]) == (6, 3)


@pytest.mark.parametrize("ask", [cache_summary, clear_cache])
def test_a_folder_that_is_no_cache_is_left_alone(tmp_path, ask):
    (tmp_path / "00").mkdir()
    (tmp_path / "00" / "abc").write_bytes(b"mine")
    with pytest.raises(StoreError, match="no cache lies there"):
        ask(tmp_path)
    assert (tmp_path / "00" / "abc").read_bytes() == b"mine"
