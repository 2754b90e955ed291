import json

import pytest

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import RecipeError
from k25_pipelines.planning import Rates, make_plan, open_plan, quote, quoting
from k25_pipelines.sample.read import extents_of_chunk
from tests.sample.small_lake import new_lake
from tests.test_planning import RECIPE, recipe


@pytest.fixture(scope="module")
def lake():
    return new_lake()


@pytest.fixture(scope="module")
def told(lake):
    return quote(lake, recipe(), gpus=2)


def test_a_quote_of_a_short_plan_is_what_the_plan_then_is(lake, told):
    keys = [info.key for info in lake.list("k25/plans/")]
    assert keys == []
    facts = open_plan(lake, make_plan(lake, recipe())).summary()
    assert told["is_exact"]
    assert (told["tokens"], told["fill"], told["vision_share"]) == (
        facts["tokens"], facts["fill"], pytest.approx(facts["vision_share"]),
    )  # fmt: skip
    assert {name: source["tokens"] for name, source in told["sources"].items()} == facts["tokens_of_source"]
    assert {name: source["epochs"] for name, source in told["sources"].items()} == facts["epochs"]
    assert (told["heaviest_patches"], told["heaviest_step"]) == (facts["most_patches"], facts["most_patches_step"])
    json.dumps(told)


def test_money_follows_from_requests_bytes_hours_and_the_stated_prices(lake, told):
    assert told["hours"] == pytest.approx(6 * 4 * 512 / (2 * 2000) / 3600)
    assert told["usd"]["gpus"] == pytest.approx(told["hours"] * 2 * 2.5)
    assert told["usd"]["requests"] == pytest.approx(told["gets"] / 1000 * 0.0004)
    other = quote(lake, recipe(), gpus=2, rates=Rates(usd_per_gpu_hour=5.0, usd_per_gb=1.0))
    assert other["usd"]["gpus"] == pytest.approx(2 * told["usd"]["gpus"])
    assert other["usd"]["transfer"] == pytest.approx(told["bytes"] / 1e9)
    assert other["usd"]["total"] == pytest.approx(sum(other["usd"][name] for name in ("requests", "transfer", "gpus")))
    assert other["rates"]["usd_per_gb"] == 1.0


def test_requests_are_those_of_the_chunks_that_are_visited(lake, told):
    manifest = load_manifest(lake, "code")
    chunks = [extents_of_chunk(manifest, chunk) for chunk in range(manifest.num_chunks)]
    visits = -(-told["sources"]["code"]["samples"] // manifest.chunk_lines)
    assert told["sources"]["code"]["gets"] == round(visits * sum(map(len, chunks)) / len(chunks))
    assert told["gets"] == sum(source["gets"] for source in told["sources"].values())


def test_memory_of_the_heaviest_step_is_shared_by_the_gpus(lake, told):
    alone = quote(lake, recipe(), gpus=1)
    assert alone["heaviest_bytes_per_gpu"] == told["heaviest_patches"] * 3 * 14 * 14 * 4
    assert told["heaviest_bytes_per_gpu"] == -(-told["heaviest_patches"] // 2) * 3 * 14 * 14 * 4
    assert told["images_per_second"] == pytest.approx(2 * alone["images_per_second"])


def test_phases_of_a_recipe_are_quoted_each_for_itself(lake):
    changes = [{"from_step": 4, "packs_per_step": 8, "vision_share": 0.4, "sources": {"code": {"weight": 0}}}]
    changed = quote(lake, recipe(changes=changes))
    assert not changed["is_exact"]
    assert changed["packs"] == 4 * 4 + 2 * 8
    assert 0.2 < changed["vision_share"] < 0.4


def test_a_long_plan_is_projected_from_a_stretch_and_says_what_runs_dry(lake, monkeypatch):
    monkeypatch.setattr(quoting, "STRETCH_PACKS", 256)
    sources = {**RECIPE["sources"], "code": {"weight": 1, "max_epochs": 50}}
    plain = quote(lake, recipe(steps=4000))
    assert not plain["is_exact"]
    assert plain["sources"]["wiki"]["epochs"] > 100
    assert plain["problems"] == []
    dry = quote(lake, recipe(steps=4000, sources=sources))["problems"]
    assert len(dry) == 1
    assert dry[0].startswith("code reaches its max_epochs 50 at about step ")


def test_a_source_that_is_seen_to_run_dry_is_told_with_its_step(lake):
    sources = {**RECIPE["sources"], "code": {"weight": 1, "max_epochs": 2}}
    [problem] = quote(lake, recipe(steps=40, sources=sources))["problems"]
    opened = open_plan(lake, make_plan(lake, recipe(steps=40, sources=sources)))
    last = max(step for step in range(40) if "code" in opened.rows(step)["dataset"].to_pylist())
    assert problem.startswith(f"code reaches its max_epochs 2 at about step {last + 1} of 40: ")


def test_a_group_that_runs_dry_at_once_is_named(lake):
    sources = {name: {**source, "max_epochs": 1} for name, source in RECIPE["sources"].items()}
    with pytest.raises(RecipeError, match=r"ran dry at their max_epochs: .*, at step \d+"):
        quote(lake, recipe(steps=4000, sources=sources))
