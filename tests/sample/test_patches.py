"""What `sample/patches.py` promises: the vision tower's layout, pinned."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.plan.size import vision_tokens
from k25_pipelines.sample.patches import patches, patches_into, pixels_of


def picture(height, width):
    return (np.arange(height * width * 3).reshape(height, width, 3) * 7 % 256).astype(np.uint8)


def plain_patches(frames, patch=14, merge=2):
    """The same by numpy alone, step by step, as the reference processor normalises."""
    num_frames, height, width, _ = frames.shape
    side = patch * merge
    padded = np.pad(frames, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = padded.shape[1] // patch, padded.shape[2] // patch
    cut = padded.reshape(num_frames, rows, patch, columns, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    levels = ((np.arange(256) / 255.0).astype(np.float32) - np.float32(0.5)) * np.float32(2.0)
    return levels[cut.reshape(-1, 3, patch, patch)], (num_frames, rows, columns)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([(14, 2), (14, 1), (16, 2), (7, 4)]),
    st.integers(0, 2**32),
)
def test_every_bit_is_that_of_the_plain_calculation(shape, cut, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found, grid = patches(frames, patch=cut[0], merge=cut[1])
    expected, expected_grid = plain_patches(frames, *cut)
    assert (found.tobytes(), found.shape, grid) == (expected.tobytes(), expected.shape, expected_grid)


def test_every_level_is_normalised_as_the_reference_does():
    frames = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    assert patches(frames)[0].tobytes() == plain_patches(frames)[0].tobytes()


def test_patches_are_rows_of_the_padded_picture_in_channel_first_order():
    image = picture(30, 50)
    cut, grid = patches(image)
    assert (cut.shape, cut.dtype, grid) == ((16, 3, 14, 14), np.float32, (1, 4, 4))
    expected = (image[14:28, 28:42].astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(cut[1 * 4 + 2], expected.transpose(2, 0, 1), atol=1e-7)
    assert (cut[3][:, :, 8:] == -1).all()
    assert (cut[15] == -1).all()


def test_frames_come_one_after_another():
    frames = np.stack([picture(28, 28), picture(28, 28)[::-1]])
    cut, grid = patches(frames)
    assert grid == (2, 2, 2)
    np.testing.assert_array_equal(cut[4:], patches(frames[1])[0])


def test_patches_are_written_into_a_place_and_nowhere_else():
    place = np.full((10, 3, 14, 14), 7, dtype=np.float32)
    assert patches_into(picture(20, 40), place[1:9]) == (1, 2, 4)
    np.testing.assert_array_equal(place[1:9], patches(picture(20, 40))[0])
    assert (place[[0, 9]] == 7).all()
    assert patches(picture(20, 40), out=place[2:])[0].base is place
    assert patches(picture(20, 40), out=place)[0].base is None  # of another length: an array of its own


@pytest.mark.parametrize("out", [np.zeros((7, 3, 14, 14), np.float32), np.zeros((8, 3, 14, 14)), np.zeros(8)])
def test_a_place_of_another_shape_is_refused(out):
    with pytest.raises(ValueError, match=r"patches are float32 or uint8 \[8, 3, 14, 14\]"):
        patches_into(picture(20, 40), out)


def test_patches_give_back_the_pixels_they_were_cut_from():
    frames = np.stack([picture(28, 56)] * 3)
    np.testing.assert_array_equal(pixels_of(*patches(frames)), frames)


def test_the_grid_is_the_planned_one():
    for width, height in [(1, 1), (28, 29), (57, 300), (640, 13)]:
        assert patches(picture(height, width))[1] == vision_tokens(width, height)[1]


def test_the_patches_are_those_that_past_runs_saw():
    cut, _ = patches(picture(31, 45))
    assert hashlib.sha256(cut.astype("<f4").tobytes()).hexdigest()[:16] == "e1ff8bf9149593bf"
