"""Parquet with media: bytes in cells, lists of them, keys of objects, annotations; parts lead back to bytes."""

import io
import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k25_pipelines.catalog.line import Line
from k25_pipelines.sample.read import Tables, read_line
from tests.catalog.conftest import film, parquet, picture
from tests.catalog.test_media_kinds import indexed, lines

A, B, C = picture(5, 4), picture(6, 4, "PNG"), picture(7, 4, "WEBP")


def read(lake, manifest) -> list:
    """What each fine line gives, its bytes fetched by range."""

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return lake.get_range(f"raw/x/{shard}", offset, num_bytes, etag=etag)

    tables = Tables()
    return [
        read_line(manifest, number, fetch, tables=tables)
        for number in range(manifest.num_lines)
        if not manifest.quarantined[number]
    ]


def sizes(line: Line) -> list[tuple[str, int, int]]:
    return [(part.column, part.width, part.height) for part in line.parts]


def test_the_hugging_face_image_layout_is_read(lake):
    images = [{"bytes": A, "path": "a.jpg"}, {"bytes": B, "path": None}, None, {"bytes": A[:30], "path": "c"}, None]
    data = parquet({"image": images, "caption": ["a", None, "words alone", "c", " "], "id": list("abcde")})
    manifest = indexed(lake, "parquet", {"0.parquet": data})
    found = lines(manifest)
    assert [(line.key, line.quarantine) for line in found] == [
        ("a", ""),
        ("b", ""),
        ("c", ""),
        ("d", "row 3: column 'image': broken header"),
        ("e", "row 4: 'caption' is empty"),
    ]
    assert [sizes(line) for line in found[:3]] == [
        [("image", 5, 4), ("caption", 0, 0)],
        [("image", 6, 4)],
        [("caption", 0, 0)],
    ]
    assert [(raw.media, raw.text) for raw in read(lake, manifest)] == [((A,), "a"), ((B,), None), ((), "words alone")]


def binary(*values: bytes | None) -> pa.Array:
    return pa.array(values, pa.large_binary())


LAYOUTS: dict[str, tuple[Callable[[], dict], list]] = {
    "binary": (lambda: {"jpg": binary(A, B), "text": ["a", "b"]}, [((A,), "a"), ((B,), "b")]),
    "list of binary": (
        lambda: {"images": pa.array([[A, B], [C]], pa.list_(pa.binary())), "text": ["a", "b"]},
        [((A, B), "a"), ((C,), "b")],
    ),
    "list of structs": (
        lambda: {"images": [[{"bytes": A, "path": "a"}, {"bytes": B, "path": "b"}], []], "texts": [["a", "x"], ["b"]]},
        [((A, B), "a"), ((), "b")],
    ),
    "two columns": (
        lambda: {
            "image": binary(A, A),
            "text": ["a", "b"],
            "img": [{"bytes": C, "path": ""}, {"bytes": B, "path": ""}],
        },
        [((A, C), "a"), ((A, B), "b")],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_media_of_any_layout_come_back_byte_for_byte(lake, layout):
    columns, expected = LAYOUTS[layout]
    manifest = indexed(lake, "parquet", {"0.parquet": parquet(columns(), rows_of_group=1)})
    assert [(raw.media, raw.text) for raw in read(lake, manifest)] == expected


def test_keys_in_place_of_bytes_lead_to_objects_below_the_root(lake):
    places = ["f/a.jpg", f"{lake.url}/raw/x/b.png", "gone.jpg"]
    data = parquet({"image": places, "text": ["a", "b", "c"]})
    manifest = indexed(lake, "parquet", {"0.parquet": data, "f/a.jpg": A, "b.png": B})
    found = lines(manifest)
    assert [line.parts[0].shard for line in found] == ["f/a.jpg", "b.png", "gone.jpg"]
    missing = "row 2: column 'image': there is no such object below the dataset's URI"
    assert [line.quarantine for line in found] == ["", "", missing]
    assert [raw.media for raw in read(lake, manifest)] == [(A,), (B,)]


def test_file_names_of_code_are_no_media(lake):
    data = parquet({"file_name": ["a.py", "b.JPG"], "content": ["x = 1", "b"]})
    found = lines(indexed(lake, "parquet", {"0.parquet": data, "b.JPG": A}))
    assert [(line.quarantine, [part.kind for part in line.parts]) for line in found] == [
        ("", ["text"]),
        ("", ["image", "text"]),
    ]


def test_films_in_cells_are_videos(lake, tmp_path):
    movie = film(tmp_path)
    manifest = indexed(lake, "parquet", {"0.parquet": parquet({"video": [{"bytes": movie, "path": "a.mp4"}]})})
    (part,) = lines(manifest)[0].parts
    assert (part.kind, part.width, part.frames, part.fps) == ("video", 32, 5, 10.0)
    assert read(lake, manifest)[0].media == (movie,)


BOX = {"bbox": [0.0, 0.0, 4.0, 4.0], "category": "cup"}
ANNOTATED: dict[str, tuple[dict, list]] = {
    "JSON text": ({"annotations": [json.dumps([BOX]), None]}, [[BOX], None]),
    "JSON object": ({"annotations": [json.dumps({"annotations": [BOX]}), "[]"]}, [[BOX], None]),
    "structs": ({"annotations": [[BOX], []]}, [[BOX], None]),
    "struct of lists": (
        {"objects": [{"bbox": [BOX["bbox"]], "category": [1]}, {"bbox": [], "category": []}]},
        [[{**BOX, "category": "1"}], None],
    ),
}


@pytest.mark.parametrize("layout", ANNOTATED)
def test_annotations_of_any_layout_stand_in_the_line(lake, layout):
    columns, expected = ANNOTATED[layout]
    manifest = indexed(lake, "parquet", {"0.parquet": parquet({"image": binary(A, B), **columns})})
    assert [json.loads(line.inline or "{}").get("annotations") for line in lines(manifest)] == expected


def test_numbers_of_categories_become_the_words_that_hugging_face_keeps(lake):
    feature = {"category": {"feature": {"names": ["fork", "cup"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    metadata = {"huggingface": json.dumps({"info": {"features": {"objects": {"feature": feature}}}})}
    table = pa.table({"image": binary(A), "objects": [{"bbox": [BOX["bbox"]], "category": [1]}]})
    data = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), data)
    (line,) = lines(indexed(lake, "parquet", {"0.parquet": data.getvalue()}))
    assert json.loads(line.inline) == {"annotations": [BOX]}


def test_wrong_annotations_name_row_field_and_value(lake):
    columns = {"image": binary(A, A), "annotations": ["no", json.dumps([{"bbox": [1]}])]}
    found = lines(indexed(lake, "parquet", {"0.parquet": parquet(columns)}))
    assert [line.quarantine for line in found] == [
        "row 0: column 'annotations' is no JSON (Expecting value: line 1 column 1 (char 0))",
        "row 1: annotations[0].bbox is [1], expected 4 finite numbers",
    ]


def test_further_captions_stand_in_the_line(lake):
    data = parquet({"image": binary(A), "captions": [["one", "two", "three"]]})
    manifest = indexed(lake, "parquet", {"0.parquet": data})
    assert lines(manifest)[0].inline == '{"captions":["two","three"]}'
    assert read(lake, manifest)[0].text == "one"
