"""Content ids and counts stand beside a manifest: from the index as far as bytes were read, else by `--deep`."""

import hashlib

import numpy as np
import pytest

from k25_pipelines.catalog.contents import annotation_totals, content_ids, fill_contents, lines_of_content, write_beside
from k25_pipelines.catalog.line import BESIDE
from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.sample.read import cell_reader
from k25_pipelines.storage.memory import MemoryStore
from tests.catalog.conftest import json_bytes, parquet, picture, tar
from tests.catalog.test_media_kinds import indexed, lines

A, B = picture(5, 4), picture(6, 4)
LARGE = picture(64, 64) + bytes(300_000)


def name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


MEMBERS = {
    "a.jpg": A,
    "a.txt": b"words",
    "b.left.jpg": B,
    "b.right.jpg": A,
    "c.jpg": LARGE,
    "c.json": json_bytes({"annotations": [{"bbox": [1, 1, 2, 2]}, {"point": [1, 1]}]}),
    "d.jpg": A[:50],
}


def test_the_index_names_what_it_read_whole_and_deep_names_the_rest(lake):
    manifest = indexed(lake, "webdataset", {"0.tar": tar(MEMBERS)})
    assert content_ids(lake, manifest) == [name(A), None, name(B), name(A), None, None, None]
    assert fill_contents(lake, manifest, cells=cell_reader(manifest)) == 1
    assert content_ids(lake, manifest) == [name(A), None, name(B), name(A), name(LARGE), None, None]
    assert fill_contents(lake, manifest, cells=cell_reader(manifest)) == 0
    found = lines_of_content(lake, manifest, name(A))
    assert (found.tolist(), found.dtype) == ([0, 1], np.int64)
    assert lines_of_content(lake, manifest, name(b"nothing")).tolist() == []


def test_annotations_are_counted_over_the_lines_that_are_used(lake):
    manifest = indexed(lake, "webdataset", {"0.tar": tar(MEMBERS)})
    assert annotation_totals(lake, manifest) == {"boxes": 1, "points": 1}
    fill_contents(lake, manifest, cells=cell_reader(manifest))
    assert annotation_totals(lake, manifest) == {"boxes": 1, "points": 1}


def test_a_manifest_without_anything_beside_it_is_filled(lake):
    images = [{"bytes": A, "path": "a"}, {"bytes": B, "path": "b"}, None]
    manifest = indexed(lake, "parquet", {"0.parquet": parquet({"image": images, "text": ["a", "b", "c"]})})
    expected = content_ids(lake, manifest)
    write_beside(lake, manifest, BESIDE.empty_table())
    assert content_ids(lake, manifest) == [None] * 5
    assert fill_contents(lake, manifest, cells=cell_reader(manifest)) == 2
    assert content_ids(lake, manifest) == expected == [name(A), None, name(B), None, None]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_later_version_keeps_what_is_known(lake, threads):
    first = indexed(lake, "images", {"a.jpg": A, "c.jpg": LARGE})
    fill_contents(lake, first, cells=cell_reader(first), threads=threads)
    lake.put("raw/x/b.jpg", B)
    second = index_dataset(lake, "x", threads=threads)
    assert [line.key for line in lines(second)] == ["a.jpg", "c.jpg", "b.jpg"]
    assert content_ids(lake, second) == [name(A), name(LARGE), name(B)]


def test_deep_fetches_neighbours_of_a_shard_together(lake, monkeypatch):
    shard = tar({f"{i}.jpg": picture(4 + i, 4) for i in range(9)})
    manifest = indexed(lake, "webdataset", {"a.tar": shard, "b.tar": shard})
    expected = content_ids(lake, manifest)
    write_beside(lake, manifest, BESIDE.empty_table())
    asked = []
    real = MemoryStore.get_range
    monkeypatch.setattr(
        MemoryStore, "get_range", lambda store, key, *a, **o: asked.append(key) or real(store, key, *a, **o)
    )
    assert fill_contents(lake, manifest, cells=cell_reader(manifest), threads=1) == 18
    assert asked == ["a.tar", "b.tar"]
    assert content_ids(lake, manifest) == expected == [name(picture(4 + i, 4)) for i in range(9)] * 2
