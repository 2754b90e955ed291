"""Manifests: named by their lines, read back whole, and every value found by its number."""

from dataclasses import replace

import numpy as np
import pytest

from k25_pipelines.catalog.manifest import (
    CHUNK_BYTES,
    Line,
    Manifest,
    Part,
    chunk_lines,
    lines_table,
    make_manifest,
    manifest_digest,
    manifest_key,
    part_columns,
    read_manifest,
    write_manifest,
)
from k25_pipelines.errors import ManifestError

IMAGE = Part(
    kind="image", shard="0.tar", offset=512, num_bytes=90, etag="e", width=8, height=6, frames=1, orientation=6
)
CAPTION = Part(kind="text", shard="0.tar", offset=1536, num_bytes=11, etag="e", shard_bytes=4096)
FILM = Part(kind="video", shard="b.mp4", num_bytes=700, etag="f", width=32, height=16, frames=5, fps=12.5)
LINES = [
    Line(key="a", parts=(IMAGE, CAPTION), text_length=9, licence="MIT", source="drawn", inline='{"caption":"é"}'),
    Line(key="b", parts=(FILM,), licence="CC0-1.0", source="filmed"),
    Line(key="c", parts=(), licence="", source="", quarantine="nothing there"),
]


def manifest_of(lines: list[Line], size: int = 2) -> Manifest:
    return make_manifest("drawings", lines_table(lines), uri="s3://lake/raw", kind="webdataset", chunk_lines=size)


def test_lines_go_in_and_come_out():
    manifest = manifest_of(LINES)
    assert [manifest.line(number) for number in range(manifest.num_lines)] == LINES
    assert (manifest.num_chunks, manifest.quarantined.tolist()) == (2, [False, False, True])


@pytest.mark.parametrize("number", [-1, 3])
def test_a_line_that_is_not_there_is_an_error(number):
    with pytest.raises(ManifestError, match=f"lines 0 to 2, not {number}"):
        manifest_of(LINES).line(number)


def test_a_manifest_is_read_as_it_was_written(lake):
    manifest = manifest_of(LINES)
    write_manifest(lake, manifest)
    write_manifest(lake, manifest)
    read = read_manifest(lake, "drawings", manifest.digest)
    assert read.table.equals(manifest.table)
    assert (read.dataset, read.uri, read.kind, read.chunk_lines) == ("drawings", "s3://lake/raw", "webdataset", 2)


def test_the_name_is_the_one_that_past_plans_used():
    assert manifest_of(LINES).digest == "e24af8fd5026333f49148e576e298428"


def test_the_name_does_not_depend_on_how_the_table_lies_in_memory():
    table = lines_table([*LINES[:1], *LINES, *LINES[:1]])
    sliced = make_manifest("d", table.slice(1, 3), uri="u", kind="webdataset", chunk_lines=2)
    assert (sliced.digest, sliced.line(1)) == (manifest_of(LINES).digest, LINES[1])
    assert manifest_digest(LINES, kind="webdataset", chunk_lines=2) == sliced.digest


@pytest.mark.parametrize(
    "change",
    [
        *({name: "other"} for name in ("key", "licence", "source", "inline", "quarantine")),
        {"text_length": 8},
        {"parts": (IMAGE,)},
        *({"parts": (replace(IMAGE, **{name: "other"}), CAPTION)} for name in ("kind", "shard", "column", "etag")),
        *({"parts": (replace(IMAGE, **{name: 7}), CAPTION)} for name in ("offset", "num_bytes", "row", "width")),
        *({"parts": (replace(IMAGE, **{name: 7}), CAPTION)} for name in ("height", "frames", "fps", "orientation")),
    ],
    ids=str,
)
def test_every_field_bears_on_the_name(change):
    assert manifest_of([replace(LINES[0], **change), *LINES[1:]]).digest != manifest_of(LINES).digest


def test_what_decides_the_order_of_visits_bears_on_the_name():
    assert manifest_of(LINES, size=3).digest != manifest_of(LINES).digest


def test_text_that_moves_from_one_line_to_the_next_changes_the_name():
    first, second = (replace(LINES[1], key=key) for key in ("ab", "c"))
    assert (
        manifest_of([first, second]).digest != manifest_of([replace(first, key="a"), replace(second, key="bc")]).digest
    )


def test_the_planner_sees_the_first_medium_of_each_line_and_those_after_it():
    two = replace(LINES[0], parts=(CAPTION, IMAGE, FILM))
    table = manifest_of([LINES[2], two, LINES[1], two]).media_table()
    more = table.pop("more")
    assert {name: column.tolist() for name, column in table.items()} == {
        "num_media": [0, 2, 1, 2],
        "width": [0, 8, 32, 8],
        "height": [0, 6, 16, 6],
        "frames": [0, 1, 5, 1],
        "fps": [0.0, 0.0, 12.5, 0.0],
        "quarantined": [True, False, False, False],
    }
    assert {name: column.tolist() for name, column in more.items()} == {
        "line": [1, 3],
        "width": [32, 32],
        "height": [16, 16],
        "frames": [5, 5],
        "fps": [12.5, 12.5],
    }
    assert (table["width"].dtype, table["fps"].dtype, table["quarantined"].dtype) == (np.int64, np.float64, bool)
    assert {name: column.dtype for name, column in more.items()} == {
        **dict.fromkeys(("line", "width", "height", "frames"), np.int64),
        "fps": np.float64,
    }


def test_every_value_is_found_by_its_number():
    columns = manifest_of(LINES).columns
    assert [columns.lines["key"][line] for line in range(3)] == ["a", "b", "c"]
    assert columns.lines["inline"][0] == LINES[0].inline
    assert list(columns.first_part) == [0, 2, 3, 3]
    assert [columns.parts["shard"][part] for part in range(3)] == ["0.tar", "0.tar", "b.mp4"]
    assert [columns.parts["fps"][part] for part in range(3)] == [0.0, 0.0, 12.5]


@pytest.mark.parametrize("size", [1, 2, 7, 300])
def test_lines_are_the_same_whatever_the_size_of_their_chunks(size):
    lines = [replace(LINES[number % 3], key=f"{number}") for number in range(700)]
    manifest = make_manifest("d", lines_table(lines), uri="u", kind="text", chunk_lines=size)
    order = np.random.default_rng(1).permutation(700).tolist()
    assert [manifest.line(number) for number in order] == [lines[number] for number in order]


def test_parts_know_their_line():
    columns = part_columns(manifest_of(LINES))
    assert (columns["line"].tolist(), columns["offset"].tolist()) == ([0, 0, 1], [512, 1536, 0])


@pytest.mark.parametrize(
    ("num_lines", "num_bytes", "expected"),
    [(10, 1, 1), (255, 1, 1), (2560, 1, 10), (100_00, CHUNK_BYTES // 8, 8), (1000, 9 * CHUNK_BYTES, 1)],
)
def test_a_chunk_is_8_mib_or_smaller_where_256_chunks_need_it(num_lines, num_bytes, expected):
    lines = [replace(LINES[1], parts=(replace(FILM, offset=i, num_bytes=num_bytes),)) for i in range(num_lines)]
    assert chunk_lines(lines_table(lines)) == expected


def test_rows_of_one_row_group_count_its_bytes_once():
    rows = [replace(LINES[1], parts=(Part(kind="text", shard="0", num_bytes=CHUNK_BYTES, row=i),)) for i in range(2560)]
    assert chunk_lines(lines_table(rows)) == 10


def test_an_absent_version_is_named(lake):
    with pytest.raises(ManifestError, match=f"drawings@{'0' * 32}: no such version in {lake.url}"):
        read_manifest(lake, "drawings", "0" * 32)


@pytest.mark.parametrize("harm", ["cut", "another"])
def test_an_object_that_is_not_what_its_name_says_is_an_error(lake, harm):
    manifest, other = manifest_of(LINES), manifest_of(LINES[:2])
    write_manifest(lake, manifest)
    write_manifest(lake, other)
    key, wrong = (manifest_key("drawings", one.digest) for one in (manifest, other))
    lake.put(key, lake.get(key)[:-9] if harm == "cut" else lake.get(wrong))
    with pytest.raises(ManifestError, match=r"restore"):
        read_manifest(lake, "drawings", manifest.digest)
