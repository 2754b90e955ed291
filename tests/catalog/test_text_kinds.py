"""JSON lines, plain text and Parquet, in place: every part leads back to its text, every fault is one line."""

import io
import json

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.store import open_store
from tests.catalog.conftest import json_lines, parquet, registered


def indexed(lake, kind: str, objects: dict[str, bytes]) -> Manifest:
    for key, data in objects.items():
        lake.put(f"raw/x/{key}", data)
    registered(lake, "x", kind)
    return index_dataset(lake, "x")


def lines(manifest: Manifest) -> list:
    return [manifest.line(number) for number in range(manifest.num_lines)]


def bytes_of(lake, line) -> bytes:
    part = line.parts[0]
    return lake.get_range(f"raw/x/{part.shard}", part.offset, part.num_bytes)


def test_each_json_line_is_a_sample_found_by_its_bytes(lake):
    records = [
        {"text": "één", "key": "a", "licence": "MIT", "source": "me"},
        {"content": "two", "path": "src/two.py", "license": "PSF-2.0"},
        {"text": "three"},
    ]
    found = lines(indexed(lake, "jsonl", {"0.jsonl": json_lines(*records)}))
    assert [json.loads(bytes_of(lake, line)) for line in found] == records
    assert [(line.key, line.text_length, line.licence, line.source, line.parts[0].column) for line in found] == [
        ("a", 3, "MIT", "me", "text"),
        ("src/two.py", 3, "PSF-2.0", "drawn for a test", "content"),
        ("0.jsonl:3", 5, "CC0-1.0", "drawn for a test", "text"),
    ]


BROKEN_LINES = {
    b"{": "line 2: not JSON",
    b'"text"': "line 2: a JSON object was expected, not str",
    b"\xff": "line 2: not UTF-8 at byte 0",
    b"{}": "line 2: neither 'text' nor 'content' holds text; its fields: none",
    b'{"text": 1, "a": 2}': "line 2: neither 'text' nor 'content' holds text; its fields: a, text",
    b'{"text": " "}': "line 2: 'text' is empty",
    b'{"text": "\\ud800"}': "line 2: half of a surrogate pair in a string; write the whole character",
    b"[" * 100_000: "line 2: not JSON",
}


@pytest.mark.parametrize("broken", BROKEN_LINES, ids=lambda line: line[:9].decode("latin-1"))
def test_a_broken_json_line_is_quarantined_under_its_number(lake, broken):
    found = lines(indexed(lake, "jsonl", {"0.jsonl": b'{"text": "a"}\n' + broken + b'\n{"text": "c"}\n'}))
    assert [line.quarantine for line in found] == ["", BROKEN_LINES[broken], ""]
    assert bytes_of(lake, found[1]) == broken


def test_blank_lines_windows_ends_and_byte_order_marks_are_no_samples(lake):
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n\n  \n{"text": "b"}'
    found = lines(indexed(lake, "jsonl", {"0.jsonl": data}))
    assert [(bytes_of(lake, line), line.key, line.quarantine) for line in found] == [
        (b'{"text": "a"}', "0.jsonl:1", ""),
        (b'{"text": "b"}', "0.jsonl:5", ""),
    ]


@given(st.lists(st.dictionaries(st.sampled_from(["text", "key", "n"]), st.text(min_size=1)), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_line_is_found_again(records):
    lake = open_store("memory://any-json-line")
    lake.objects.clear()
    data = "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()
    assert [json.loads(bytes_of(lake, line)) for line in lines(indexed(lake, "jsonl", {"0.jsonl": data}))] == records


def test_each_text_file_is_a_sample(lake):
    found = lines(
        indexed(lake, "text", {"b/é.py": b"x = 1", "a.md": "één".encode(), "c.txt": b"\n", "d.c": b"\xff", "e.o": b""})
    )
    assert [(line.key, line.text_length, line.quarantine) for line in found] == [
        ("a.md", 3, ""),
        ("b/é.py", 5, ""),
        ("c.txt", 1, "empty"),
        ("d.c", 0, "not UTF-8 at byte 0"),
    ]
    assert bytes_of(lake, found[1]) == b"x = 1"


def test_each_parquet_row_is_a_sample_found_by_row_group_and_row(lake):
    columns = {
        "n": list(range(5)),
        "text": ["a", "één", None, " ", "last"],
        "licence": ["MIT", None, "X", "X", "CC0-1.0"],
        "id": [10, 11, 12, 13, None],
    }
    data = parquet(columns)
    found = lines(indexed(lake, "parquet", {"0.parquet": data}))
    assert [(line.key, line.text_length, line.licence, line.parts[0].row, line.quarantine) for line in found] == [
        ("10", 1, "MIT", 0, ""),
        ("11", 3, "CC0-1.0", 1, ""),
        ("12", 0, "X", 0, "row 2: 'text' is empty"),
        ("13", 1, "X", 1, "row 3: 'text' is empty"),
        ("0.parquet:4", 4, "CC0-1.0", 0, ""),
    ]
    part = found[1].parts[0]
    assert part.shard_bytes == len(data)
    others_blank = bytes(part.offset) + data[part.offset : part.offset + part.num_bytes]
    footer = data[len(data) - 8 - int.from_bytes(data[-8:-4], "little") :]
    sparse = others_blank + bytes(len(data) - len(others_blank) - len(footer)) + footer
    table = pq.ParquetFile(io.BytesIO(sparse)).read_row_group(0, columns=[part.column])
    assert table["text"].to_pylist() == ["a", "één"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            parquet({"words": ["a"], "n": [1]}),
            r"0\.parquet has neither words \(text, .*\) nor media \(image, .*\); its columns are words, n$",
        ),
        (parquet({"text": [1]}), r"0\.parquet: column 'text' holds int64, expected strings$"),
        (parquet({"text": ["a"]})[:-5], r"0\.parquet \(\d+ bytes\) is no whole Parquet file: .* upload it again$"),
        (b"", r"0\.parquet \(0 bytes\) is no whole Parquet file"),
    ],
    ids=["no column", "another type", "truncated", "empty"],
)
def test_an_object_that_is_no_table_of_text_is_named(lake, data, expected):
    with pytest.raises(DatasetError, match=f"^x: {lake.url}/raw/x/{expected}"):
        indexed(lake, "parquet", {"0.parquet": data})


def test_a_dictionary_of_strings_is_text_too(lake):
    import pyarrow as pa

    column = pa.array(["a", "b", "a"]).dictionary_encode()
    found = lines(indexed(lake, "parquet", {"0.parquet": parquet({"text": column})}))
    assert [line.text_length for line in found] == [1, 1, 1]


def test_objects_without_any_sample_are_an_error(lake):
    with pytest.raises(DatasetError, match="hold no samples; check the URI and the kind"):
        indexed(lake, "jsonl", {"0.jsonl": b"\n\n"})
