"""The recipes say what the paper says: stretches of context, totals of the published stages, arms of the ablation."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from k25_pipelines.catalog.registry import Registration, index_dataset, register
from k25_pipelines.plan.recipe import parse_recipe, recipe_at
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.storage.store import open_store
from tests.assets import tiny_lake
from trainers.config import check_config
from trainers.model.sizes import count_parameters
from trainers.models import model_config
from trainers.recipes import (
    FUSIONS,
    MAX_EPOCHS,
    PARENTS,
    PLANNED_SCALES,
    PROBE_STEPS,
    STAGES,
    fusion_recipe,
    main,
    stage_config,
    stage_recipe,
)

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {"warmup": 15.5, "vit": 1.0, "joint": 15.0, "long_context": 0.5, "longest_context": 0.2}
"""Of the published stages [10^12]."""
IN_DRAWINGS = ("captions", "wiki")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A lake of large pictures with few words, and of texts."""
    lake = open_store(str(tmp_path_factory.mktemp("drawings")))
    lake.put("raw/captions/0.tar", tiny_lake.caption_tar(range(60), side=168))
    lines = [json.dumps({"text": f"number {number} " * (5 + number % 67)}) for number in range(200)]
    lake.put("raw/wiki/0.jsonl", "\n".join(lines).encode())
    for name, kind in (("captions", "webdataset"), ("wiki", "jsonl")):
        terms = {"licence": "CC0-1.0", "source": "drawn for tests"}
        register(lake, Registration(name=name, uri=f"{lake.url}/raw/{name}", kind=kind, annotations=None, **terms))
        index_dataset(lake, name)
    return lake


def config_of(stage: str, scale: str):
    return stage_config(stage, scale, plan="p", initial=dict.fromkeys(PARENTS[stage], "k"))


def test_published_stages_read_the_reports_tokens_in_its_contexts():
    for stage, tokens in TOKENS.items():
        recipe = parse_recipe(stage_recipe(stage, "published"))
        steps = recipe.steps - PROBE_STEPS
        assert steps * recipe.packs_per_step * recipe.pack_tokens / 1e12 == pytest.approx(tokens, rel=1e-4)
        assert recipe.packs_per_step * recipe.pack_tokens == 2**26  # the K2 report's 67 million
    contexts = {stage: stage_recipe(stage, "published")["pack_tokens"] for stage in STAGES}
    assert [contexts[stage] for stage in ("joint", "long_context", "longest_context")] == [4096, 32768, 262144]
    shares = {stage: stage_recipe(stage, "published").get("vision_share") for stage in STAGES}
    assert {stage for stage, share in shares.items() if share == 0.1} == {"joint", "long_context", "longest_context"}


def test_the_published_stages_train_the_published_models():
    for stage in STAGES:
        config = config_of(stage, "published")
        check_config(config)
        assert config.model.name == ("moonlight" if stage == "vit" else "k2_5")
        assert (config.optimizer, config.weight_decay) == ("muonclip", 0.1)
    language = config_of("longest_context", "published").model.language
    assert replace(language, yarn_factor=64.0) == language == model_config("k2_5").language
    small = count_parameters(model_config("moonlight"))
    assert 15.9e9 < small.language < 16.0e9
    assert 0.41e9 < small.vision < 0.42e9


@pytest.mark.parametrize("scale", PLANNED_SCALES)
def test_context_is_stretched_twice_and_the_last_stage_goes_on_from_the_first_stretch(scale):
    factors = [config_of(stage, scale).model.language.yarn_factor for stage in STAGES]
    assert factors[:4] == [1.0] * 4
    assert 1.0 < factors[4] < factors[5]
    assert set(PARENTS["longest_context"].values()) == {"long_context"}


@pytest.mark.parametrize("scale", ["demo", "published"])
def test_every_source_of_every_stage_has_a_maximum_of_epochs(scale):
    for stage in STAGES:
        sources = parse_recipe(stage_recipe(stage, scale)).sources
        assert {name: source.max_epochs for name, source in sources.items()} == {
            name: MAX_EPOCHS[scale][name] for name in sources
        }


def test_vision_enters_an_arm_where_its_share_makes_up_for_the_wait():
    for name, (percent, share) in FUSIONS.items():
        recipe = parse_recipe(fusion_recipe(name, steps=100, packs_per_step=4, pack_tokens=512, seed=3))
        assert (100 - percent) * share == pytest.approx(8.0)
        assert recipe_at(recipe, percent).vision_share == share
        if percent:
            assert set(recipe_at(recipe, percent - 1).sources) == {"wiki"}
        assert set(recipe_at(recipe, percent).sources) == {"wiki", "captions", "grounding", "clips"}


def test_the_arms_of_the_ablation_read_as_many_tokens_of_text_and_of_vision(drawings):
    totals = {}
    for name in FUSIONS:
        recipe = fusion_recipe(name, steps=300, packs_per_step=4, pack_tokens=512, seed=3)
        for tree in (recipe, *recipe.get("changes", ())):
            tree["sources"] = {source: told for source, told in tree["sources"].items() if source in IN_DRAWINGS}
        plan = open_plan(drawings, make_plan(drawings, parse_recipe(recipe)))
        rows = [plan.rows(step) for step in range(plan.num_steps)]
        vision = [int(np.sum(each["vision_tokens"].to_numpy())) for each in rows]
        tokens = sum(int(np.sum(each["num_tokens"].to_numpy())) for each in rows)
        assert sum(vision[: 3 * FUSIONS[name][0]]) == 0
        totals[name] = (tokens - sum(vision), sum(vision))
    for text, vision in totals.values():
        assert (text, vision) == (
            pytest.approx(totals["early"][0], rel=0.02),
            pytest.approx(totals["early"][1], rel=0.05),
        )


def test_an_arm_that_is_none_or_would_begin_between_two_steps_is_refused():
    with pytest.raises(ValueError, match="no fusion is called 'never'; there are early, mid, late"):
        fusion_recipe("never", steps=300, packs_per_step=4, pack_tokens=512, seed=3)
    with pytest.raises(ValueError, match="steps is 15; give a multiple of 10"):
        fusion_recipe("late", steps=15, packs_per_step=4, pack_tokens=512, seed=3)


def test_a_recipe_is_printed_as_plans_and_quotes_read_it(capsys):
    words = [sys.executable, "-m", "trainers.recipes", "joint", "--scale", "published"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert parse_recipe(json.loads(done.stdout)) == parse_recipe(stage_recipe("joint", "published"))
    main(["joint", "--scale", "published", "--unlimited"])
    limits = {source.max_epochs for source in parse_recipe(json.loads(capsys.readouterr().out)).sources.values()}
    assert limits == {None}
