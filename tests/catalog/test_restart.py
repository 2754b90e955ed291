"""An indexer that was killed goes on; one that comes again reads only what is new; workers change no line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from k25_pipelines.catalog import registry
from k25_pipelines.catalog.contents import read_beside
from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.local import LocalStore
from k25_pipelines.storage.store import Store, open_store
from tests.catalog.conftest import json_lines, picture, registered, tar

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 6
KILLED = """
import sys, time
from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.storage.store import open_store

def wait(done, total, what):
    if done == 3:
        print("three", flush=True)
        time.sleep(600)

index_dataset(open_store(sys.argv[1]), "captions", threads=1, progress=wait)
"""


def fill(lake: Store, shards: int = SHARDS) -> None:
    for shard in range(shards):
        members = {f"{shard}{n}.{kind}": picture(8 + n, 6) for n in range(4) for kind in ("left.jpg", "right.jpg")}
        lake.put(
            f"raw/captions/{shard}.tar", tar({**members, f"{shard}3.json": b'{"annotations": [{"point": [1, 2]}]}'})
        )


@pytest.fixture
def lake(tmp_path) -> Store:
    """A lake in a folder, which processes share."""
    made = open_store(str(tmp_path / "lake"))
    fill(made)
    registered(made, "captions", "webdataset")
    return made


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The shards of which ranges were asked for, in order."""
    keys: list[str] = []
    real = LocalStore.get_range

    def get_range(store, key, *place, **options):
        keys.append(key)
        return real(store, key, *place, **options)

    monkeypatch.setattr(LocalStore, "get_range", get_range)
    return keys


def elsewhere(lake: Store, tmp_path: Path) -> Store:
    """Another lake over the same raw objects."""
    other = open_store(str(tmp_path / "other"))
    registered(other, "captions", "webdataset", uri=f"{lake.url}/raw/captions")
    return other


def test_an_indexer_killed_midway_goes_on_without_the_shards_it_has_scanned(lake, asked, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, lake.url], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ}
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"three\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    kept = len(list(lake.list("k25/datasets/captions/scans/")))
    assert 3 <= kept < SHARDS + 1
    assert registry.dataset_versions(lake, "captions") == []
    manifest = index_dataset(lake, "captions", threads=1)
    assert sorted(set(asked)) == [f"{shard}.tar" for shard in range(kept, SHARDS)]
    whole = index_dataset(elsewhere(lake, tmp_path), "captions", threads=4)
    assert (manifest.digest, manifest.num_lines) == (whole.digest, 4 * SHARDS)
    assert read_beside(lake, manifest).equals(read_beside(open_store(str(tmp_path / "other")), whole))


def test_an_indexer_that_comes_again_reads_only_new_shards(lake, asked):
    first = index_dataset(lake, "captions")
    del asked[:]
    assert index_dataset(lake, "captions").digest == first.digest
    assert asked == []
    lake.put("raw/captions/0a.tar", tar({"new.jpg": picture()}))
    second = index_dataset(lake, "captions")
    assert set(asked) == {"0a.tar"}
    assert [second.line(number) for number in range(first.num_lines)] == [
        first.line(number) for number in range(first.num_lines)
    ]
    assert second.line(first.num_lines).key == "new"


def test_a_shard_overwritten_after_a_kill_is_scanned_again(lake, asked, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        index_dataset(lake, "captions", threads=1, progress=interrupt)
    lake.put("raw/captions/0.tar", tar({"other.jpg": picture()}))
    del asked[:]
    manifest = index_dataset(lake, "captions", threads=1)
    assert "0.tar" in asked
    assert manifest.digest == index_dataset(elsewhere(lake, tmp_path), "captions").digest


def interrupt(done: int, total: int, what: str) -> None:
    if done == 3:
        raise KeyboardInterrupt


def test_what_was_kept_and_then_harmed_is_scanned_again(lake, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        index_dataset(lake, "captions", threads=1, progress=interrupt)
    for info in lake.list("k25/datasets/captions/scans/"):
        lake.put(info.key, lake.get(info.key)[:-20])
    assert index_dataset(lake, "captions").digest == index_dataset(elsewhere(lake, tmp_path), "captions").digest


def test_the_number_of_processes_changes_no_line(lake, tmp_path):
    one = index_dataset(lake, "captions", threads=1)
    many = index_dataset(elsewhere(lake, tmp_path), "captions", processes=2)
    assert many.digest == one.digest


def test_a_fault_found_by_a_process_is_named_as_ever(lake):
    lake.put("raw/captions/3.tar", lake.get("raw/captions/3.tar")[:700])
    with pytest.raises(DatasetError, match=r"captions: shard .*/3\.tar is truncated at byte 700; upload it again"):
        index_dataset(lake, "captions", processes=2)


@pytest.mark.parametrize("kind", ["images", "text", "chat"])
def test_the_number_of_threads_changes_no_line_of_loose_objects(kind):
    digests = set()
    for threads in (1, 2, 5):
        lake = open_store(f"memory://{uuid4().hex}")
        for number in range(150):
            data = {"images": picture(8 + number, 6), "text": b"x" * (number + 1), "chat": b""}[kind]
            lake.put(f"raw/x/{number:03}.{'txt' if kind == 'text' else 'jpg'}", data) if data else None
        for shard in range(3):
            talk = {"messages": [{"role": "assistant", "content": f"{shard}"}]}
            lake.put(f"raw/x/{shard}.jsonl", json_lines(*[talk] * 5))
        registered(lake, "x", kind, uri=f"{lake.url}/raw/x")
        digests.add(index_dataset(lake, "x", threads=threads).digest)
    assert len(digests) == 1
