"""What `loader.py` promises: a step is what the plan says, on any rank, with any threads, before and after a resume."""

import contextlib
import dataclasses
import itertools
import json
import time

import numpy as np
import pytest

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import BadSampleBudgetError, ObjectChangedError, PlanError, StoreError
from k25_pipelines.loader import PlanLoader, step_digest
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.sample import token_cache
from k25_pipelines.sample.batch import pack_digest
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage import memory
from tests.sample.small_lake import PACK_TOKENS, hand_plan, new_lake, raw_objects

ROW = ["dataset", "line", "epoch", "num_tokens"]


@pytest.fixture(scope="module")
def lake():
    return new_lake()


@pytest.fixture(scope="module")
def plan(lake):
    return hand_plan(lake)


def digests(plan, lake, steps, **how):
    with PlanLoader(plan, lake, **how) as loader:
        return [line for step in steps for line in (loader.batch(step), loader.pack_digests(step))[1]]


def test_a_batch_holds_the_planned_samples_at_their_places(plan, lake):
    tokenizer = load_tokenizer("default")
    with PlanLoader(plan, lake, threads=2) as loader:
        for step, batch in enumerate(loader):
            rows = plan.rows(step).to_pylist()
            assert [[getattr(where, name) for name in ROW] for where in batch.provenance] == [
                [row[name] for name in ROW] for row in rows
            ]
            assert [where.masked for where in batch.provenance] == [None] * len(rows)
            is_pad = batch.input_ids == tokenizer.media_pad
            assert is_pad.sum() == batch.media_slots[:, 2].sum() == sum(row["vision_tokens"] for row in rows)
            for row, start, length in batch.media_slots.tolist():
                assert is_pad[row, start : start + length].all()
            assert len(batch.patches) == batch.grid_thw.prod(axis=1).sum() == sum(row["patches"] for row in rows)
            assert (batch.grid_thw[:, 1] * batch.grid_thw[:, 2] // 4).tolist() == batch.media_slots[:, 2].tolist()


def test_positions_restart_and_the_first_token_of_a_sample_is_not_predicted(plan, lake):
    with PlanLoader(plan, lake, threads=2) as loader:
        batch = loader.batch(1)
    flat = {name: getattr(batch, name).ravel() for name in ("input_ids", "labels", "position_ids")}
    ends = batch.cu_seqlens.tolist()
    assert (ends[0], ends[-1], batch.cu_seqlens.dtype) == (0, batch.input_ids.size, np.int32)
    assert set(range(0, batch.input_ids.size + 1, PACK_TOKENS)) <= set(ends)
    for begin, end in itertools.pairwise(ends):
        assert flat["position_ids"][begin:end].tolist() == list(range(end - begin))
        assert flat["labels"][begin] == -100
    predicted = flat["labels"] != -100
    assert (flat["labels"][predicted] == flat["input_ids"][predicted]).all()
    special = load_tokenizer("default").special
    never = [special[name] for name in ("pad", "media_begin", "media_content", "media_pad", "media_end")]
    assert not np.isin(flat["labels"], never).any()
    assert np.abs(batch.patches).max() <= 1


@pytest.mark.parametrize(("num_ranks", "threads"), [(1, 16), (2, 1), (3, 4), (4, 1), (4, 16), (7, 4), (8, 1)])
def test_digests_depend_neither_on_ranks_nor_on_threads(plan, lake, num_ranks, threads, tmp_path):
    steps = range(3)
    expected = digests(plan, lake, steps, threads=1)
    found = [
        line
        for rank in range(num_ranks)
        for line in digests(
            plan,
            lake,
            steps,
            rank=rank,
            num_ranks=num_ranks,
            threads=threads,
            cache=tmp_path if threads == 16 else None,
        )
    ]
    assert sorted(found) == expected
    assert len({hexadecimal for _, _, hexadecimal in expected}) == len(expected) == 12


@pytest.mark.parametrize("ranks_per_node", [2, 4])
def test_ranks_that_share_a_machine_deal_its_packs_out_by_cost_and_no_digest_changes(plan, lake, ranks_per_node):
    nodes = {"num_ranks": 4, "ranks_per_node": ranks_per_node, "threads": 2}
    found = [digests(plan, lake, range(3), rank=rank, **nodes) for rank in range(4)]
    assert sorted(line for part in found for line in part) == digests(plan, lake, range(3), threads=1)
    assert all(part == sorted(part) for part in found)


def test_a_rank_without_packs_gets_an_empty_batch_of_the_same_types(plan, lake):
    with PlanLoader(plan, lake, rank=0, num_ranks=6, threads=1) as loader:
        empty = loader.batch(0)
    with PlanLoader(plan, lake, threads=1) as loader:
        full = loader.batch(0)
    assert empty.input_ids.shape == empty.labels.shape == empty.position_ids.shape == (0, PACK_TOKENS)
    assert (empty.patches.shape, empty.grid_thw.shape, empty.media_slots.shape) == ((0, 3, 14, 14), (0, 3), (0, 3))
    assert (empty.cu_seqlens.tolist(), empty.provenance, empty.digests) == ([0], [], [])
    for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "patches", "grid_thw", "media_slots"):
        assert getattr(empty, name).dtype == getattr(full, name).dtype


def test_the_digest_of_a_pack_covers_pixels_and_every_other_field(plan, lake):
    with PlanLoader(plan, lake, rank=0, num_ranks=4, threads=1) as loader:
        batch = next(batch for batch in loader if len(batch.patches))
    assert batch.digests == [pack_digest(batch)]
    for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "patches", "grid_thw", "media_slots"):
        changed = getattr(batch, name).copy()
        changed.flat[-1] += 1
        assert pack_digest(dataclasses.replace(batch, **{name: changed})) != pack_digest(batch), name


def test_the_digest_of_a_step_hashes_its_packs_in_order(plan, lake):
    packs = [hexadecimal for _, _, hexadecimal in digests(plan, lake, [0], threads=1)]
    assert step_digest(packs) != step_digest(packs[::-1])
    assert len(step_digest(packs)) == 64


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_resumed_loader_goes_on_with_the_next_batch(plan, lake, stop):
    with PlanLoader(plan, lake, run="r", threads=2) as loader:
        whole = [batch.digests for batch in loader]
    with PlanLoader(plan, lake, run="r", threads=2) as loader:
        for _ in range(stop):
            next(iter(loader))
        state = json.loads(json.dumps(loader.state_dict()))
    with PlanLoader(plan, lake, run="r", threads=1) as resumed:
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert [batch.digests for batch in resumed] == whole[stop:]


def test_a_state_is_a_few_names_and_a_step(plan, lake):
    with PlanLoader(plan, lake, run="joint-7", threads=1) as loader:
        loader.batch(3)
        state = loader.state_dict()
    assert state == {"run": "joint-7", "plan": "f" * 32, "segment": f"{1:032x}", "step": 4}
    assert len(json.dumps(state, separators=(",", ":"))) < 200


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"plan": "e" * 32}, "state's plan is eee"),
        ({"segment": "d" * 32}, "state's segment is ddd"),
        ({"run": "other"}, "state's run is other"),
        ({"step": 10**6}, "state's step is 1000000"),
        ({"steps": 1}, "has the fields run, plan, segment, step"),
    ],
)
def test_the_state_of_another_plan_is_refused_and_the_field_named(plan, lake, change, complaint):
    with PlanLoader(plan, lake, run="r", threads=1) as loader:
        state = {**loader.state_dict(), **change}
        with pytest.raises(PlanError, match=complaint):
            loader.load_state_dict(state)


def test_a_step_beyond_the_plan_is_refused(plan, lake):
    with PlanLoader(plan, lake, threads=1) as loader, pytest.raises(PlanError, match=f"not {plan.num_steps}"):
        loader.batch(plan.num_steps)


def test_a_step_may_be_any_whole_number(plan, lake):
    with PlanLoader(plan, lake, threads=1) as loader:
        loader.batch(np.int64(2))
        assert json.loads(json.dumps(loader.state_dict()))["step"] == 3
        with pytest.raises(TypeError):
            loader.batch(1.0)


def test_a_closed_loader_says_so_and_may_be_closed_again(plan, lake):
    with PlanLoader(plan, lake, threads=1) as loader:
        loader.batch(0)
    loader.close()
    with pytest.raises(ValueError, match=f"this loader of plan {plan.id} is closed; open another"):
        loader.batch(1)


@pytest.mark.parametrize("run", ["", "..", "/run", "a//b"])
def test_a_run_that_cannot_be_written_down_is_refused_before_any_work(plan, lake, run):
    with pytest.raises(StoreError, match="is not a relative path of plain names"):
        PlanLoader(plan, lake, run=run)


def test_an_error_of_another_kind_in_a_thread_is_raised_and_the_step_can_be_asked_for_again(plan, lake, monkeypatch):
    with PlanLoader(plan, lake, run="falls", threads=4) as loader:
        with monkeypatch.context() as broken:
            broken.setattr("k25_pipelines.loader.samples.example", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                loader.batch(0)
        assert loader.batch(0).digests == [one for _, _, one in digests(plan, lake, [0], threads=1)]
    assert list(lake.list("k25/runs/falls/")) == []


def test_a_store_that_fails_now_and_then_changes_no_digest(plan, lake, monkeypatch):
    expected = digests(plan, lake, range(plan.num_steps), threads=1)
    whole, asked = memory.MemoryStore.get_range, itertools.count()

    def moody(store, *extent, **etag):
        if next(asked) % 5 == 2:
            raise StoreError("503 slow down")
        return whole(store, *extent, **etag)

    monkeypatch.setattr(memory.MemoryStore, "get_range", moody)
    found = []
    with PlanLoader(plan, lake, threads=4) as loader:
        while len(found) < len(expected):
            with contextlib.suppress(StoreError):
                found += loader.pack_digests(len(found) // 4)
    assert found == expected


def test_a_bad_sample_is_a_masked_span_that_stays_masked_after_the_object_healed():
    lake = new_lake(others={"grounding/3.png": half_broken(raw_objects()["grounding"]["3.png"])})
    plan = hand_plan(lake, augment=())
    absent = lake.get("raw/notes/b.md")
    lake.delete("raw/notes/b.md")
    with PlanLoader(plan, lake, run="r", threads=2) as loader:
        batches = list(loader)
    masked = [
        (where.dataset, where.line, where.masked) for batch in batches for where in batch.provenance if where.masked
    ]
    assert {(dataset, line) for dataset, line, _ in masked} == {("grounding", 3), ("notes", 1)}
    assert len(masked) == 4
    assert all("3.png" in why or "b.md" in why for _, _, why in masked)
    for batch in batches:
        assert len(batch.patches) == batch.grid_thw.prod(axis=1).sum()
        for where in batch.provenance:
            if where.masked:
                span = np.s_[where.pack, where.start : where.start + where.num_tokens]
                assert (batch.input_ids[span] == load_tokenizer("default").pad).all()
                assert (batch.labels[span] == -100).all()
                assert batch.position_ids[span].tolist() == list(range(where.num_tokens))
    journal = [json.loads(lake.get(info.key)) for info in lake.list("k25/runs/r/bad_samples/")]
    assert [(record["dataset"], record["line"]) for record in journal] == [("grounding", 3), ("notes", 1)]
    lake.put("raw/notes/b.md", absent)
    with PlanLoader(plan, lake, run="r", threads=2) as loader:
        assert [batch.digests for batch in loader] == [batch.digests for batch in batches]
    with PlanLoader(plan, lake, run="another", threads=2) as loader:
        assert {where.line for batch in loader for where in batch.provenance if where.masked} == {3}


def test_a_sample_that_heals_stays_masked_on_every_rank_of_the_run():
    lake = new_lake()
    plan = hand_plan(lake, augment=())
    with PlanLoader(plan, lake, withheld=(), threads=1) as loader:
        places = [(w.pack % 2, step) for step, b in enumerate(loader) for w in b.provenance if w.dataset == "notes"]
    assert {step for _, step in places} > {min(step for _, step in places)}
    healthy = {key: lake.get(key) for key in ("raw/notes/b.md", "raw/notes/a/one.txt")}
    for key in healthy:
        lake.delete(key)
    loaders = [PlanLoader(plan, lake, run="two", rank=rank, num_ranks=2, threads=1, ahead_bytes=0) for rank in range(2)]
    masked = []
    for step in range(plan.num_steps):
        for loader in loaders:
            found = loader.batch(step).provenance
            masked += [(where.dataset, where.line) for where in found if where.masked]
        if len(set(masked)) == 2:
            for key, data in healthy.items():
                lake.put(key, data)
    assert sorted(masked) == [("notes", 0), ("notes", 0), ("notes", 1), ("notes", 1)]
    for loader in loaders:
        loader.close()
    assert digests(plan, lake, range(plan.num_steps), run="two", threads=2) == sorted(
        line
        for rank in range(2)
        for line in digests(plan, lake, range(plan.num_steps), run="two", rank=rank, num_ranks=2)
    )


def test_a_run_stops_with_the_list_when_a_source_has_more_bad_samples_than_its_budget():
    lake = new_lake(others={"grounding/3.png": half_broken(raw_objects()["grounding"]["3.png"])})
    plan = hand_plan(lake, augment=())
    with PlanLoader(plan, lake, run="r", max_bad_samples={"grounding": 1}, threads=2) as loader:
        assert {(w.dataset, w.line) for batch in loader for w in batch.provenance if w.masked} == {("grounding", 3)}
    for _ in range(2):  # a resumed run stops as well
        refused = pytest.raises(BadSampleBudgetError, match="grounding has 1 bad samples, its budget is 0")
        with PlanLoader(plan, lake, run="s", max_bad_samples=0, threads=2) as loader, refused as failure:
            list(loader)
        assert "grounding:3 (" in str(failure.value)
        assert "k25/runs/s/bad_samples/" in str(failure.value)


def test_a_sample_taken_down_after_it_was_planned_is_masked_and_its_place_stays(plan, lake):
    with PlanLoader(plan, lake, threads=2, withheld={("wiki", 3)}) as loader:
        found = [(w.dataset, w.line, w.masked, w.num_tokens) for batch in loader for w in batch.provenance]
    with PlanLoader(plan, lake, threads=2) as loader:
        healthy = [(w.dataset, w.line, w.masked, w.num_tokens) for batch in loader for w in batch.provenance]
    assert found == [(d, n, "withheld" if (d, n) == ("wiki", 3) else m, t) for d, n, m, t in healthy]
    assert [masked for _, _, masked, _ in found].count("withheld") == 2


def test_digests_are_hashed_once_a_batch_and_only_when_asked_for(plan, lake, monkeypatch):
    hashed = []
    monkeypatch.setattr("k25_pipelines.sample.batch.pack_digest", lambda pack: hashed.append(1) or pack_digest(pack))
    with PlanLoader(plan, lake, threads=1) as loader:
        batch = loader.batch(0)
        assert hashed == []
        assert [one for _, _, one in loader.pack_digests(0)] == batch.digests == batch.digests
    assert len(hashed) == 4


def test_kept_token_ids_change_no_byte_and_the_texts_are_not_read(lake, plan, monkeypatch):
    expected = digests(plan, lake, range(plan.num_steps), threads=2)
    for name in plan.datasets:
        token_cache.build(lake, load_manifest(lake, name), load_tokenizer("default"), "kimi_k25")
    asked, whole = [], memory.MemoryStore.get_range
    monkeypatch.setattr(
        memory.MemoryStore,
        "get_range",
        lambda store, key, *rest, **etag: asked.append(f"{store.url}/{key}") or whole(store, key, *rest, **etag),
    )
    assert digests(plan, lake, range(plan.num_steps), threads=2, cached_tokens=True) == expected
    texts = [key for key in asked if any(f"raw/{name}/" in key for name in ("wiki", "code", "long_documents", "notes"))]
    assert texts == []
    assert any("/tokens/" in key for key in asked)


def test_what_coming_steps_read_is_fetched_while_nobody_asks_for_them(plan, lake, monkeypatch):
    asked, whole = set(), memory.MemoryStore.get_range

    def noted(store, *extent, **etag):
        asked.add((store.url, *extent))
        return whole(store, *extent, **etag)

    monkeypatch.setattr(memory.MemoryStore, "get_range", noted)
    digests(plan, lake, range(plan.num_steps), threads=2)
    everything = {extent for extent in asked if ".parquet" not in extent[1]}
    asked.clear()
    with PlanLoader(plan, lake, threads=1, ahead_bytes=0) as loader:
        loader.batch(0)
        for _ in range(1000):
            if everything <= asked:
                break
            time.sleep(0.005)
        assert everything <= asked


def test_a_step_far_on_is_reached_without_reading_the_steps_before_it(plan, lake):
    asked = []

    class Watched:
        def __getattr__(self, name):
            return getattr(plan, name)

        def rows(self, step):
            asked.append(step)
            return plan.rows(step)

    last = plan.num_steps - 1
    with PlanLoader(Watched(), lake, threads=1) as loader:
        assert loader.batch(last).digests == [d for _, _, d in digests(plan, lake, [last], threads=1)]
    assert set(asked) == {last}


def half_broken(png: bytes) -> bytes:
    """A picture whose header and end are whole, as an index looks at it, and whose pixels are not."""
    return png[:700] + bytes(len(png) - 712) + png[-12:]


@pytest.mark.parametrize("cache", [True, False])
def test_an_object_that_was_overwritten_stops_the_run_and_is_not_a_masked_sample(tmp_path, cache):
    lake = new_lake()
    plan = hand_plan(lake, augment=())
    folder = tmp_path if cache else None
    healthy = lake.get("raw/code/0.jsonl")
    expected = digests(plan, lake, range(plan.num_steps), threads=2, cache=folder)
    lake.put("raw/code/0.jsonl", healthy.replace(b"return 1", b"return 7"))
    with PlanLoader(plan, lake, run="r", threads=2) as loader, pytest.raises(ObjectChangedError) as failure:
        list(loader)
    assert str(failure.value).startswith(f"code: {lake.url}/raw/code/0.jsonl was overwritten: its etag is ")
    assert "restore it, or register the new state as a new dataset" in str(failure.value)
    assert list(lake.list("k25/runs/r/")) == []
    if cache:  # what was fetched before is still what was indexed
        assert digests(plan, lake, range(plan.num_steps), threads=2, cache=folder) == expected
    lake.put("raw/code/0.jsonl", healthy)
    assert digests(plan, lake, range(plan.num_steps), threads=2, cache=tmp_path / "new") == expected


def test_a_sample_longer_than_planned_is_bad():
    lake = new_lake()
    plan = hand_plan(lake)
    rows = plan.steps[0].to_pylist()
    rows[0]["num_tokens"] -= 1
    short = dataclasses.replace(plan, steps=[plan.steps[0].from_pylist(rows, schema=plan.steps[0].schema)])
    with PlanLoader(short, lake, threads=1) as loader:
        (batch,) = loader
    assert [bool(where.masked) for where in batch.provenance] == [True] + [False] * (len(rows) - 1)
    assert "were planned" in str(batch.provenance[0].masked)


def test_a_store_that_fails_stops_the_run_and_the_step_can_be_asked_for_again(plan, lake, monkeypatch):
    whole = memory.MemoryStore.get_range
    with PlanLoader(plan, lake, run="failing", threads=2) as loader:
        with monkeypatch.context() as broken:
            broken.setattr(memory.MemoryStore, "get_range", _refuse)
            with pytest.raises(StoreError, match="503"):
                loader.batch(0)
        assert memory.MemoryStore.get_range is whole
        batch = loader.batch(0)
    assert [where.masked for where in batch.provenance] == [None] * len(batch.provenance)
    assert list(lake.list("k25/runs/failing/")) == []


def _refuse(*_, **__):
    raise StoreError("503 slow down")


def test_a_plan_from_a_recipe_is_loaded_as_planned(lake):
    recipe = {
        "name": "small",
        "seed": 7,
        "pack_tokens": 512,
        "packs_per_step": 4,
        "steps": 4,
        "blend": "tokens",
        "max_image_tokens": 64,
        "sources": {
            "captions": {"weight": 1, "augment": ["resize", "crop", "flip", "colour", "words"]},
            "grounding": {"weight": 1, "augment": ["crop", "flip"]},
            "clips": {"weight": 1},
            "wiki": {"weight": 2},
            "long_documents": {"weight": 2},
        },
    }
    plan = open_plan(lake, make_plan(lake, parse_recipe(recipe)))
    with PlanLoader(plan.id, lake, run="small", threads=4) as loader:
        batches = list(loader)
        state = loader.state_dict()
    assert len(batches) == 4
    assert [where.masked for batch in batches for where in batch.provenance if where.masked] == []
    assert state == {"run": "small", "plan": plan.id, "segment": plan.segment_of(3).digest, "step": 4}


def test_the_first_pack_is_the_one_that_past_runs_saw(plan, lake):
    """Covers order of fields, rendering, tokens, patches and colours; pixels hold for the pinned codec versions."""
    assert digests(plan, lake, [0], threads=1)[0][2][:16] == "a06acbf89fdc80c1"
