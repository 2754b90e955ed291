"""Patches kept as levels: a quarter of the bytes, the same numbers once they are normalised, the same digests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.size import PROFILES, profile
from k25_pipelines.planning import make_plan
from k25_pipelines.sample.patches import grid_of, normalised, patches, patches_into
from tests.assets import tiny_lake


@settings(deadline=None)  # the first call compiles
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    frames=st.integers(1, 4),
    name=st.sampled_from(sorted(PROFILES)),
)
def test_normalised_levels_are_the_patches_bit_for_bit(width, height, frames, name):
    pixels = np.random.default_rng(width * 97 + height).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    num_frames, rows, columns = grid_of(pixels)
    levels = np.empty((num_frames * rows * columns, 3, 14, 14), dtype=np.uint8)
    expected = np.empty(levels.shape, dtype=np.float32)
    assert patches_into(pixels, levels) == patches_into(pixels, expected, profile=profile(name))
    np.testing.assert_array_equal(normalised(levels, profile=profile(name)), expected)
    if name == "kimi_k25":
        np.testing.assert_array_equal(patches(pixels)[0], expected)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_loader_of_levels_gives_the_digests_of_one_of_normalised_patches(tmp_path, name):
    lake = tiny_lake.index_all(tiny_lake.build(tmp_path))
    sources = {"captions": {"weight": 1, "augment": ["crop", "flip"]}, "clips": {"weight": 1}, "wiki": {"weight": 1}}
    fields = {"seed": 1, "pack_tokens": 256, "packs_per_step": 4, "steps": 3, "max_image_tokens": 64, "profile": name}
    plan = make_plan(lake, parse_recipe({"name": name, **fields, "sources": sources}))
    with PlanLoader(plan, lake) as plain, PlanLoader(plan, lake, normalised=False) as levels:
        for step in range(3):
            assert levels.batch(step).patches.dtype == np.uint8
            assert levels.pack_digests(step) == plain.pack_digests(step)
            np.testing.assert_array_equal(levels.batch(step).normalised_patches, plain.batch(step).patches)
