import json

import numpy as np
import pytest

from k25_pipelines.catalog.registry import index_dataset, load_manifest
from k25_pipelines.errors import PlanError, RecipeError
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import diff_plans, extend_plan, fork_plan, make_plan, open_plan, tombstones
from k25_pipelines.planning.exclusions import tombstones_digest
from tests.sample.small_lake import KINDS, new_lake
from tests.test_planning import AUGMENT, RECIPE, recipe

WHY = {"reason": "loss spike", "author": "a test"}


@pytest.fixture(scope="module")
def indexed():
    return new_lake()


@pytest.fixture
def lake(indexed):
    """The indexed lake without any plan or tombstone."""
    for prefix in ("k25/plans/", "k25/tombstones/", "k25/exclusions/"):
        for info in list(indexed.list(prefix)):
            indexed.delete(info.key)
    return indexed


@pytest.fixture
def parent(lake):
    return make_plan(lake, recipe(steps=12), segment_steps=5)


def rows_of(lake, plan, first=0, end=None):
    opened = open_plan(lake, plan)
    return [
        row for step in range(first, opened.num_steps if end is None else end) for row in opened.rows(step).to_pylist()
    ]


def samples(rows):
    return {(row["dataset"], row["line"]) for row in rows}


def forget(lake, *words):
    name = tombstones_digest(words)
    lake.put_new(f"k25/tombstones/{name}.json", json.dumps(sorted(words)).encode())
    lake.put("k25/tombstones/current.json", json.dumps({"digest": name}).encode())


def changed(**sources):
    return recipe(steps=12, sources={**RECIPE["sources"], **sources})


@pytest.mark.parametrize("step", [0, 3, 5, 12])
def test_a_fork_shares_every_step_before_and_differs_after(lake, parent, step):
    new = changed(code={"weight": 9})
    fork = fork_plan(lake, parent, at_step=step, recipe=new, steps=14 if step == 12 else None, **WHY)
    assert rows_of(lake, fork, 0, step) == rows_of(lake, parent, 0, step)
    assert open_plan(lake, fork).rows(step).num_rows
    if step < 12:
        assert open_plan(lake, fork).num_steps == 12
        assert rows_of(lake, fork, step) != rows_of(lake, parent, step)
    shared = [info for info in open_plan(lake, parent).segments if info.end_step <= step]
    assert list(open_plan(lake, fork).segments[: len(shared)]) == shared
    assert open_plan(lake, parent).num_steps == 12


def test_batches_before_a_fork_are_those_of_its_parent_to_the_byte(lake, parent):
    fork = fork_plan(lake, parent, at_step=3, without=["wiki"], **WHY)
    digests = []
    for plan in (parent, fork):
        with PlanLoader(plan, lake, threads=2) as loader:
            digests.append([loader.pack_digests(step) for step in range(4)])
    assert digests[0][:3] == digests[1][:3]
    assert digests[0][3] != digests[1][3]


def test_the_same_fork_is_the_same_plan_and_keeps_its_first_reason(lake, parent):
    fork = fork_plan(lake, parent, at_step=3, without=["code:1", "wiki:2"], **WHY)
    before = {info.key: lake.get(info.key) for info in lake.list("k25/")}
    again = fork_plan(lake, parent, at_step=3, without=["wiki:2", "code:1"], reason="another", author="someone")
    assert again == fork
    assert {info.key: lake.get(info.key) for info in lake.list("k25/")} == before
    told = open_plan(lake, fork).parent
    assert told is not None
    assert {name: told[name] for name in ("parent", "step", "without", "reason", "author")} == {
        "parent": parent, "step": 3, "without": ["code:1", "wiki:2"], **WHY,
    }  # fmt: skip
    assert open_plan(lake, fork).header(4)["fork"] == told
    assert open_plan(lake, fork).header(2)["fork"] is None


@pytest.mark.parametrize(
    "fields",
    [{"at_step": 4}, {"without": ["code:2"]}, {"recipe": changed(wiki={"weight": 5})}, {"recipe": recipe(name="new")}],
)
def test_step_exclusions_and_recipe_bear_the_identity_of_a_fork(lake, parent, fields):
    base = {"at_step": 3, "without": ["code:1"], **WHY}
    assert fork_plan(lake, parent, **base) != fork_plan(lake, parent, **{**base, **fields})


def test_what_is_left_out_never_comes_again_and_what_stays_keeps_its_order(lake, parent):
    plan = open_plan(lake, parent)
    bad = samples(plan.rows(4).filter(plan.rows(4)["pack"].to_numpy() == 2).to_pylist())
    keys = load_manifest(lake, "captions").table["key"].to_pylist()
    without = ["step=4/pack=2", "wiki:3", f"captions/{keys[0]}"]
    fork = fork_plan(lake, parent, at_step=4, without=without, **WHY)
    late = rows_of(lake, fork, 4)
    left_out = bad | {("wiki", 3), ("captions", 0)}
    assert samples(late) & left_out == set()
    assert samples(rows_of(lake, parent, 4)) & left_out
    assert len(samples(late)) > 10
    told = open_plan(lake, fork).parent
    assert told is not None
    assert sum(count for count, _ in told["excluded"].values()) == len(left_out)


@pytest.mark.parametrize("without", [["wiki"], ["source=made here", "step=1"], ["licence=CC0-1.0"]])
def test_a_source_of_which_nothing_is_left_leaves_or_is_refused(lake, parent, without):
    if without == ["wiki"]:
        fork = fork_plan(lake, parent, at_step=3, without=without, **WHY)
        assert "wiki" not in {name for name, _ in samples(rows_of(lake, fork, 3))}
        assert "wiki" not in open_plan(lake, fork).recipe.sources
        assert open_plan(lake, fork).datasets["wiki"] == open_plan(lake, parent).datasets["wiki"]
        return
    with pytest.raises(RecipeError, match="without captions, code, grounding, wiki no source is left"):
        fork_plan(lake, parent, at_step=3, without=without, **WHY)


def test_a_fork_of_a_fork_keeps_the_exclusions_of_both(lake, parent):
    first = fork_plan(lake, parent, at_step=3, without=["wiki:3"], **WHY)
    second = fork_plan(lake, first, at_step=6, without=["code:1"], steps=20, **WHY)
    assert rows_of(lake, second, 0, 6) == rows_of(lake, first, 0, 6)
    assert ("wiki", 3) not in samples(rows_of(lake, second, 3))
    assert ("code", 1) not in samples(rows_of(lake, second, 6))
    assert second not in (first, parent)
    early = fork_plan(lake, second, at_step=2, recipe=changed(wiki={"weight": 1}), **WHY)
    assert rows_of(lake, early, 0, 2) == rows_of(lake, parent, 0, 2)
    assert samples(rows_of(lake, early, 2)) & {("wiki", 3), ("code", 1)} == set()


def test_a_fork_is_extended_as_if_it_had_been_planned_at_once(lake, parent):
    fork = fork_plan(lake, parent, at_step=3, without=["code:1"], steps=9, **WHY)
    assert extend_plan(lake, fork, 21) == fork
    extended = rows_of(lake, fork)
    for info in list(lake.list(f"k25/plans/{fork}/")):
        lake.delete(info.key)
    assert fork_plan(lake, parent, at_step=3, without=["code:1"], steps=21, **WHY) == fork
    assert rows_of(lake, fork) == extended
    assert ("code", 1) not in samples(rows_of(lake, fork, 3))


def test_ratio_batch_size_and_sources_change_exactly_at_the_step(lake, parent):
    sources = {name: RECIPE["sources"][name] for name in ("captions", "grounding")}
    new = recipe(
        steps=12, packs_per_step=8, vision_share=0.4, sources={**sources, "notes": {"weight": 1}, "wiki": {"weight": 1}}
    )
    fork = fork_plan(lake, parent, at_step=6, recipe=new, **WHY)
    opened = open_plan(lake, fork)
    packs = [len(set(opened.rows(step)["pack"].to_pylist())) for step in range(12)]
    assert packs == [4] * 6 + [8] * 6
    assert {name for name, _ in samples(rows_of(lake, fork, 0, 6))} == set(RECIPE["sources"])
    late = rows_of(lake, fork, 6)
    assert {row["dataset"] for row in late} <= {"captions", "grounding", "notes", "wiki"}
    assert "notes" in {row["dataset"] for row in late}
    share = sum(row["vision_tokens"] for row in late) / sum(row["num_tokens"] for row in late)
    assert abs(share - 0.4) < 0.06
    back = fork_plan(lake, fork, at_step=9, recipe=changed(), **WHY)
    seen = [(row["line"], row["epoch"]) for row in rows_of(lake, back) if row["dataset"] == "code"]
    starts = [row["token_start"] for row in rows_of(lake, back) if row["dataset"] == "code"]
    assert len(set(zip(seen, starts, strict=True))) == len(seen)


def test_a_new_version_of_a_dataset_joins_at_its_next_epoch(lake):
    lake = new_lake()
    parent = make_plan(lake, recipe(steps=12), segment_steps=5)
    old = open_plan(lake, parent).datasets["code"]
    lake.put("raw/code/1.jsonl", b'{"content": "print(1)\\nprint(2)", "path": "x.py"}\n' * 3)
    newest = index_dataset(lake, "code").digest
    kept = fork_plan(lake, parent, at_step=4, without=["wiki:1"], **WHY)
    assert open_plan(lake, kept).datasets["code"] == old
    fork = fork_plan(lake, parent, at_step=4, datasets={"code": newest}, steps=40, **WHY)
    assert open_plan(lake, fork).datasets["code"] == newest
    before = [row["epoch"] for row in rows_of(lake, fork, 0, 4) if row["dataset"] == "code"]
    code = [row for row in rows_of(lake, fork) if row["dataset"] == "code"]
    assert {row["line"] for row in code if row["line"] >= 9} == {9, 10, 11}
    assert min(row["epoch"] for row in code if row["line"] >= 9) > max(before)
    assert len({(row["line"], row["epoch"], row["token_start"]) for row in code}) == len(code)
    with pytest.raises(RecipeError, match="is older than the plan's"):
        fork_plan(lake, fork, at_step=8, datasets={"code": old}, **WHY)
    with PlanLoader(fork, lake, threads=2) as loader:
        assert [place.masked for step in (0, 30) for place in loader.batch(step).provenance if place.masked] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 4}, "seed is 4, a fork keeps the plan's 3"),
        ({"pack_tokens": 1024}, "pack_tokens is 1024, a fork keeps"),
        ({"max_image_tokens": 32}, "max_image_tokens is 32"),
        ({"packs_per_step": 8, "lanes": 2}, "lanes is 2, a fork keeps the plan's 1"),
        ({"max_images_per_pack": 2}, "max_images_per_pack is 2, below the plan's none"),
        ({"sources": {**RECIPE["sources"], "captions": {"weight": 2}}}, "sources.captions.augment differs"),
    ],
)
def test_what_a_plan_keeps_for_life_is_refused_with_the_way_out(lake, parent, fields, message):
    before = [info.key for info in lake.list("k25/plans/")]
    with pytest.raises(RecipeError, match=message) as failed:
        fork_plan(lake, parent, at_step=3, recipe=recipe(**fields), **WHY)
    assert "make a new plan" in str(failed.value)
    assert [info.key for info in lake.list("k25/plans/")] == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "differs in nothing"),
        ({"without": ["wiki:1"], "at_step": 13}, "no fork begins at step 13; take one from 0 to 12"),
        ({"without": ["wiki:1"], "reason": " "}, "give a reason and an author"),
        ({"without": ["wikis"]}, "not a selector, or of no source"),
        ({"without": ["wiki:99"]}, "wiki has lines 0 to 23"),
        ({"without": ["wiki/no such key"]}, "no sample of"),
        ({"without": ["step=3/pack"]}, "write step=N or step=N/pack=M"),
        ({"without": ["licence=MIT"]}, "no sample of"),
        ({"datasets": {"notes": "0" * 32}}, "dataset notes is no source of the recipe"),
    ],
)
def test_forks_that_cannot_be_are_refused_and_leave_nothing(lake, parent, fields, message):
    before = [info.key for info in lake.list("k25/")]
    with pytest.raises(PlanError, match=message):
        fork_plan(lake, parent, **{"at_step": 3, **WHY, **fields})
    assert [info.key for info in lake.list("k25/")] == before


@pytest.mark.parametrize("puts", range(0, 12, 2))
def test_a_fork_stopped_at_any_write_is_simply_made_again(lake, parent, puts, monkeypatch):
    made = fork_plan(lake, parent, at_step=7, without=["wiki:3"], **WHY)
    expected = {info.key: lake.get(info.key) for info in lake.list("k25/")}
    for info in [*lake.list(f"k25/plans/{made}/"), *lake.list("k25/exclusions/")]:
        lake.delete(info.key)
    left = [puts]

    def killed_at_last(write):
        def put(_, key, data):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            write(key, data)

        return put

    with monkeypatch.context() as patch:
        for name in ("put", "put_new"):
            patch.setattr(type(lake), name, killed_at_last(getattr(lake, name)))
        with pytest.raises(KeyboardInterrupt):
            fork_plan(lake, parent, at_step=7, without=["wiki:3"], **WHY)
    assert fork_plan(lake, parent, at_step=7, without=["wiki:3"], **WHY) == made
    assert {info.key: lake.get(info.key) for info in lake.list("k25/")} == expected


def test_a_forgotten_sample_is_in_no_step_that_is_planned_later(lake, parent):
    rows = rows_of(lake, parent)
    forget(lake, "wiki:3", "captions:0")
    assert extend_plan(lake, parent, 40) == parent
    assert rows_of(lake, parent, 0, 12) == rows
    gone = {("wiki", 3), ("captions", 0)}
    assert samples(rows_of(lake, parent, 12)) & gone == set()
    opened, listed = open_plan(lake, parent), tombstones(lake)
    assert (opened.header(0)["tombstones"], opened.header(20)["tombstones"]) == (tombstones_digest([]), listed.digest)
    assert (("wiki", 3) in listed, ("wiki", 4) in listed, list(listed)) == (True, False, sorted(gone))
    fresh = make_plan(lake, recipe(steps=12))
    assert fresh != parent
    assert samples(rows_of(lake, fresh)) & gone == set()
    fork = fork_plan(lake, parent, at_step=5, without=["code:1"], **WHY)
    assert samples(rows_of(lake, fork, 5)) & (gone | {("code", 1)}) == set()
    forget(lake, "wiki:3", "captions:0", "code:2")
    extend_plan(lake, parent, 60)
    assert ("code", 2) not in samples(rows_of(lake, parent, 40))
    assert ("code", 2) in samples(rows_of(lake, parent, 12, 40))


def test_tombstones_may_take_effect_at_the_very_step_of_a_change(lake):
    changes = [{"from_step": 6, "sources": {"notes": {"weight": 2}}, "packs_per_step": 8}]
    changed = recipe(steps=6, changes=changes)
    plan = make_plan(lake, changed)
    forget(lake, "wiki:3")
    assert extend_plan(lake, plan, 9) == plan
    assert extend_plan(lake, plan, 12) == plan
    late = rows_of(lake, plan, 6)
    assert "notes" in {row["dataset"] for row in late}
    assert ("wiki", 3) not in samples(late)
    assert {row["pack"] for row in late} == set(range(8))


def test_tombstones_that_are_missing_or_overwritten_are_named(lake, parent):
    assert len(tombstones(lake)) == 0
    forget(lake, "wiki:3")
    key = f"k25/tombstones/{tombstones_digest(['wiki:3'])}.json"
    lake.put(key, b'["wiki:4"]')
    with pytest.raises(PlanError, match="is not the list of tombstones it is named for"):
        make_plan(lake, recipe())
    lake.delete(key)
    with pytest.raises(PlanError, match="no list of tombstones"):
        extend_plan(lake, parent, 40)


def test_differences_of_two_plans_are_told_from_their_first_step_on(lake, parent):
    new = changed(code={"weight": 9})
    fork = fork_plan(lake, parent, at_step=7, recipe=new, without=["wiki:3"], **WHY)
    told = diff_plans(lake, parent, fork)
    assert (told["first_differing_step"], told["compared_steps"]) == (7, [7, 12])
    assert told["recipe"] == {"sources.code.weight": [1, 9]}
    assert (told["datasets"], told["tombstones"]) == ({}, {})
    assert told["fork"][0] is None
    assert told["fork"][1]["reason"] == "loss spike"
    a, b = rows_of(lake, parent, 7), rows_of(lake, fork, 7)
    assert told["only_in"] == [len(samples(a) - samples(b)), len(samples(b) - samples(a))]
    assert told["tokens_of_source"]["wiki"] == [
        sum(row["num_tokens"] for row in rows if row["dataset"] == "wiki") for rows in (a, b)
    ]
    assert diff_plans(lake, parent, parent)["first_differing_step"] is None
    json.dumps(told)


def test_every_kind_of_dataset_can_be_forked(lake):
    sources = {name: {"weight": 1, "augment": AUGMENT} for name in KINDS}
    parent = make_plan(lake, recipe(sources=sources, pack_tokens=1024, steps=5, vision_share=0.3))
    fork = fork_plan(lake, parent, at_step=2, without=["captions:0", "clips:1", "long_documents"], steps=4, **WHY)
    with PlanLoader(fork, lake, threads=2) as loader:
        masked = [place.masked for batch in loader for place in batch.provenance]
    assert masked == [None] * len(masked)
    assert np.sum([open_plan(lake, fork).rows(step).num_rows for step in range(4)]) == len(masked)


def test_budgets_of_bad_samples_bear_no_identity_and_are_kept(lake):
    plain = make_plan(lake, recipe())
    sources = {**RECIPE["sources"], "wiki": {"weight": 3, "max_bad_samples": 2}}
    assert make_plan(lake, recipe(sources=sources)) == plain
    opened = open_plan(lake, plain)
    assert {name: source.max_bad_samples for name, source in opened.recipe.sources.items()} == {
        "captions": None, "grounding": None, "wiki": 2, "code": None,
    }  # fmt: skip
    assert parse_recipe({**RECIPE, "sources": sources}).sources["wiki"].max_bad_samples == 2


def test_plan_fork_and_extension_are_the_same_on_a_real_s3_server(s3_environment, lake, parent):
    remote = new_lake(s3_environment["K25_LAKE"])
    plan = make_plan(remote, recipe(steps=12), segment_steps=5)
    forks = [fork_plan(store, parent, at_step=7, without=["wiki:3"], **WHY) for store in (remote, lake)]
    for store in (remote, lake):
        extend_plan(store, forks[0], 15)
    opened = [open_plan(store, forks[0]) for store in (remote, lake)]
    assert (plan, forks[0]) == (parent, forks[1])
    assert opened[0].segments == opened[1].segments
    assert [opened[0].rows(step).to_pylist() for step in (0, 6, 7, 14)] == [
        opened[1].rows(step).to_pylist() for step in (0, 6, 7, 14)
    ]
