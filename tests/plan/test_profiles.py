"""The second family of models: sizes that are rounded to whole tokens, against the published processor's own code."""

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from k25_pipelines.plan.draws import DrawRule, draw
from k25_pipelines.plan.size import patch_grid, profile, resized_size
from k25_pipelines.sample.patches import patches, patches_into, pixels_of

QWEN = profile("qwen2_vl")
SIDE = QWEN.patch * QWEN.merge


def test_sizes_are_those_of_the_published_processor():
    rng = np.random.default_rng(0)
    widths, heights = np.exp(rng.uniform(np.log(28), np.log(4000), (2, 4000))).astype(np.int64)
    keep = np.maximum(widths, heights) < 200 * np.minimum(widths, heights)
    widths, heights = widths[keep], heights[keep]
    for max_tokens in (4, 64, 256, 1280):
        ours = np.stack(resized_size(widths, heights, max_tokens, QWEN), axis=1)
        theirs = [
            smart_resize(height, width, SIDE, min_pixels=4 * SIDE**2, max_pixels=max_tokens * SIDE**2)[::-1]
            for width, height in zip(widths.tolist(), heights.tolist(), strict=True)
        ]
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_padded_even_when_a_draw_shrinks_it():
    rng = np.random.default_rng(1)
    width, height = rng.integers(30, 2000, (2, 500))
    rule = DrawRule(seed=1, dataset="pictures", augment=("resize", "crop", "turn", "rotate"))
    drawn = draw(rule, np.arange(500), np.zeros(500, int), width=width, height=height, max_tokens=256, profile=QWEN)
    assert not (drawn["out_w"] % SIDE).any()
    assert not (drawn["out_h"] % SIDE).any()
    rows, columns = patch_grid(drawn["out_w"], drawn["out_h"], QWEN)
    np.testing.assert_array_equal(rows * columns * QWEN.patch**2, drawn["out_w"] * drawn["out_h"])


def test_levels_are_normalised_by_its_own_mean_and_deviation():
    pixels = np.random.default_rng(2).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    plain, grid = patches(pixels)
    ours = np.empty_like(plain)
    assert patches_into(pixels, ours, profile=QWEN) == grid
    levels = (plain.astype(np.float64) * 0.5 + 0.5).transpose(0, 2, 3, 1)
    expected = ((levels - QWEN.mean) / QWEN.deviation).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    np.testing.assert_array_equal(pixels_of(ours, grid, profile=QWEN)[0], pixels)
