"""What `sample/read.py` promises: a line's bytes by range, whatever its kind, with few requests."""

import pytest

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import SampleError
from k25_pipelines.sample.read import Tables, extents_of_chunk, inside, read_line
from k25_pipelines.storage.store import open_store
from tests.sample.small_lake import KINDS, new_lake, raw_objects


@pytest.fixture(scope="module")
def lake():
    return new_lake()


class Ranges:
    """A fetch that remembers what it was asked for."""

    def __init__(self, manifest):
        self.store, self.asked = open_store(manifest.uri), []

    def __call__(self, *extent):
        self.asked.append(extent)
        return self.store.get_range(*extent[:3])


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        ("captions", 0, "picture 0, left of 0\n"),
        ("captions", 2, "a bear on the left"),
        ("grounding", 1, None),
        ("wiki", 23, "Article 24. " + "Words of it. " * 24),
        ("code", 8, "def f8():\n    return 8\n" * 3),
        ("clips", 1, "late"),
        ("notes", 1, "Größe: 3\n"),
    ],
)
def test_the_words_of_a_line_come_from_where_its_kind_keeps_them(lake, name, line, text):
    manifest = load_manifest(lake, name)
    assert read_line(manifest, line, Ranges(manifest)).text == text


@pytest.mark.parametrize(("name", "line", "key"), [("grounding", 3, "3.png"), ("clips", 1, "1.mp4")])
def test_loose_media_are_whole_objects(lake, name, line, key):
    manifest = load_manifest(lake, name)
    raw = read_line(manifest, line, Ranges(manifest))
    assert (raw.media, raw.medium.shard) == (raw_objects()[name][key], key)
    assert read_line(manifest, line, Ranges(manifest), with_media=False).media is None


@pytest.mark.parametrize("name", KINDS)
def test_the_extents_of_a_chunk_hold_every_part_of_its_lines(lake, name):
    manifest = load_manifest(lake, name)
    for line in range(manifest.num_lines):
        ranges = extents_of_chunk(manifest, line // manifest.chunk_lines)
        parts = [(part.shard, part.offset, part.num_bytes, part.etag) for part in manifest.line(line).parts]
        assert all(inside(ranges, part) for part in parts)


def test_neighbours_in_a_tar_are_one_extent(lake):
    manifest = load_manifest(lake, "captions")
    (extent,) = extents_of_chunk(manifest, 0)
    image, text = manifest.line(0).parts
    first, last = sorted([image, text], key=lambda part: part.offset)
    assert extent == ("0.tar", first.offset, last.offset + last.num_bytes - first.offset, image.etag)


def test_the_rows_of_a_row_group_are_fetched_and_decoded_once(lake):
    manifest, tables = load_manifest(lake, "wiki"), Tables()
    fetch = Ranges(manifest)
    texts = [read_line(manifest, line, fetch, tables=tables).text for line in range(24)]
    assert texts == [f"Article {number}. " + "Words of it. " * number for number in range(1, 25)]
    assert len(fetch.asked) == 1 + 3  # the footer and three row groups
    size = len(raw_objects()["wiki"]["0.parquet"])
    assert all(offset + num_bytes <= size for _, offset, num_bytes, _ in fetch.asked)


def test_bytes_that_are_no_row_group_are_a_named_error(lake):
    manifest = load_manifest(lake, "wiki")
    with pytest.raises(SampleError, match=r"0.parquet, bytes \d+ to \d+: no row group"):
        read_line(manifest, 0, lambda shard, offset, num_bytes, etag: b"\0" * num_bytes)
