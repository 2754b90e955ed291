import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
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
    extended = objects(lake)
    assert {key: extended[key] for key in before} == before
    assert open_plan(lake, plan).num_steps == 12
    assert extend_plan(lake, plan, 15) == plan
    rows = all_rows(lake, plan)
    for info in list(lake.list("k25/plans/")):
        lake.delete(info.key)
    assert all_rows(lake, make_plan(lake, recipe(steps=15))) == rows


@pytest.mark.parametrize("puts", range(1, 8))
def test_a_planner_stopped_at_any_write_is_simply_started_again(lake, puts, monkeypatch):
    whole = make_plan(lake, recipe(), segment_steps=3)
    expected = objects(lake)
    for key in expected:
        lake.delete(key)
    write, left = lake.put_new, [puts]

    def put_new(key, data):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(type(lake), "put_new", lambda _, key, data: put_new(key, data))
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
    while not (written := [info.key for info in folder.list("k25/plans/") if "/index/" in info.key]):
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
    header = first.replace(".parquet", ".json")
    lake.put(header, lake.get(header).replace(b'"num_steps":3', b'"num_steps":4'))
    with pytest.raises(PlanError, match="is not the header it is named for"):
        open_plan(lake, plan).rows(0)


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
