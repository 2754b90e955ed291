"""What a recipe's allow-lists let in: named terms alone, and every sample of a source or none."""

import numpy as np
import pytest

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.admission import check_sources
from k25_pipelines.plan.recipe import parse_recipe, recipe_dict
from k25_pipelines.plan.source import SourceTable

RECIPE = {"name": "r", "seed": 1, "pack_tokens": 64, "packs_per_step": 1, "steps": 1, "sources": {"a": {"weight": 1}}}


def admitted(said, origins, **fields):
    table = SourceTable(name="a", text_tokens=np.full(4, 9), chunk_lines=1, licences=said, origins=origins)
    check_sources(parse_recipe({**RECIPE, **fields}), ["a"], {"a": table})


def test_samples_of_allowed_terms_are_let_in():
    assert admitted({"MIT": 4}, {"us": 4}) is None
    terms = {"licences": ["MIT", "CC0-1.0"], "sources_allowed": ["us"]}
    assert admitted({"MIT": 3, "CC0-1.0": 1}, {"us": 4}, **terms) is None
    with pytest.raises(RecipeError, match=r"1 of CC0-1\.0"):
        admitted({"MIT": 3, "CC0-1.0": 1}, {"us": 4}, licences=["MIT"])


@pytest.mark.parametrize(
    ("said", "origins", "fields", "told"),
    [
        ({"MIT": 3, "CC-BY-NC-4.0": 1}, {"us": 4}, {"licences": ["MIT"]}, "1 of CC-BY-NC-4.0; allowed are MIT"),
        ({"MIT": 4}, {"us": 3, "them": 1}, {"sources_allowed": ["us"]}, "1 of them; allowed are us"),
        ({"MIT": 4}, {"us": 4}, {"licences": []}, "4 of MIT; allowed are none"),
        ({"": 1, "MIT": 3}, {"us": 4}, {}, "1 of no licence; allowed are all that name their licence"),
        ({"NOASSERTION": 4}, {"us": 4}, {}, "4 of NOASSERTION"),
        ({"MIT": 4}, {"Unknown": 4}, {}, "4 of Unknown; allowed are all that name their source"),
    ],
)
def test_one_sample_of_other_terms_keeps_its_source_out(said, origins, fields, told):
    with pytest.raises(RecipeError, match=told):
        admitted(said, origins, **fields)


def test_a_recipe_may_name_the_word_that_says_nothing():
    with pytest.raises(RecipeError, match="4 of NOASSERTION"):
        admitted({"NOASSERTION": 4}, {"us": 4})
    assert admitted({"NOASSERTION": 4}, {"us": 4}, licences=["NOASSERTION"]) is None


def test_a_recipe_without_the_list_of_sources_keeps_the_name_it_had():
    assert "sources_allowed" not in recipe_dict(parse_recipe(RECIPE))
    named = parse_recipe({**RECIPE, "sources_allowed": ["us"]})
    assert parse_recipe(recipe_dict(named)) == named
