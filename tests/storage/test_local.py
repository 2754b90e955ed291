"""What a folder adds to the contract: nothing half-written is ever seen, and two writers cannot both be first."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from k25_pipelines.errors import ObjectExistsError, StoreError
from k25_pipelines.storage.local import TEMPORARY_PREFIX, LocalStore


def test_a_write_that_fails_leaves_the_old_object_and_no_litter(tmp_path, monkeypatch):
    store = LocalStore(str(tmp_path))
    store.put("a", b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match=r"a: No space left on device"):
        store.put("a", b"new")
    assert (store.get("a"), os.listdir(tmp_path)) == (b"old", ["a"])


def test_an_unfinished_write_of_a_killed_process_is_not_listed(tmp_path):
    (tmp_path / f"{TEMPORARY_PREFIX}dead").write_bytes(b"half")
    assert list(LocalStore(str(tmp_path)).list()) == []


def test_of_two_writers_of_different_bytes_one_fails(tmp_path):
    def put(number: int) -> bool:
        try:
            LocalStore(str(tmp_path)).put_new("once", bytes([number]))
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(16))) == 1


def test_a_name_that_is_a_folder_is_no_object(tmp_path):
    store = LocalStore(str(tmp_path))
    store.put("a/b", b"1")
    with pytest.raises(StoreError, match=r"/a: no such object"):
        store.get("a")
    with pytest.raises(StoreError, match="a/b/c: "):
        store.put("a/b/c", b"1")


def test_a_folder_that_is_not_there_is_an_empty_store(tmp_path):
    assert list(LocalStore(str(tmp_path / "none")).list("k25/")) == []


def test_a_file_whose_name_is_no_text_is_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb"):
        pass
    with pytest.raises(StoreError, match=r"udcff.txt': the file's name is not UTF-8; rename it"):
        list(LocalStore(str(tmp_path)).list())
