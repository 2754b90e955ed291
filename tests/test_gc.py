"""What gc takes and what it spares, on a lake with forks, runs and checkpoints; cut short anywhere, too."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from k25_pipelines.catalog import registry
from k25_pipelines.gc import Policy, find, sweep
from k25_pipelines.lineage import checkpoint_records
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import fork_plan, make_plan, open_plan
from k25_pipelines.retention import set_state
from k25_pipelines.runs import start_run, take_stretch
from k25_pipelines.storage.store import Store, open_store

ALL = Policy(older_than_days=0, unused_plans=True, keep_checkpoints=1, data=True)
WHO = {"reason": "for the test", "author": "the test"}
RECIPE = {
    "name": "words",
    "seed": 7,
    "pack_tokens": 64,
    "packs_per_step": 1,
    "steps": 6,
    "blend": "samples",
    "sources": {"notes": {"weight": 1}},
}


def jsonl(first: int, count: int) -> bytes:
    return "\n".join(json.dumps({"text": f"some words of number {n}"}) for n in range(first, first + count)).encode()


def dataset(lake: Store, name: str) -> None:
    lake.put(f"raw/{name}/0.jsonl", jsonl(0, 40))
    registry.register(
        lake,
        registry.Registration(name=name, uri=f"{lake.url}/raw/{name}", kind="jsonl", licence="MIT", source="made here"),
    )
    registry.index_dataset(lake, name)


def checkpoint(lake: Store, run: str, step: int, *, plan: str | None, parent: str | None = None) -> str:
    key = f"k25/checkpoints/{run}/{step:08d}"
    for name in ("weights.npz", "engine/state.pt", "metrics.jsonl"):
        lake.put(f"{key}/{name}", f"{run} {step}".encode())
    told = {"run": run, "stage": "vit", "step": step, "plan": plan, "step_range": [0, step], "digest": f"{step:032x}"}
    lake.put(f"{key}/record.json", json.dumps({**told, "parent": parent, "segments": []}).encode())
    return key


def build(folder: Path) -> dict[str, str]:
    """A lake in which some of everything is used, and some is not; the names of what is asked about."""
    lake = open_store(str(folder))
    dataset(lake, "notes")
    dataset(lake, "old")
    trained = make_plan(lake, parse_recipe(RECIPE), segment_steps=2)
    forked = fork_plan(lake, trained, at_step=3, without=["notes:1"], steps=6, **WHO)
    unused = make_plan(lake, parse_recipe({**RECIPE, "seed": 8}), segment_steps=2)
    start_run(lake, "run", forked, steps=6)
    take_stretch(lake, "run", 0)
    older = checkpoint(lake, "run", 1, plan=forked)
    parent = checkpoint(lake, "run", 2, plan=forked)
    newest = checkpoint(lake, "run", 3, plan=forked)
    checkpoint(lake, "next", 1, plan=forked, parent=parent)
    lake.put("k25/checkpoints/run/00000004/weights.npz", b"half an upload")
    lake.put("k25/datasets/notes/manifests/" + "0" * 32 + ".parquet", b"of an indexer that died")
    lake.put(f"k25/plans/{trained}/segments/000000000000-{'0' * 32}.json", b"of a planner that was overtaken")
    lake.put("k25/plans/" + "1" * 32 + "/segments/000000000000-x.json", b"left of a plan")
    lake.put("k25/datasets/notes/scans/" + "0" * 32 + ".arrow", b"lines of some objects")
    lake.put("k25/unknown/thing", b"somebody's")
    old = registry.load_manifest(lake, "old").digest
    for state in ("archived", "deleted"):
        set_state(lake, "old", old, state, **WHO)
    return {"trained": trained, "forked": forked, "unused": unused, "older": older, "parent": parent, "newest": newest}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("gc") / "lake"
    return folder, build(folder)


@pytest.fixture
def lake(made) -> Store:
    """The lake as it was built, where its own URLs say that it is."""
    folder, _ = made
    kept = folder.with_name("kept")
    if not kept.exists():
        shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    return open_store(str(folder))


@pytest.fixture
def names(made) -> dict[str, str]:
    return made[1]


def keys(lake: Store) -> set[str]:
    return {info.key for info in lake.list()}


def taken(found) -> dict[str, set[str]]:
    reasons: dict[str, set[str]] = {}
    for each in found.all_objects:
        reasons.setdefault(each.why, set()).add(each.key)
    return reasons


def test_without_any_wish_only_what_nothing_names_may_go(lake, names):
    found = taken(find(lake, Policy(older_than_days=0)))
    assert found == {
        "lines found while indexing, which the manifest holds now": {f"k25/datasets/notes/scans/{'0' * 32}.arrow"},
        "of a version that was never published": {f"k25/datasets/notes/manifests/{'0' * 32}.parquet"},
        "of a planner that another overtook": {f"k25/plans/{names['trained']}/segments/000000000000-{'0' * 32}.json"},
        "left of a plan that is gone": {f"k25/plans/{'1' * 32}/segments/000000000000-x.json"},
        "of a checkpoint that was never published": {"k25/checkpoints/run/00000004/weights.npz"},
    }


def test_looking_changes_nothing(lake):
    before = keys(lake)
    find(lake, ALL)
    assert keys(lake) == before


def test_with_every_wish_what_runs_and_checkpoints_lead_to_stays(lake, names):
    found = taken(sweep(lake, ALL, author="the test"))
    assert found["of a plan that no run, checkpoint or output names"] >= {f"k25/plans/{names['unused']}/plan.json"}
    assert found["weights of an older checkpoint that nothing names"] == {
        f"{names['older']}/weights.npz",
        f"{names['older']}/engine/state.pt",
    }
    assert found["data of a deleted version"] == {"0.jsonl"}
    assert "raw/old/0.jsonl" not in keys(lake)
    assert_whole(lake, names)
    assert find(lake, ALL).all_objects == []


def assert_whole(lake: Store, names: dict[str, str]) -> None:
    """All that is used can be read: plans step by step, a run, records, weights, data."""
    for plan in (names["trained"], names["forked"]):
        opened = open_plan(lake, plan)
        assert [opened.rows(step).num_rows > 0 for step in range(opened.num_steps)] == [True] * 6
        assert opened.summary()
    assert take_stretch(lake, "run", 2).plan == names["forked"]
    assert [record["key"] for record in checkpoint_records(lake)] == [
        "k25/checkpoints/next/00000001",
        names["older"],
        names["parent"],
        names["newest"],
    ]
    there = keys(lake)
    assert {f"{names[name]}/weights.npz" for name in ("parent", "newest")} <= there
    assert {"raw/notes/0.jsonl", "k25/unknown/thing", f"{names['older']}/metrics.jsonl"} <= there
    assert registry.load_manifest(lake, "notes").num_lines == 40
    assert registry.load_manifest(lake, "old").num_lines == 40  # later versions go on from its lines


class Dying:
    """A lake whose process dies after some deletions."""

    def __init__(self, lake: Store, deletions: int):
        self._lake, self._left, self.url = lake, deletions, lake.url

    def __getattr__(self, name: str):
        return getattr(self._lake, name)

    def delete(self, key: str) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self._lake.delete(key)


@pytest.mark.parametrize("deletions", [0, 1, 2, 3, 5, 8, 13])
def test_killed_after_any_deletion_the_lake_is_whole_and_the_next_run_ends_where_one_run_would(
    lake, names, deletions, monkeypatch
):
    monkeypatch.setattr("k25_pipelines.gc.sweeping.THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        sweep(Dying(lake, deletions), ALL, author="the test")
    assert_whole(lake, names)
    assert names["unused"] not in plans_that_open(lake) or deletions == 0
    sweep(lake, ALL, author="the test")
    assert_whole(lake, names)
    assert find(lake, ALL).all_objects == []
    assert not any(names["unused"] in key for key in keys(lake) if not key.startswith("k25/gc/"))


def plans_that_open(lake: Store) -> list[str]:
    return [info.key.split("/")[2] for info in lake.list("k25/plans/") if info.key.endswith("/plan.json")]


def test_the_young_is_spared_and_all_that_it_is_part_of(lake, names):
    week = Policy(older_than_days=7, unused_plans=True, keep_checkpoints=1)
    assert find(lake, week).all_objects == []
    later = datetime.now(UTC) + timedelta(days=8)
    touched = Path(lake.url, f"k25/plans/{names['unused']}/index.json")
    os.utime(touched, (later.timestamp(), later.timestamp()))
    found = find(lake, week, now=later).all_objects
    assert found
    assert not any(names["unused"] in each.key for each in found)


def test_an_evaluated_checkpoint_and_one_that_an_output_names_keep_their_weights(lake, names):
    lake.put("k25/evaluations/" + f"{1:032x}" + "/captions.json", b"{}")
    assert "weights of an older checkpoint that nothing names" not in taken(find(lake, ALL))
    lake.delete("k25/evaluations/" + f"{1:032x}" + "/captions.json")
    lake.put("k25/outputs/demo/main/x.json", json.dumps({"checkpoint": names["older"]}).encode())
    assert "weights of an older checkpoint that nothing names" not in taken(find(lake, ALL))
    lake.put("k25/outputs/demo/main/x.json", json.dumps({"plan": names["unused"]}).encode())
    assert "of a plan that no run, checkpoint or output names" not in taken(find(lake, ALL))


def test_data_of_a_deleted_version_stays_while_a_plan_reads_it_or_another_dataset_names_it(lake):
    def indexed(name: str, at: str) -> None:
        uri = f"{lake.url}/raw/{at}"
        told = registry.Registration(name=name, uri=uri, kind="jsonl", licence="MIT", source="made here")
        lake.put(f"raw/{at}/0.jsonl", jsonl(0, 40))
        registry.register(lake, told)
        registry.index_dataset(lake, name)

    indexed("planned", "planned")
    indexed("shared", "notes")
    plan = make_plan(lake, parse_recipe({**RECIPE, "sources": {"planned": {"weight": 1}}}))
    start_run(lake, "reads", plan)
    for name in ("planned", "shared"):
        for state in ("archived", "deleted"):
            set_state(lake, name, registry.load_manifest(lake, name).digest, state, **WHO)
    assert list(find(lake, ALL).data) == [f"{lake.url}/raw/old"]


def test_a_receipt_says_what_went_and_why(lake):
    found = sweep(lake, ALL, author="the test")
    [receipt] = [json.loads(lake.get(info.key)) for info in lake.list("k25/gc/")]
    assert receipt["author"] == "the test"
    assert [key for key, _, _ in receipt["objects"]] == [each.key for each in found.objects]


def test_uploads_that_were_begun_and_never_ended_go_when_they_are_old(s3_environment, tmp_path):
    lake = open_store(s3_environment["K25_LAKE"])
    lake.put("k25/x", b"something")
    begin_upload(s3_environment, lake)
    assert find(lake, Policy(older_than_days=1)).uploads == ()
    assert len(sweep(lake, Policy(older_than_days=0), author="the test").uploads) == 1
    assert find(lake, Policy(older_than_days=0)).uploads == ()


def begin_upload(environment: dict[str, str], lake: Store) -> None:
    import boto3

    bucket, _, prefix = lake.url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"])
    client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/raw/begun.tar")


def test_the_command_says_what_may_go_and_deletes_it_when_told(lake, k25):
    before = keys(lake)
    told = k25("gc", "--older-than", "0", K25_LAKE=lake.url)
    assert told.returncode == 0, told.stderr
    assert "may go; nothing is deleted yet" in told.stdout
    assert keys(lake) == before
    done = json.loads(k25("gc", "--older-than", "0", "--delete", "--author", "x", "--json", K25_LAKE=lake.url).stdout)
    assert before - keys(lake) == set(done["keys"])
