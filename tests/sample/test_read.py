"""What `sample/read.py` promises: a line's bytes by range, whatever its kind, with few requests."""

import io
import json
import tarfile
import uuid
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import index_dataset, load_manifest, register
from k25_pipelines.errors import SampleError
from k25_pipelines.sample.read import Tables, extents_of_chunk, inside, part_bytes, read_line
from k25_pipelines.storage.store import open_store
from tests.sample.small_lake import KINDS, encoded, new_lake, photo, raw_objects


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
    assert (raw.media, raw.medium.shard) == ((raw_objects()[name][key],), key)
    assert read_line(manifest, line, Ranges(manifest), with_media=False).media == ()


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


def lake_of(kind: str, objects: dict[str, bytes]):
    """A manifest of one small dataset of its own."""
    lake = open_store(f"memory://{uuid.uuid4().hex}")
    for key, data in objects.items():
        lake.put(f"raw/x/{key}", data)
    register(lake, Registration(name="x", uri=f"{lake.url}/raw/x", kind=kind, licence="MIT", source="drawn"))
    return index_dataset(lake, "x")


def tar_of(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


ONE, TWO = encoded(photo(1, 8, 6)), encoded(photo(2, 9, 6), "PNG")


def test_all_media_of_a_line_come_in_the_order_of_its_parts():
    manifest = lake_of("webdataset", {"0.tar": tar_of({"a.right.jpg": ONE, "a.txt": b"both", "a.left.png": TWO})})
    raw = read_line(manifest, 0, Ranges(manifest))
    assert (raw.media, raw.text) == ((ONE, TWO), "both")
    assert [part.width for part in raw.media_parts] == [8, 9]
    assert raw.medium == raw.media_parts[0]
    words = read_line(manifest, 0, Ranges(manifest), with_media=False)
    assert (words.media, words.text, words.media_parts) == ((), "both", raw.media_parts)


def test_a_conversation_is_its_object_and_its_media():
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "image", "image": "a.jpg"}]},
        {"role": "assistant", "content": "two pictures"},
    ]
    record = {"messages": messages, "licence": "MIT"}
    manifest = lake_of("chat", {"0.jsonl": json.dumps(record).encode(), "a.jpg": ONE, "b.png": TWO})
    raw = read_line(manifest, 0, Ranges(manifest))
    assert (raw.inline, raw.media, raw.text) == (record, (TWO, ONE), None)


def test_masks_of_a_json_member_are_left_out_as_those_of_an_annotation_file_are():
    mask = {"bbox": [0, 0, 2, 2], "label": "cup", "segmentation": {"size": [6, 8], "counts": "ab"}}
    members = {"a.jpg": ONE, "a.json": json.dumps({"annotations": [mask]}).encode()}
    manifest = lake_of("webdataset", {"0.tar": tar_of(members)})
    assert read_line(manifest, 0, Ranges(manifest)).inline == {
        "annotations": [{"bbox": [0, 0, 2, 2], "label": "cup"}],
        "left_out": {"rle": 1},
    }


@pytest.mark.parametrize("rows_of_group", [1, 2, 5])
def test_items_of_lists_in_parquet_are_read_one_by_one(rows_of_group):
    images = [[ONE, TWO], [], [TWO]]
    data = io.BytesIO()
    table = pa.table({"images": pa.array(images, pa.list_(pa.binary())), "captions": [["a", "x"], ["b"], [None, "c"]]})
    pq.write_table(table, data, row_group_size=rows_of_group)
    manifest = lake_of("parquet", {"0.parquet": data.getvalue()})
    tables = Tables()
    found = [read_line(manifest, line, Ranges(manifest), tables=tables) for line in range(3)]
    assert [(raw.media, raw.text) for raw in found] == [((ONE, TWO), "a"), ((), "b"), ((TWO,), "c")]
    assert found[0].inline == {"captions": ["x"]}


def test_a_row_that_is_no_longer_there_is_a_named_error():
    data = io.BytesIO()
    pq.write_table(pa.table({"images": pa.array([[ONE]], pa.list_(pa.binary()))}), data)
    manifest = lake_of("parquet", {"0.parquet": data.getvalue()})
    part = manifest.line(0).parts[0]
    for change, said in (({"row": 5}, "x: row 5 of 1"), ({"column": "images[3]"}, r"column 'images\[3\]' .* is empty")):
        with pytest.raises(SampleError, match=said):
            part_bytes(replace(part, **change), Ranges(manifest), Tables(), name="x")
