"""Configs are strict, and the recipes are complete."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from k25_pipelines.plan.recipe import parse_recipe
from trainers.config import Run, TrainConfig, check_config, load_run, parse, plain, run_name
from trainers.recipes import PARENTS, PROBE_STEPS, SCALES, STAGES, stage_config, stage_recipe

ROOT = Path(__file__).resolve().parents[2]
CONFIG = stage_config("vit", "toy", plan="p")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_recipe_and_a_config_that_survives_json(stage, scale):
    recipe = parse_recipe(stage_recipe(stage, scale))
    config = stage_config(stage, scale, plan="p", initial=dict.fromkeys(PARENTS[stage], "k"))
    check_config(config)
    assert parse(TrainConfig, json.loads(json.dumps(plain(config)))) == config
    assert recipe.steps == config.steps + PROBE_STEPS
    assert recipe.pack_tokens == config.model.language.context * config.model.language.yarn_factor


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path):
    path = tmp_path / "run.json"
    config = {**plain(CONFIG), "model": {**plain(CONFIG)["model"], "visoin": None}}
    path.write_text(json.dumps({"config": config, "store": "s", "run": "r", "work": "w"}))
    with pytest.raises(ValueError, match=r"unknown key config\.model\.visoin: did you mean vision"):
        load_run(path)


@pytest.mark.parametrize(("field", "value"), [("steps", "3"), ("steps", True), ("seed", 1.5), ("stage", None)])
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        parse(TrainConfig, {**plain(CONFIG), field: value})


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="Run lacks config, run, work"):
        parse(Run, {"store": "s"})


def test_a_config_names_its_run():
    assert run_name(CONFIG) == run_name(stage_config("vit", "toy", plan="p"))
    assert run_name(CONFIG) != run_name(replace(CONFIG, seed=8))


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="no module 'vision'"):
        check_config(replace(CONFIG, model=replace(CONFIG.model, vision=None)))
    with pytest.raises(ValueError, match=r"model toy: language\.heads is 0; it must be at least 1"):
        check_config(replace(CONFIG, model=replace(CONFIG.model, language=replace(CONFIG.model.language, heads=0))))
    with pytest.raises(ValueError, match="starts \\['language', 'vision'\\]"):
        stage_config("projector", "toy", plan="p", initial={"vision": "k"})


def test_recipes_load_without_torch():
    probe = "import sys, trainers.recipes, trainers.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("data", "said"), [(None, "No such file or directory"), (b"{", "not JSON"), (b"\xff", "not JSON")]
)
def test_a_run_file_that_cannot_be_read_is_named(tmp_path, data, said):
    if data is not None:
        (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(ValueError, match=rf"run file .*run\.json: {said}.*; give the path of a run file"):
        load_run(tmp_path / "run.json")
