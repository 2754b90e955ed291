"""From what people call a sample to the runs and checkpoints that consumed it, and from a checkpoint to its samples."""

import json

import pytest

from k25_pipelines import naming
from k25_pipelines.errors import LineageError
from k25_pipelines.lineage import ask, checkpoints_of_sample, trace_checkpoint, trace_sample
from k25_pipelines.planning.exclusions import tombstones_digest
from k25_pipelines.runs import amend
from tests.fed_run import config_of, feed_run, k25, new_lake, planned, rows_of

BROKEN = ("grounding", 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run `first`, amended at step 6 and saved after 4 and 10 steps; `second`, saved after 3 of its 5, from it."""
    folder = tmp_path_factory.mktemp("lake")
    lake = new_lake(folder)
    plan = planned(lake)
    feed_run(lake, config_of(plan), "first", folder, until=4, save=(4,))
    amended = amend(lake, plan, from_step=6, changes={"packs_per_step": 3}, reason="a larger batch", author="the test")
    feed_run(lake, config_of(plan), "first", folder, save=(10,))
    other = planned(lake, seed=6, name="other")
    config = config_of(other, steps=9, stage="projector")
    feed_run(lake, config, "second", folder, until=3, save=(3,))
    key = "k25/checkpoints/second/00000003/record.json"
    record = json.loads(lake.get(key))
    lake.put(key, json.dumps({**record, "parent": "k25/checkpoints/first/00000004"}).encode())
    feed_run(lake, config, "second", folder, until=5)
    return lake, amended, other


def consumed_rows(trained) -> dict[str, list[dict]]:
    """What each run was really fed, by the plans' rows."""
    lake, amended, other = trained
    return {"first": rows_of(lake, amended, range(10)), "second": rows_of(lake, other, range(5))}


def test_a_sample_is_traced_to_every_place_it_had_in_every_run_and_to_no_step_that_was_only_planned(trained):
    lake = trained[0]
    for sample in (("grounding", 7), ("wiki", 4), ("captions", 0)):
        expected = [
            (run, row["step"], row["pack"], row["slot"], row["epoch"])
            for run, rows in consumed_rows(trained).items()
            for row in rows
            if (row["dataset"], row["line"]) == sample
        ]
        found = trace_sample(lake, dataset=sample[0], line=sample[1])["runs"]
        assert [(row["run"], row["step"], row["pack"], row["slot"], row["epoch"]) for row in found] == expected
        assert {row["stage"] for row in found} <= {"vit", "projector"}


def test_a_checkpoint_holds_what_it_and_its_parents_trained_on_until_they_were_saved(trained):
    lake = trained[0]
    rows = consumed_rows(trained)
    saved = {"first/00000004": 4, "first/00000010": 10}
    samples = {(row["dataset"], row["line"]) for row in rows["first"] + rows["second"]} - {BROKEN}
    for sample in sorted(samples)[::7]:
        steps = {run: [r["step"] for r in each if (r["dataset"], r["line"]) == sample] for run, each in rows.items()}
        holding = {key for key, end in saved.items() if any(step < end for step in steps["first"])}
        if any(step < 3 for step in steps["second"]) or "first/00000004" in holding:
            holding.add("second/00000003")
        assert checkpoints_of_sample(lake, dataset=sample[0], line=sample[1]) == sorted(
            f"k25/checkpoints/{key}" for key in holding
        ), sample


def test_a_masked_sample_is_told_with_its_reason_and_no_checkpoint_holds_it(trained):
    found = trace_sample(trained[0], dataset=BROKEN[0], line=BROKEN[1])
    assert found["runs"]
    assert all("0003.png" in row["masked"] for row in found["runs"])
    assert found["checkpoints"] == []


def test_a_sample_that_was_forgotten_is_held_by_what_was_trained_on_it_before_and_by_nothing_since(trained, tmp_path):
    lake, amended, other = trained
    seen = [{(row["dataset"], row["line"]) for row in rows_of(lake, plan, range(10))} for plan in (amended, other)]
    dataset, line = min((seen[0] & seen[1]) - {BROKEN})
    name = tombstones_digest([f"{dataset}:{line}"])
    lake.put(f"k25/tombstones/{name}.json", json.dumps([f"{dataset}:{line}"]).encode())
    lake.put("k25/tombstones/current.json", json.dumps({"digest": name}).encode())
    feed_run(lake, config_of(other), "since", tmp_path, save=(10,))
    found = trace_sample(lake, dataset=dataset, line=line)
    lake.delete("k25/tombstones/current.json")
    for info in [*lake.list("k25/runs/since/"), *lake.list("k25/checkpoints/since/")]:
        lake.delete(info.key)
    outcomes = {(row["run"], row["masked"]) for row in found["runs"]}
    assert ("since", "withheld") in outcomes
    assert outcomes <= {("first", None), ("second", None), ("since", "withheld")}
    assert "k25/checkpoints/first/00000010" in {row["checkpoint"] for row in found["checkpoints"]}
    assert "k25/checkpoints/since/00000010" not in {row["checkpoint"] for row in found["checkpoints"]}


def test_a_checkpoint_lists_its_datasets_and_those_of_its_parents_and_the_samples_of_a_step(trained):
    lake = trained[0]
    rows = consumed_rows(trained)
    expected = []
    for key, run, end in (("second/00000003", "second", 3), ("first/00000004", "first", 4)):
        for name in sorted({row["dataset"] for row in rows[run] if row["step"] < end}):
            mine = [row for row in rows[run] if row["step"] < end and row["dataset"] == name]
            expected.append(
                (
                    f"k25/checkpoints/{key}",
                    name,
                    len({row["line"] for row in mine}),
                    sum(row["num_tokens"] for row in mine),
                )
            )
    found = trace_checkpoint(lake, "second/00000003")
    assert [(row["checkpoint"], row["dataset"], row["samples"], row["tokens"]) for row in found] == expected
    step = [(row["pack"], row["slot"], row["dataset"], row["line"]) for row in rows["first"] if row["step"] == 8]
    found = trace_checkpoint(lake, "k25/checkpoints/first/00000010", step=8)
    assert [(row["pack"], row["slot"], row["dataset"], row["line"]) for row in found] == step


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("groundings:3", "no dataset 'groundings'; did you mean grounding"),
        ("grounding:300", "dataset grounding has lines 0 to 19, not 300"),
        ("grounding", "is no sample id"),
    ],
)
def test_a_sample_that_is_not_there_is_refused_with_what_is(trained, told, said):
    with pytest.raises(LineageError, match=said):
        naming.samples_called(trained[0], told)


def test_a_key_is_the_datasets_own_name_for_a_sample(trained):
    lake = trained[0]
    assert naming.samples_of_key(lake, f"captions/{naming.key_of(lake, 'captions', 7)}") == [("captions", 7)]
    with pytest.raises(LineageError, match="dataset captions has no key '00007'; did you mean 0000"):
        naming.samples_of_key(lake, "captions/00007")
    with pytest.raises(LineageError, match="is no NAME/KEY"):
        naming.samples_of_key(lake, "captions")


def test_a_content_id_names_every_sample_that_holds_the_medium(trained):
    import hashlib

    lake = trained[0]
    sha256 = hashlib.sha256(lake.get("raw/grounding/0007.png")).hexdigest()
    assert naming.samples_called(lake, sha256) == [("grounding", 7)]
    with pytest.raises(LineageError, match="no sample is known to hold content 000000000000"):
        naming.samples_called(lake, "0" * 64)


def test_a_checkpoint_or_step_that_is_not_there_is_refused_with_what_is(trained):
    lake = trained[0]
    with pytest.raises(
        LineageError, match=r"no checkpoint 'first/0004'; did you mean .*k25/checkpoints/first/00000004"
    ):
        trace_checkpoint(lake, "first/0004")
    with pytest.raises(LineageError, match="first/00000004 was not trained on step 7; its steps are 0 to 3"):
        trace_checkpoint(lake, "first/00000004", step=7)


def test_a_question_of_ones_own_is_asked_of_the_same_tables(trained, monkeypatch, capsys):
    lake = trained[0]
    monkeypatch.setenv("K25_LAKE", lake.url)
    tokens = {run: sum(row["num_tokens"] for row in rows) for run, rows in consumed_rows(trained).items()}
    question = """
        SELECT run, sum(num_tokens)::BIGINT AS tokens FROM consumed JOIN plan_rows USING (plan)
        WHERE step >= first_step AND step < end_step GROUP BY run ORDER BY run
    """
    assert k25("trace", "--ask", question, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"run": run, "tokens": tokens[run]} for run in sorted(tokens)]
    with pytest.raises(LineageError, match=r"DuckDB does not understand the question: .*no_such_table"):
        ask(lake, "SELECT * FROM no_such_table")


def test_the_command_tells_a_page_or_json_and_shows_its_sql(trained, monkeypatch, capsys):
    lake = trained[0]
    monkeypatch.setenv("K25_LAKE", lake.url)
    assert k25("trace", "grounding:7") == 0
    page = capsys.readouterr().out
    assert page.startswith("grounding:7 (key 0007")
    assert "k25/checkpoints/first/00000010" in page
    assert k25("trace", "grounding:7", "--sql", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["found"][0]["runs"] == trace_sample(lake, dataset="grounding", line=7)["runs"]
    assert told["sql"][0].startswith("SELECT c.run, r.stage, p.plan, p.step")
    assert k25("trace", "--checkpoint", "first/00000004", "--step", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len([row for row in consumed_rows(trained)["first"] if row["step"] == 2])
    assert k25("trace", "grounding:7", "--step", 2) == 2
    assert capsys.readouterr().err == "k25 trace: --step is of a checkpoint; name it with --checkpoint C\n"
