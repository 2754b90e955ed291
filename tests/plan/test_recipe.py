import pytest
import yaml

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.plan.recipe import Source, bad_sample_budgets, parse_recipe, recipe_at, recipe_dict

TEXT = """
name: joint
seed: 7
profile: kimi_k25
tokenizer: default
pack_tokens: 4096
packs_per_step: 8
lanes: 8
pack_window: 1024
steps: 200
blend: tokens
vision_share: 0.10
max_image_tokens: 1024
licences: [CC-BY-SA-4.0, MIT]
sources:
  captions: {weight: 3, max_epochs: 4, augment: [resize, crop, flip, colour]}
  wiki:     {weight: 7}
changes:
  - {from_step: 100, sources: {wiki: {weight: 9}, code: {weight: 1}}, packs_per_step: 16, reason: "more text"}
  - {from_step: 150, sources: {code: {weight: 0}}}
"""


def recipe(**fields):
    return parse_recipe({**yaml.safe_load(TEXT), **fields})


def test_the_recipe_of_the_manual_is_read_and_written_back():
    assert recipe().sources["captions"] == Source(weight=3, max_epochs=4, augment=("resize", "crop", "flip", "colour"))
    assert parse_recipe(recipe_dict(recipe())) == recipe()
    assert "steps" not in recipe_dict(recipe(), steps=False)


def test_a_change_of_the_batch_size_alone_is_written_and_read_back():
    changed = recipe(changes=[{"from_step": 9, "packs_per_step": 16}, {"from_step": 12, "vision_share": 0.2}])
    assert parse_recipe(recipe_dict(changed)) == changed
    assert recipe_at(changed, 9).packs_per_step == 16


def test_changes_hold_from_their_step_on():
    assert {n: s.weight for n, s in recipe_at(recipe(), 99).sources.items()} == {"captions": 3, "wiki": 7}
    changed = recipe_at(recipe(), 100)
    assert {n: s.weight for n, s in changed.sources.items()} == {"captions": 3, "wiki": 9, "code": 1}
    assert (changed.packs_per_step, changed.vision_share) == (16, 0.1)
    assert "code" not in recipe_at(recipe(), 150).sources


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stepz": 3}, "recipe: key 'stepz' is unknown; did you mean 'steps'"),
        ({"steps": 0}, "recipe: steps is 0; expected a whole number of at least 1"),
        ({"steps": True}, "steps is True"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number"),
        ({"pack_tokens": 4096.0}, "pack_tokens is 4096.0"),
        ({"vision_share": 1}, "vision_share is 1; expected a number between 0 and 1"),
        ({"vision_share": 0.0}, "vision_share is 0.0"),
        ({"blend": "words"}, "blend is 'words'; expected tokens or samples"),
        ({"blend": "samples"}, "vision_share is a ratio of tokens"),
        ({"profile": "kimi"}, "profile 'kimi' is unknown; known are kimi_k25"),
        ({"lanes": 3}, "packs_per_step 8 is no multiple of lanes 3"),
        ({"lanes": 2048}, "lanes is 2048; at most 1024"),
        ({"licences": "MIT"}, "licences is 'MIT'; expected a list of names"),
        ({"sources": {}}, "sources is {}"),
        ({"sources": {"wiki": {}}}, "sources.wiki.weight is missing"),
        ({"sources": {"wiki": {"weight": 0}}}, "sources.wiki.weight is 0"),
        ({"sources": {"wiki": {"weight": 0.5}}}, "sources.wiki.weight is 0.5; expected a whole number"),
        ({"sources": {"wiki": {"weigth": 1}}}, "key 'weigth' is unknown; did you mean 'weight'"),
        ({"sources": {"wiki": {"weight": 1, "max_epochs": 0}}}, "max_epochs is 0"),
        ({"sources": {"wiki": {"weight": 1, "augment": ["crops"]}}}, "'crops' is unknown; did you mean 'crop'"),
        ({"sources": {"wiki": {"weight": 1, "max_bad_samples": -1}}}, "max_bad_samples is -1; expected a whole number"),
        (
            {"sources": {"wiki": {"weight": 1, "augment": ["zoom"]}}},
            f"known are {', '.join(AUGMENTATIONS)}".capitalize(),
        ),
        ({"changes": [{"sources": {}}]}, "from_step is missing"),
        ({"changes": [{"from_step": 1, "step": 2}]}, "changes[0]: key 'step' is unknown"),
        ({"changes": [{"from_step": 5}, {"from_step": 5}]}, "in the order of their steps"),
        ({"changes": [{"from_step": 5, "packs_per_step": 12}]}, "packs_per_step 12 is no multiple of lanes 8"),
        ({"changes": [{"from_step": 5, "sources": {"wiki": {"augment": ["crop"]}}}]}, "augment differs"),
        ({"changes": [{"from_step": 5, "sources": {n: {"weight": 0} for n in ("wiki", "captions")}}]}, "no source is"),
        ({"name": None}, "name is missing"),
        ({"vision_share": 0.3333333}, "vision_share is 0.3333333; round it to 6 decimals"),
        ({"pack_tokens": 2**31}, "expected a whole number of at least 1 and at most 2147483647"),
        (
            {
                "blend": "samples",
                "vision_share": None,
                "changes": [],
                "sources": {"a": {"weight": 9**7}, "b": {"weight": 2}},
            },
            "recipe: weights [4782969, 2] have a period above 4194304; take rounder numbers",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(fields, message):
    with pytest.raises(RecipeError) as failed:
        recipe(**fields)
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_that_is_drawn_may_be_asked_for(name):
    assert recipe(sources={"wiki": {"weight": 1, "augment": [name]}}).sources["wiki"].augment == (name,)


def test_a_budget_of_bad_samples_bears_no_identity():
    plain, change = {"wiki": {"weight": 1}}, [{"from_step": 3, "sources": {"code": {"weight": 1}}}]
    budget = {"wiki": {"weight": 1, "max_bad_samples": 0}}
    changed = [{"from_step": 3, "sources": {"code": {"weight": 1, "max_bad_samples": 5}}}]
    a, b = recipe(sources=plain, changes=change), recipe(sources=budget, changes=changed)
    assert recipe_dict(a, steps=False) == recipe_dict(b, steps=False)
    assert parse_recipe(recipe_dict(b)) == b
    assert (bad_sample_budgets(a), bad_sample_budgets(b)) == ({}, {"wiki": 0, "code": 5})


def test_a_recipe_is_a_mapping():
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        parse_recipe(["name"])
