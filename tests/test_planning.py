import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k25_pipelines.catalog.registry import index_dataset, load_manifest
from k25_pipelines.errors import DatasetError, K25Error, PlanError, RecipeError
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe, recipe_dict
from k25_pipelines.plan.segment import SCHEMA
from k25_pipelines.planning import extend_plan, make_plan, open_plan, read_recipe
from k25_pipelines.storage.store import open_store
from tests.sample.small_lake import KINDS, new_lake

ROOT = Path(__file__).resolve().parent.parent
AUGMENT = ["resize", "crop", "flip", "colour", "words"]
RECIPE = {
    "name": "small",
    "seed": 3,
    "pack_tokens": 512,
    "packs_per_step": 4,
    "pack_window": 24,
    "steps": 6,
    "max_image_tokens": 64,
    "vision_share": 0.2,
    "sources": {
        "captions": {"weight": 2, "augment": AUGMENT},
        "grounding": {"weight": 1, "augment": AUGMENT, "flip_safe": False},
        "wiki": {"weight": 3},
        "code": {"weight": 1},
    },
}


@pytest.fixture(scope="module")
def indexed():
    return new_lake()


@pytest.fixture
def lake(indexed):
    """The indexed lake without any plan."""
    for info in list(indexed.list("k25/plans/")):
        indexed.delete(info.key)
    return indexed


def recipe(**fields):
    return parse_recipe({**RECIPE, **fields})


def all_rows(lake, plan):
    opened = open_plan(lake, plan)
    tables = [opened.rows(step) for step in range(opened.num_steps)]
    return [row for table in tables for row in table.to_pylist()]


def _by_step(rows, column):
    return np.bincount(rows["step"].to_numpy(), weights=rows[column].to_numpy())


def objects(lake):
    return {info.key: lake.get(info.key) for info in lake.list("k25/plans/")}


def test_a_plan_is_opened_as_it_was_made(lake):
    plan = open_plan(lake, make_plan(lake, recipe(), segment_steps=4))
    assert recipe_dict(plan.recipe) == recipe_dict(recipe())
    assert plan.datasets == {name: load_manifest(lake, name).digest for name in RECIPE["sources"]}
    assert [(info.first_step, info.num_steps) for info in plan.segments] == [(0, 4), (4, 2)]
    assert [plan.segment_of(step).first_step for step in range(6)] == [0, 0, 0, 0, 4, 4]
    assert set(plan.rows(5)["step"].to_pylist()) == {5}
    assert set(plan.rows(5)["pack"].to_pylist()) == {0, 1, 2, 3}


def test_planning_again_writes_nothing_and_more_steps_extend_the_plan(lake):
    plan = make_plan(lake, recipe(), segment_steps=3)
    before = objects(lake)
    assert make_plan(lake, recipe(), steps=2) == make_plan(lake, recipe(), steps=6) == plan
    assert objects(lake) == before
    assert make_plan(lake, recipe(steps=12), segment_steps=3) == plan
    written_once = {key: data for key, data in before.items() if not key.endswith("/index.json")}
    extended = objects(lake)
    assert {key: extended[key] for key in written_once} == written_once
    assert open_plan(lake, plan).num_steps == 12
    assert extend_plan(lake, plan, 15) == plan
    rows = all_rows(lake, plan)
    for info in list(lake.list("k25/plans/")):
        lake.delete(info.key)
    assert all_rows(lake, make_plan(lake, recipe(steps=15))) == rows


@pytest.mark.parametrize("puts", range(11))
def test_a_planner_stopped_at_any_write_is_simply_started_again(lake, puts, monkeypatch):
    whole = make_plan(lake, recipe(), segment_steps=3)
    expected = objects(lake)
    for key in expected:
        lake.delete(key)
    left = [puts]

    def killed_at_last(write):
        def put(_, key, data):
            left[0] -= key.startswith("k25/plans/")
            if left[0] < 0:
                raise KeyboardInterrupt
            write(key, data)

        return put

    with monkeypatch.context() as patch:
        for name in ("put", "put_new"):
            patch.setattr(type(lake), name, killed_at_last(getattr(lake, name)))
        with pytest.raises(KeyboardInterrupt):
            make_plan(lake, recipe(), segment_steps=3)
    assert make_plan(lake, recipe(), segment_steps=3) == whole
    assert objects(lake) == expected


def test_a_killed_planner_leaves_a_plan_that_can_be_gone_on_with(lake, tmp_path):
    folder = open_store(str(tmp_path))
    for info in list(lake.list("k25/")):
        folder.put(info.key, lake.get(info.key))
    program = (
        "from tests.test_planning import *; "
        f"make_plan(open_store({str(tmp_path)!r}), recipe(steps=4000), segment_steps=5)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not (written := [info.key for info in folder.list("k25/plans/") if info.key.endswith("/index.json")]):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    plan = written[0].split("/")[2]
    steps = open_plan(folder, plan).num_steps + 7
    assert make_plan(folder, recipe(), steps=steps) == plan
    assert make_plan(lake, recipe(), steps=steps) == plan
    assert all_rows(folder, plan) == all_rows(lake, plan)


@pytest.mark.parametrize("augment", [[], AUGMENT])
def test_planned_counts_are_those_of_what_is_loaded_for_every_kind(lake, augment):
    sources = {name: {"weight": 1, "augment": augment} for name in KINDS}
    plan = make_plan(lake, recipe(sources=sources, pack_tokens=1024, steps=5, vision_share=0.3))
    seen = set()
    with PlanLoader(plan, lake, threads=2) as loader:
        for step, batch in enumerate(loader):
            rows = loader.plan.rows(step)
            assert [place.masked for place in batch.provenance] == [None] * len(rows)
            assert len(batch.patches) == np.sum(rows["patches"].to_numpy())
            assert len(batch.grid_thw) == np.sum(rows["media"].to_numpy())
            assert int(batch.media_slots[:, 2].sum()) == np.sum(rows["vision_tokens"].to_numpy())
            seen |= set(rows["dataset"].to_pylist())
    assert seen == set(KINDS)


def test_threads_may_share_a_plan(lake):
    plan = open_plan(lake, make_plan(lake, recipe(steps=12), segment_steps=2))
    steps = [step for turn in range(8) for step in range(turn, 12, 1 + turn % 3)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda step: plan.rows(step).to_pylist(), steps))
    assert found == [open_plan(lake, plan.id).rows(step).to_pylist() for step in steps]


def test_a_recipe_that_is_no_text_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: j\xff\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: not UTF-8 at byte 7; save it as UTF-8"):
        read_recipe(tmp_path / "recipe.yaml")


def test_the_summary_says_what_the_plan_amounts_to(lake):
    plan = open_plan(lake, make_plan(lake, recipe(), segment_steps=4))
    rows, summary = pa.Table.from_pylist(all_rows(lake, plan.id), schema=SCHEMA), plan.summary()
    tokens, vision = (rows[name].to_numpy().sum() for name in ("num_tokens", "vision_tokens"))
    assert (summary["num_steps"], summary["num_packs"]) == (6, 24)
    assert (summary["tokens"], summary["vision_tokens"]) == (tokens, vision)
    assert summary["fill"] == tokens / (24 * 512)
    assert summary["vision_share"] == vision / tokens
    assert summary["samples"] == sum(summary["samples_of_source"].values()) == sum(rows["token_start"].to_numpy() == 0)
    assert summary["epochs"]["wiki"] == summary["samples_of_source"]["wiki"] / 24
    assert plan.summary(steps=60)["projected_epochs"]["wiki"] == pytest.approx(10 * summary["epochs"]["wiki"])
    patches = _by_step(rows, "patches")
    assert (summary["most_patches"], summary["most_patches_step"]) == (patches.max(), patches.argmax())
    share = _by_step(rows, "vision_tokens") / _by_step(rows, "num_tokens")
    assert summary["vision_share_std"] == pytest.approx(np.std(share), abs=1e-5)
    json.dumps(summary)


def test_progress_is_told_segment_by_segment(lake):
    told = []
    make_plan(lake, recipe(), segment_steps=4, progress=lambda *said: told.append(said))
    assert told[-2:] == [(4, 6, "planning small"), (6, 6, "planning small")]


def test_a_new_version_of_a_dataset_is_a_new_plan_but_the_old_one_still_extends():
    lake = new_lake()
    old = make_plan(lake, recipe())
    lake.put("raw/code/1.jsonl", b'{"content": "print(1)", "path": "x.py"}\n')
    index_dataset(lake, "code")
    assert make_plan(lake, recipe()) != old
    assert extend_plan(lake, old, 8) == old


def test_a_segment_that_was_overwritten_is_refused(lake):
    plan = make_plan(lake, recipe(), segment_steps=3)
    [first, second] = [info.key for info in lake.list(f"k25/plans/{plan}/segments/") if info.key.endswith(".parquet")]
    lake.put(first, lake.get(second))
    with pytest.raises(PlanError, match="holds other rows than its name says; restore it"):
        open_plan(lake, plan).rows(0)
    lake.put(first, b"no rows at all")
    with pytest.raises(PlanError, match="holds other rows than its name says; restore it"):
        open_plan(lake, plan).rows(0)
    states = [info.key for info in lake.list(f"k25/plans/{plan}/segments/") if info.key.endswith(".state")]
    lake.put(states[1], lake.get(states[0]))
    with pytest.raises(PlanError, match="holds another state than its header says; restore it"):
        extend_plan(lake, plan, 9)
    header = first.replace(".parquet", ".json")
    lake.put(header, lake.get(header).replace(b'"num_steps":3', b'"num_steps":4'))
    with pytest.raises(PlanError, match="is not the header it is named for"):
        open_plan(lake, plan).rows(0)


def test_rows_written_by_another_parquet_writer_are_read_and_checked_all_the_same(lake):
    plan = make_plan(lake, recipe())
    rows = all_rows(lake, plan)
    [key] = [info.key for info in lake.list(f"k25/plans/{plan}/segments/") if info.key.endswith(".parquet")]
    other = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(lake.get(key))), other, compression="gzip", row_group_size=7)
    lake.put(key, other.getvalue())
    assert all_rows(lake, plan) == rows


def test_two_planners_at_once_leave_one_chain(lake):
    """The second planner goes on while the first stands between two of its writes, at every place."""
    alone = make_plan(lake, recipe(steps=12), segment_steps=3)
    expected = all_rows(lake, alone)
    for write in range(0, 16, 3):
        for info in list(lake.list("k25/plans/")):
            lake.delete(info.key)
        first = _Interrupted(lake, at_write=write, run=lambda: make_plan(lake, recipe(steps=9), segment_steps=2))
        assert make_plan(first, recipe(steps=12), segment_steps=3) == alone
        assert first.is_done
        assert open_plan(lake, alone).num_steps >= 12
        assert all_rows(lake, alone)[: len(expected)] == expected
        starts = [info.first_step for info in open_plan(lake, alone).segments]
        chain = [info.key for info in lake.list(f"k25/plans/{alone}/chain/")]
        assert [int(key[-17:-5]) for key in chain] == starts


class _Interrupted:
    """A store that lets something else happen before one of its writes below a plan."""

    def __init__(self, lake, *, at_write, run):
        self._lake, self._at, self._run, self.is_done = lake, at_write, run, False

    def __getattr__(self, name):
        return getattr(self._lake, name)

    def put(self, key, data):
        self._before(key)
        self._lake.put(key, data)

    def put_new(self, key, data):
        self._before(key)
        self._lake.put_new(key, data)

    def _before(self, key):
        self._at -= key.startswith("k25/plans/")
        if self._at < 0 and not self.is_done:
            self.is_done = True
            self._run()


def test_steps_and_plans_that_do_not_exist_are_named(lake):
    plan = make_plan(lake, recipe())
    for step in (-1, 6):
        with pytest.raises(PlanError, match=f"has steps 0 to 5, not {step}"):
            open_plan(lake, plan).rows(step)
    with pytest.raises(PlanError, match="no plan 'nothing'"):
        open_plan(lake, "nothing")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"sources": {"wikis": {"weight": 1}}, "vision_share": None}, DatasetError, "wikis"),
        ({"licences": ["MIT"]}, RecipeError, "source captions has samples of licences that are not allowed: 12 of CC0"),
        ({"tokenizer": "nothing"}, K25Error, "nothing"),
    ],
)
def test_a_recipe_that_cannot_be_planned_leaves_no_plan(lake, fields, error, message):
    with pytest.raises(error, match=message):
        make_plan(lake, recipe(**fields))
    assert objects(lake) == {}


def test_recipes_are_read_from_a_file_or_from_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(RECIPE, indent=1))
    assert read_recipe(path) == read_recipe(str(path)) == read_recipe(json.dumps(RECIPE, indent=1)) == recipe()
    with pytest.raises(RecipeError, match=r"absent.yaml: No such file"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="recipe is not YAML"):
        read_recipe("a: [1\n")
