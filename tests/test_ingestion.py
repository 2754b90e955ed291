"""What arrived on which day: cards become registrations, lines belong to days, and nothing is told twice."""

import json

import pytest

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import dataset_names, index_dataset, register
from k25_pipelines.ingestion import day_of_key, day_rows, ingest, take_in
from k25_pipelines.storage.store import open_store


@pytest.fixture
def lake(tmp_path):
    return open_store(str(tmp_path / "lake"))


def put_texts(lake, key: str, count: int) -> None:
    lake.put(key, "\n".join(json.dumps({"text": f"{key} {number}"}) for number in range(count)).encode())


def register_notes(lake) -> None:
    entry = Registration(name="notes", uri=f"{lake.url}/raw/notes", kind="jsonl", licence="MIT", source="tests")
    register(lake, entry)


def ingest_day(lake, day: str) -> None:
    ingest(lake, day, index=lambda name: index_dataset(lake, name))


def told(lake, day: str) -> list[tuple]:
    return [(row["dataset"], row["number"], row["lines"], row["objects"]) for row in day_rows(lake, day)]


@pytest.mark.parametrize(
    ("key", "day"),
    [
        ("2026-11-24/part-0.jsonl", "2026-11-24"),
        ("year/2026/11/24/a.tar", "2026-11-24"),
        ("dt=20261124/a.tar", "2026-11-24"),
        ("2026-02-30/a.tar", None),
        ("120261124999.tar", None),
        ("2026-11/24.tar", None),
        ("000012.tar", None),
    ],
)
def test_a_key_may_name_a_day(key, day):
    assert day_of_key(key) == day


def test_a_day_has_the_lines_that_were_new_on_it(lake):
    register_notes(lake)
    put_texts(lake, "raw/notes/a.jsonl", 3)
    ingest_day(lake, "2026-11-20")
    put_texts(lake, "raw/notes/b.jsonl", 2)
    ingest_day(lake, "2026-11-21")
    assert [told(lake, day) for day in ("2026-11-20", "2026-11-21")] == [[("notes", 1, 3, 1)], [("notes", 2, 2, 1)]]


def test_lines_whose_keys_name_a_day_belong_to_it_however_late_they_are_taken_in(lake):
    register_notes(lake)
    put_texts(lake, "raw/notes/2026-11-20.jsonl", 3)
    put_texts(lake, "raw/notes/2026-11-21.jsonl", 2)
    put_texts(lake, "raw/notes/other.jsonl", 1)
    ingest_day(lake, "2026-11-25")
    days = ("2026-11-20", "2026-11-21", "2026-11-25")
    assert [told(lake, day) for day in days] == [[("notes", 1, 3, 1)], [("notes", 1, 2, 1)], [("notes", 1, 1, 1)]]


def test_a_day_made_again_says_the_same(lake):
    register_notes(lake)
    put_texts(lake, "raw/notes/a.jsonl", 3)
    ingest_day(lake, "2026-11-20")
    before = day_rows(lake, "2026-11-20")
    ingest_day(lake, "2026-11-20")
    ingest_day(lake, "2026-11-21")
    assert (day_rows(lake, "2026-11-20"), day_rows(lake, "2026-11-21")) == (before, [])


def test_a_version_indexed_by_hand_is_told_by_the_next_day(lake):
    register_notes(lake)
    put_texts(lake, "raw/notes/a.jsonl", 3)
    index_dataset(lake, "notes")
    ingest_day(lake, "2026-11-22")
    assert told(lake, "2026-11-22") == [("notes", 1, 3, 1)]


def test_a_card_registers_its_dataset_and_a_wrong_one_keeps_back_no_other(lake, tmp_path):
    inbox = open_store(str(tmp_path / "incoming"))
    inbox.put("_datasets/web.json", json.dumps({"kind": "jsonl", "licence": "MIT", "source": "tests"}).encode())
    inbox.put("_datasets/bare.json", json.dumps({"kind": "jsonl"}).encode())
    inbox.put("_datasets/torn.json", b"{")
    taken, wrong = take_in(lake, str(tmp_path / "incoming"))
    assert (taken, sorted(wrong), dataset_names(lake)) == (["web"], ["bare", "torn"], ["web"])
    assert "has to name kind, licence, source" in wrong["bare"]
