"""Pages of lineage lead both ways, questions in SQL reach all tables and nothing else, commands say what they wrote."""

import json
import re

import pyarrow as pa
import pytest

from k25_pipelines import lake_tables, sql
from k25_pipelines.cli import main
from k25_pipelines.errors import LineageError
from k25_pipelines.gallery import lineage, write_page
from k25_pipelines.gallery.page import file_name, shortened
from k25_pipelines.planning.exclusions import put_tombstones
from tests.fed_run import config_of, feed_run, new_lake, planned, rows_of

CHECKPOINT = "k25/checkpoints/first/00000003"
CHILD = "k25/checkpoints/second/00000001"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps; another of one step that started from it and was evaluated."""
    folder = tmp_path_factory.mktemp("lake")
    lake = new_lake(folder)
    plan, other = planned(lake), planned(lake, seed=6, name="other")
    feed_run(lake, config_of(plan), "first", folder, until=3, save=(3,))
    feed_run(lake, config_of(other, steps=9, stage="projector"), "second", folder, until=1, save=(1,))
    key = f"{CHILD}/record.json"
    lake.put(key, json.dumps({**json.loads(lake.get(key)), "parent": CHECKPOINT}).encode())
    told = {"checkpoint": CHILD, "evaluation": "captions", "true_loss": 3.5, "samples": 16}
    lake.put("k25/evaluations/abc/captions.json", json.dumps(told).encode())
    return lake, plan, other


def boxes(page: str) -> list[str]:
    """What the boxes of a picture say, title first."""
    return re.findall(r"<g><title>([^<]*)</title><rect", page)


def test_a_sample_is_shown_from_its_bytes_to_the_evaluation_of_what_was_made_of_it(trained):
    lake, plan, _ = trained
    row = next(row for row in rows_of(lake, plan, range(3)) if row["dataset"] == "captions")
    page = lineage.sample_lineage_page(lake, "captions", row["line"])
    told = boxes(page)
    for words in (
        f"captions:{row['line']} |",
        "first | step",
        "first · 3 |",
        "second · 1 |",
        "captions | true_loss 3.5",
    ):
        assert [box for box in told if box.startswith(words)], words
    assert "data:image/jpeg;base64," in page


def test_a_sample_that_nothing_consumed_says_so_and_one_that_is_not_there_is_an_error(trained):
    lake = trained[0]
    assert "No run has consumed it" in lineage.sample_lineage_page(lake, "captions_heldout", 3)
    with pytest.raises(LineageError, match="has lines 0 to 15, not 99"):
        lineage.sample_lineage_page(lake, "captions_heldout", 99)


def test_a_checkpoint_is_shown_back_to_its_datasets_through_what_it_started_from(trained):
    lake, plan, other = trained
    page = lineage.checkpoint_lineage_page(lake, "second/00000001")
    names = {row["dataset"] for row in rows_of(lake, plan, range(3)) + rows_of(lake, other, range(1))}
    told = boxes(page)
    assert {box.split(" | ")[0] for box in told} == names | {"first · 3", "second · 1", "captions"}
    tokens = sum(r["num_tokens"] for r in rows_of(lake, plan, range(3)) + rows_of(lake, other, range(1)))
    assert f"<b>{tokens:,}</b><span>tokens behind it</span>" in page


def test_a_forgotten_sample_has_a_page_without_its_picture(trained):
    lake, plan, _ = trained
    line = next(row["line"] for row in rows_of(lake, plan, range(3)) if row["dataset"] == "captions")
    put_tombstones(lake, [f"captions:{line}"])
    try:
        page = lineage.sample_lineage_page(lake, "captions", line)
        assert lake_tables.ask(lake, "SELECT * FROM forgotten").to_pylist() == [{"dataset": "captions", "line": line}]
    finally:
        put_tombstones(lake, [])
    assert "forgotten: not shown" in page
    assert "data:image" not in page


def test_every_table_answers_and_a_dataset_is_a_table_of_its_own(trained):
    lake, plan, _ = trained

    def asked(question):
        return lake_tables.ask(lake, question).to_pylist()

    counts = {name: asked(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in lake_tables.TABLES}
    assert all(counts[name] for name in set(lake_tables.TABLES) - {"bad_samples", "forgotten"})
    assert asked("SELECT count(*) AS n FROM captions") == asked(
        "SELECT count(*) AS n FROM samples WHERE dataset = 'captions'"
    )
    assert asked("SELECT metric, value FROM evaluations ORDER BY metric") == [
        {"metric": "samples", "value": 16.0},
        {"metric": "true_loss", "value": 3.5},
    ]
    rows = asked(f"SELECT count(*) AS n, sum(num_tokens)::BIGINT AS tokens FROM plan_rows WHERE plan = '{plan}'")
    planned_rows = rows_of(lake, plan, range(3))
    assert rows == [{"n": len(planned_rows), "tokens": sum(row["num_tokens"] for row in planned_rows)}]
    assert asked("SELECT count(*) AS n FROM parts p JOIN samples s USING (dataset, line) WHERE s.dataset = 'clips'")[0][
        "n"
    ]


@pytest.mark.parametrize(
    "question",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/answer.csv'",
        "SET enable_external_access = true",
        "ATTACH '/tmp/other.db'",
        "SELECT * FROM hidden",
        "SELEC 1",
        "",
    ],
)
def test_a_question_reaches_its_tables_and_no_file(question):
    hidden = pa.table({"a": [1]})
    with pytest.raises(LineageError):
        sql.answer({"seen": hidden}, question)


def test_only_tables_that_a_question_names_are_made():
    def never() -> pa.Table:
        raise AssertionError("made")

    one = pa.table({"a": [1]})
    assert sql.answer({"one": lambda: one, "one_more": never}, "SELECT a + $b AS c FROM ONE", {"b": 2}).to_pylist() == [
        {"c": 3}
    ]


def test_a_page_is_written_under_a_name_that_no_sample_can_lead_elsewhere(tmp_path):
    assert file_name("../../etc/passwd") == "etc-passwd"
    path = write_page(tmp_path, "a/b", "<p>")
    assert (path.name, path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("a-b.html", "<p>", ["a-b.html"])
    assert shortened("abcdef", 4) == "abcd … (2 more characters)"


def test_the_commands_write_pages_and_print_their_paths(trained, capsys, monkeypatch, tmp_path):
    lake, plan, _ = trained
    monkeypatch.setenv("K25_LAKE", lake.url)

    def k25(*words: object) -> tuple[int, str, str]:
        return main([str(word) for word in words]), *capsys.readouterr()

    done = [
        k25("gallery", "captions", "--samples", "3", "--output", tmp_path),
        k25("gallery", "--run", "first", "--steps", "1:3", "--output", tmp_path),
        k25("lineage", "--checkpoint", "second/00000001", "--output", tmp_path),
        k25("insight", "--plan", plan, "--ranks", "2", "--output", tmp_path),
    ]
    assert [(code, errors) for code, _, errors in done] == [(0, "")] * 4
    printed = [line for _, output, _ in done for line in output.split() if line.endswith(".html")]
    assert sorted(printed) == sorted(str(path) for path in tmp_path.iterdir())
    assert "first-step-2.html" in (tmp_path / "first-step-1.html").read_text()
    assert json.loads(k25("sql", "SELECT count(*) AS n FROM captions_heldout", "--json")[1]) == {"n": 16}
    code, _, errors = k25("gallery", "--run", "frst")
    assert (code, "did you mean first" in errors) == (2, True)
    code, _, errors = k25("insight", "--plan", plan, "--limit", "0.000001", "--json")
    assert (code, "may not fit" in errors) == (1, True)
