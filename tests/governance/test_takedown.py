"""`k25 forget`: what is named and its copies leave plans, loaders and indexes; the receipt names who holds them."""

import json
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from k25_pipelines import governance
from k25_pipelines.catalog.about import state_about
from k25_pipelines.catalog.registry import Registration, index_dataset, register
from k25_pipelines.errors import DatasetError, LineageError
from k25_pipelines.governance.takedown import TAKEDOWNS
from k25_pipelines.lineage import trace_sample
from k25_pipelines.loader import PlanLoader
from k25_pipelines.planning import extend_plan, open_plan, tombstones
from k25_pipelines.planning.exclusions import put_tombstones
from k25_pipelines.replay import replay
from k25_pipelines.storage.store import open_store
from tests.catalog.conftest import json_lines
from tests.fed_run import config_of, feed_run, k25, new_lake, planned, rows_of

WHY = {"reason": "asked by its author", "author": "the test"}
PICTURE = ("grounding", 7)
PICTURE_ID = "grounding:7"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A lake with a run of ten steps, saved after four and ten, and a second that starts from its first checkpoint."""
    folder = tmp_path_factory.mktemp("lake")
    lake = new_lake(folder)
    plan = planned(lake)
    feed_run(lake, config_of(plan), "first", folder, save=(4, 10))
    config = config_of(planned(lake, seed=6, name="other"), steps=9, stage="projector")
    feed_run(lake, config, "second", folder, until=3, save=(3,))
    key = "k25/checkpoints/second/00000003/record.json"
    record = json.loads(lake.get(key))
    lake.put(key, json.dumps({**record, "parent": "k25/checkpoints/first/00000004"}).encode())
    return folder, plan


@pytest.fixture
def lake(trained, tmp_path, monkeypatch):
    """A copy of it, whose manifests still name the raw data of the first."""
    shutil.copytree(trained[0] / "k25", tmp_path / "lake" / "k25")
    monkeypatch.setenv("K25_LAKE", str(tmp_path / "lake"))
    return open_store(str(tmp_path / "lake"))


@pytest.fixture
def plan(trained):
    return trained[1]


def samples(rows):
    return [(row["dataset"], row["line"]) for row in rows]


def register_copy(lake, trained, name, objects):
    for key, data in objects.items():
        lake.put(f"raw/{name}/{key}", data)
    entry = {"uri": f"{lake.url}/raw/{name}", "licence": "CC0-1.0", "source": "somebody else"}
    kind = "jsonl" if any(key.endswith(".jsonl") for key in objects) else "images"
    register(lake, Registration(name=name, kind=kind, **entry))


def picture_bytes(trained):
    return (trained[0] / "raw" / "grounding" / "0007.png").read_bytes()


def test_a_receipt_names_the_steps_runs_stages_and_checkpoints_that_trace_finds(lake, plan):
    traced = trace_sample(lake, dataset="grounding", line=7)
    receipt = governance.forget(lake, [PICTURE_ID], **WHY)
    places = [(row["run"], row["plan"], row["step"]) for row in traced["runs"]]
    assert receipt["num_steps"] == len({place[1:] for place in places}) > 1
    assert {(run["run"], run["num_steps"]) for run in receipt["runs"]} == {
        (name, len({step for run, _, step in places if run == name})) for name in {place[0] for place in places}
    }
    through = {}
    for row in traced["checkpoints"]:
        through.setdefault(row["checkpoint"], []).append(row["through"])
    assert {row["checkpoint"]: row["through"] for row in receipt["checkpoints"]} == through
    assert receipt["stages"] == sorted({row["stage"] for row in traced["runs"]})
    assert governance.read_receipts(lake, receipt["takedown"][:6]) == [receipt]


def test_a_dry_run_tells_the_same_and_changes_nothing(lake):
    before = tombstones(lake).digest
    told = governance.preview(lake, [PICTURE_ID]).facts
    assert (tombstones(lake).digest, list(lake.list(TAKEDOWNS)), list(lake.list("k25/blocked/"))) == (before, [], [])
    receipt = governance.forget(lake, [PICTURE_ID], **WHY)
    assert {name: receipt[name] for name in ("samples", "runs", "checkpoints", "num_steps")} == {
        name: told[name] for name in ("samples", "runs", "checkpoints", "num_steps")
    }


def test_the_next_segment_leaves_it_out_and_keeps_the_order_of_all_others(lake, plan):
    kept = extend_plan(lake, plan, 30)
    whole = samples(rows_of(lake, kept, range(12, 30)))
    for info in list(lake.list(f"k25/plans/{plan}/")):
        if any(f"/{first:012}" in info.key for first in range(12, 40)):
            lake.delete(info.key)
    index = json.loads(lake.get(f"k25/plans/{plan}/index.json"))
    told = {**index, "segments": [each for each in index["segments"] if each[0] < 12]}
    lake.put(f"k25/plans/{plan}/index.json", json.dumps(told).encode())
    before = rows_of(lake, plan, range(12))
    governance.forget(lake, [PICTURE_ID, "captions/000005"], **WHY)
    extend_plan(lake, plan, 30)
    after = samples(rows_of(lake, plan, range(12, 30)))
    gone = {PICTURE, ("captions", 5)}
    assert rows_of(lake, plan, range(12)) == before
    assert (set(after) & gone, bool(gone & set(whole))) == (set(), True)
    ours = [sample for sample in whole if sample not in gone]
    assert sorted(map(ours.index, set(after) & set(ours))) == sorted(
        {ours.index(each) for each in after if each in ours}
    )
    for name in ("wiki", "captions", "grounding"):
        first, second = ([s for s in found if s[0] == name] for found in (ours, after))
        shared = min(len(first), len(second)) * 2 // 3
        assert sorted(set(first[:shared]) - set(second)) == []


def test_loaders_leave_its_span_empty_and_past_runs_are_still_verified(lake, plan, capsys):
    step = next(step for step in range(10) if PICTURE in samples(open_plan(lake, plan).rows(step).to_pylist()))
    governance.forget(lake, [PICTURE_ID], **WHY)
    with PlanLoader(plan, lake, threads=1) as loader:
        masked = [p.masked for p in loader.batch(step).provenance if (p.dataset, p.line) == PICTURE]
    assert set(masked) == {"withheld"}
    [again] = replay(lake, "first", range(step, step + 1), threads=1)
    assert (again.agrees, [str(each) for each in again.withheld]) == (True, [PICTURE_ID])
    assert k25("trace", PICTURE_ID) == 0
    assert "forgotten " in capsys.readouterr().out


def test_exact_copies_anywhere_in_the_lake_go_with_it(lake, trained):
    register_copy(lake, trained, "mirror", {"a/same.png": picture_bytes(trained)})
    index_dataset(lake, "mirror")
    receipt = governance.forget(lake, [PICTURE_ID], **WHY)
    assert sorted(each["sample"] for each in receipt["samples"]) == [PICTURE_ID, "mirror:0"]
    alone = governance.preview(lake, ["grounding:8"], copies=False).facts
    assert [each["sample"] for each in alone["samples"]] == ["grounding:8"]


def test_what_was_taken_down_is_quarantined_when_it_comes_back(lake, trained):
    receipt = governance.forget(lake, [PICTURE_ID, "wiki:3"], **WHY)
    other = (trained[0] / "raw" / "grounding" / "0008.png").read_bytes()
    register_copy(lake, trained, "again", {"back.png": picture_bytes(trained), "other.png": other})
    words = next(r for r in _wiki(trained) if r["line"] == 3)["text"]
    register_copy(lake, trained, "texts", {"0.jsonl": json_lines({"text": words}, {"text": words + " and more"})})
    for name in ("again", "texts"):
        manifest = governance.index_dataset(lake, name)
        reason = f"taken down: {receipt['takedown']}"
        assert [manifest.line(line).quarantine for line in range(2)] == [reason, ""]


def _wiki(trained):
    table = pq.read_table(trained[0] / "raw" / "wiki" / "part-0.parquet").to_pylist()
    return [{"line": line, "text": row["text"]} for line, row in enumerate(table)]


def test_an_indexer_without_a_screen_refuses_new_lines(lake, trained):
    governance.forget(lake, [PICTURE_ID], **WHY)
    register_copy(lake, trained, "again", {"back.png": picture_bytes(trained)})
    with pytest.raises(DatasetError, match="nothing looks for them"):
        index_dataset(lake, "again")


def test_an_image_that_was_compressed_again_is_found_and_kept_out_by_its_look(lake, trained, tmp_path, capsys):
    pixels = cv2.imread(str(trained[0] / "raw" / "grounding" / "0007.png"))
    smaller = cv2.imencode(".jpg", cv2.resize(pixels, None, fx=0.8, fy=0.8), [cv2.IMWRITE_JPEG_QUALITY, 80])[
        1
    ].tobytes()
    (tmp_path / "theirs.jpg").write_bytes(smaller)
    words = ("forget", "--image", tmp_path / "theirs.jpg", "--near", 6, "--reason", "asked")
    assert k25(*words) == 2  # it is shown first
    assert k25(*words, "--seen", capsys.readouterr().err.partition("--seen ")[2][:8]) == 0
    assert PICTURE in tombstones(lake)
    register_copy(lake, trained, "again", {"back.jpg": smaller})
    assert governance.index_dataset(lake, "again").line(0).quarantine.startswith("taken down: ")


def test_datasets_that_were_made_from_what_holds_it_are_named_also_by_way_of_others(lake, trained):
    for name, parents in (("answers", ["second/00000003"]), ("best", ["answers"]), ("apart", ["code"])):
        register_copy(lake, trained, name, {"0.jsonl": json_lines({"text": "words"})})
        state_about(lake, name, {"derived_from": tuple(parents)}, author="the test")
    receipt = governance.forget(lake, [PICTURE_ID], **WHY)
    assert receipt["derived_datasets"] == [
        {"dataset": "answers", "derived_from": ["second/00000003"]},
        {"dataset": "best", "derived_from": ["answers"]},
    ]


def test_a_takedown_that_was_killed_is_finished_by_the_same_words_and_by_any_other(lake, monkeypatch):
    def killed(_lake):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("k25_pipelines.governance.forgetting.enforce", killed)
        with pytest.raises(KeyboardInterrupt):
            governance.forget(lake, [PICTURE_ID], **WHY)
    assert len(tombstones(lake)) == 0
    governance.forget(lake, ["grounding:8"], **WHY)
    assert sorted(tombstones(lake)) == [("grounding", 7), ("grounding", 8)]
    first, second = (governance.forget(lake, [PICTURE_ID], **WHY) for _ in range(2))
    assert first == second
    assert len(governance.takedown_names(lake)) == 2


def test_two_takedowns_at_the_same_time_are_both_in_force(lake, monkeypatch):
    put, at_once = put_tombstones, []

    def interrupted(store, words):
        if not at_once:
            at_once.append(True)
            governance.forget(lake, ["grounding:8"], **WHY)
        return put(store, words)  # what the first one knew, over the list of the second

    monkeypatch.setattr("k25_pipelines.governance.takedown.put_tombstones", interrupted)
    governance.forget(lake, [PICTURE_ID], **WHY)
    assert sorted(tombstones(lake)) == [("grounding", 7), ("grounding", 8)]


def test_a_run_that_went_on_after_a_takedown_is_told_apart_from_what_it_saw_before(lake, plan, trained, tmp_path):
    step = [s for s in range(12) if PICTURE in samples(open_plan(lake, plan).rows(s).to_pylist())]
    config = config_of(plan, stage="vit")
    feed_run(lake, config, "third", tmp_path, until=step[1], save=(step[1],))
    governance.forget(lake, [PICTURE_ID], **WHY)
    feed_run(lake, config, "third", tmp_path, until=10)
    told = governance.exposure(lake, {"grounding": np.array([7])}, withheld=tombstones(lake)).steps.to_pylist()
    seen = {row["step"]: row["masked"] for row in told if row["run"] == "third"}
    assert seen == {s: None if s < step[1] else "withheld" for s in step if s < 10}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["grounding:99"], "has lines 0 to 19"),
        (["grounding/nothing.png"], "no key"),
        (["phash:12"], "no perceptual hash"),
        (["nowhere:1"], "no indexed dataset"),
        (["words"], "names no sample"),
    ],
)
def test_what_names_nothing_is_an_error_with_the_way_out(lake, words, told, capsys):
    with pytest.raises(LineageError, match=told):
        governance.forget(lake, words, **WHY)
    assert k25("forget", *words, "--reason", "r") == 2
    assert told in capsys.readouterr().err


def test_a_receipt_that_was_changed_is_refused(lake):
    receipt = governance.forget(lake, [PICTURE_ID], **WHY)
    key = f"{TAKEDOWNS}{receipt['takedown']}/receipts/{receipt['digest']}.json"
    lake.put(key, json.dumps({**receipt, "checkpoints": []}).encode())
    with pytest.raises(LineageError, match="is not the receipt it says it is"):
        governance.read_receipts(lake, receipt["takedown"])


def test_the_command_asks_for_a_reason_and_lists_what_was_done(lake, capsys):
    assert k25("forget", PICTURE_ID) == 2
    assert "--reason" in capsys.readouterr().err
    assert k25("forget", PICTURE_ID, "--reason", "asked", "--author", "A", "--json") == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (k25("forget", "--list", "--json"), json.loads(capsys.readouterr().out)[0]["id"]) == (0, receipt["takedown"])


def test_an_open_loader_learns_of_it_where_the_next_segment_begins(lake, plan):
    opened = open_plan(lake, plan)
    wanted = next(row for row in rows_of(lake, plan, range(3, 6)) if row["dataset"] == "captions")
    name = (wanted["dataset"], wanted["line"])
    told = []
    with PlanLoader(opened, lake) as follows, PlanLoader(opened, lake, withheld=[]) as is_told:
        follows.batch(0)
        is_told.batch(0)
        governance.forget(lake, [f"{name[0]}:{name[1]}"], copies=False, **WHY)
        for loader in (follows, is_told):
            batches = [loader.batch(step) for step in range(1, 6)]
            seen = [sample for batch in batches for sample in batch.provenance if (sample.dataset, sample.line) == name]
            told.append(
                {sample.masked for sample in seen if (sample.pack, sample.slot) == (wanted["pack"], wanted["slot"])}
            )
    assert "withheld" in told[0]
    assert told[1] == {None}
