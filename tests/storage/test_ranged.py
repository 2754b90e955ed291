"""A file over ranges reads like the bytes it stands for, and fetches only the blocks that are read."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.errors import ObjectChangedError
from k25_pipelines.storage.memory import MemoryStore
from k25_pipelines.storage.ranged import RangedFile

DATA = bytes(range(256)) * 4


class CountingStore(MemoryStore):
    """Writes down what was asked for."""

    asked: list = []  # noqa: RUF012 - replaced by each test

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        self.asked.append((offset, num_bytes))
        return super().get_range(key, offset, num_bytes, etag=etag)


def opened(block_bytes: int, data: bytes = DATA) -> RangedFile:
    store = CountingStore(url="memory://counting", objects={"a": data})
    CountingStore.asked = []
    return RangedFile(store, store.head("a"), block_bytes=block_bytes)


@given(st.integers(1, 1100), st.lists(st.tuples(st.integers(0, 1100), st.integers(-1, 1100)), max_size=8))
def test_it_reads_what_a_file_of_these_bytes_reads(block_bytes, reads):
    ours, theirs = opened(block_bytes), io.BytesIO(DATA)
    for offset, size in reads:
        assert (ours.seek(offset), ours.read(size)) == (theirs.seek(offset), theirs.read(size))
        assert ours.tell() == theirs.tell()
    assert list(io.BufferedReader(opened(block_bytes), 64)) == list(io.BytesIO(DATA))


def test_what_is_skipped_is_not_fetched():
    file = opened(100)
    file.seek(950)
    assert file.read(60) == DATA[950:1010]
    assert CountingStore.asked == [(900, 100), (1000, 24)]


def test_neighbouring_reads_share_a_block():
    file = opened(100)
    assert [file.read(10) for _ in range(3)] == [DATA[:10], DATA[10:20], DATA[20:30]]
    assert CountingStore.asked == [(0, 100)]


def test_an_object_overwritten_since_it_was_listed_is_refused():
    file = opened(100)
    assert file.read(10) == DATA[:10]
    file._store.put("a", DATA[::-1])
    with pytest.raises(ObjectChangedError, match="a was overwritten: its etag is"):
        file.read_at(500, 10)
