"""The index of ids: look-ups of samples, and what changed between versions, without reading either whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.catalog import id_index
from k25_pipelines.catalog.id_diff import diff_ids
from k25_pipelines.catalog.id_index import index_ids, open_ids, sample_id
from k25_pipelines.catalog.line import lines_table
from k25_pipelines.catalog.manifest import make_manifest
from k25_pipelines.catalog.sketch import RECORD, difference, num_cells, sketch_of
from k25_pipelines.errors import ManifestError
from k25_pipelines.storage.store import open_store
from tests.catalog.test_diff import lines_of


@pytest.fixture
def lake(tmp_path):
    return open_store(str(tmp_path))


def indexed(lake, lines, **like):
    manifest = make_manifest("web", lines_table(lines), uri="memory://none", kind="images", chunk_lines=1)
    return index_ids(lake, manifest, **like)


def records_of(numbers, facts=0):
    records = np.zeros(len(numbers), RECORD)
    records["id"], records["facts"] = numbers, facts
    return records


@pytest.mark.parametrize("partition_records", [2**20, 100])
def test_a_sample_is_found_by_its_id_in_one_partition_or_many(lake, monkeypatch, partition_records):
    monkeypatch.setattr(id_index, "PARTITION_RECORDS", partition_records)
    monkeypatch.setattr(id_index, "PAGE_RECORDS", 16)
    index = indexed(lake, lines_of(range(1000)))
    assert len(index.partitions) == (1 if partition_records > 1000 else 16)
    asked = [0, 7, 999, 500]
    found = index.find([sample_id(f"{number:07}") for number in asked] + [sample_id("none")])
    assert sorted(index.line_of(found).tolist()) == sorted(asked)
    assert {index.terms[number] for number in index.terms_of(found)} == {("CC-BY-4.0", "crawl"), ("CC0-1.0", "crawl")}
    assert len(index.find([])) == 0
    everything = index.find([sample_id(f"{number:07}") for number in range(1000)])
    assert sorted(index.line_of(everything).tolist()) == list(range(1000))


def test_samples_of_one_key_are_all_found_even_across_pages(lake, monkeypatch):
    monkeypatch.setattr(id_index, "PAGE_RECORDS", 2)
    index = indexed(lake, lines_of([3, 4, 4, 4, 4, 4, 5]))
    assert index.line_of(index.find([sample_id("0000004")])).tolist() == [1, 2, 3, 4, 5]


def test_a_version_without_an_index_says_how_to_write_one(lake):
    with pytest.raises(ManifestError, match="web@0123 has no index of ids"):
        open_ids(lake, "web", "0123")


def test_one_percent_strewn_over_all_partitions_is_told_from_less_than_a_twentieth_of_the_bytes(lake, monkeypatch):
    monkeypatch.setattr(id_index, "PARTITION_RECORDS", 20_000)
    before = indexed(lake, lines_of(range(40_000)))
    lines = lines_of(range(40_000))
    for number in range(0, 40_000, 400):
        lines[number] = lines_of([number], etag="new")[0]
    kept = [line for number, line in enumerate(lines) if number % 400 != 100]
    after = indexed(lake, kept + lines_of(range(50_000, 50_100)), like=before)
    told = diff_ids(before, after)
    counts = [sum(counts.values()) for counts in (told.added, told.removed, told.changed)]
    assert (counts, told.changed) == ([100, 100, 100], {("CC-BY-4.0", "crawl"): 100})
    assert told.partitions_read_whole == 0
    assert told.read_bytes < 0.05 * told.total_bytes


def test_partitions_that_changed_too_much_are_read_whole_and_the_same_is_told(lake):
    before, after = indexed(lake, lines_of(range(4000))), indexed(lake, lines_of(range(1000, 6000)))
    with pytest.raises(ManifestError, match="index the later version with"):
        diff_ids(before, after)
    told = diff_ids(before, indexed(lake, lines_of(range(1000, 6000)), like=before))
    assert told.partitions_read_whole == len(before.partitions)
    assert [sum(counts.values()) for counts in (told.added, told.removed, told.changed)] == [2000, 1000, 0]


def test_equal_versions_differ_in_nothing_and_nothing_but_roots_is_read(lake):
    index = indexed(lake, lines_of(range(500)))
    told = diff_ids(index, index)
    assert (told.added, told.removed, told.changed, told.read_bytes) == ({}, {}, {}, 2 * index.root_bytes)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 2**64 - 1), max_size=60), st.sets(st.integers(0, 2**64 - 1), max_size=60))
def test_sketches_tell_exactly_what_differs_or_that_they_cannot(a, b):
    cells = num_cells(0)
    found = difference(sketch_of(records_of(sorted(a)), cells), sketch_of(records_of(sorted(b)), cells))
    if found is None:
        assert len(a ^ b) > cells // 3
    else:
        assert set(found[0]["id"].tolist()) == a - b
        assert set(found[1]["id"].tolist()) == b - a


def test_a_sketch_of_a_million_records_tells_of_two_percent():
    numbers = np.arange(1_000_000, dtype=np.uint64)
    before, after = records_of(numbers), records_of(numbers)
    after["facts"][::100] = 1
    cells = num_cells(len(numbers))
    found = difference(sketch_of(before, cells), sketch_of(after, cells))
    assert found is not None
    assert [sorted(side["id"].tolist()) for side in found] == [numbers[::100].tolist()] * 2
