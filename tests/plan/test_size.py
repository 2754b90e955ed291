import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.size import profile, resized_size, sampled_frames, vision_tokens

KIMI = profile("kimi_k25")


def published(width, height, limit):
    """The published rule, a medium at a time: limit in patches."""
    scale = min(1.0, math.sqrt(limit / (max(1, width // 14) * max(1, height // 14))))
    scale = min(scale, 512 * 14 / width, 512 * 14 / height)
    return min(max(1, int(width * scale)), 7168), min(max(1, int(height * scale)), 7168)


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), tokens=st.integers(16, 4096))
def test_sizes_are_those_of_the_published_processor(width, height, tokens):
    found = resized_size(np.array([width]), np.array([height]), tokens, KIMI)
    assert (int(found[0][0]), int(found[1][0])) == published(width, height, 4 * tokens)


@pytest.mark.parametrize(
    ("size", "tokens", "grid"),
    [
        ((28, 28), 1, (1, 2, 2)),
        ((29, 28), 2, (1, 2, 4)),
        ((1, 1), 1, (1, 2, 2)),
        ((640, 480), 18 * 23, (1, 36, 46)),
        ((1920, 1080), 39 * 69, (1, 78, 138)),
    ],
)
def test_small_images_are_padded_to_whole_tokens_and_never_scaled_up(size, tokens, grid):
    assert vision_tokens(*size) == (tokens, grid)


def test_a_budget_holds_but_for_the_padding():
    tokens, (t, h, w) = vision_tokens(4000, 3000, max_tokens=1024)
    assert (t, tokens) == (1, h * w // 4)
    assert 1024 * 0.9 < tokens < 1024 * 1.1


def test_four_frames_share_a_volume():
    assert [vision_tokens(56, 28, frames)[0] for frames in (1, 4, 5, 9)] == [2, 2, 4, 6]
    assert vision_tokens(56, 28, 9)[1] == (3, 2, 4)


def test_two_frames_a_second_are_sampled():
    frames, fps = np.array([132, 250, 10, 1, 3]), np.array([25.0, 25.0, 1.0, 0.0, 30.0])
    assert sampled_frames(frames, fps, KIMI).tolist() == [11, 20, 10, 1, 1]


def test_senseless_sizes_and_profiles_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        vision_tokens(0, 10)
    with pytest.raises(RecipeError, match="kimi_k25"):
        profile("kimi")
