"""What `sample/patches.py` promises: the vision tower's layout, pinned."""

import hashlib

import numpy as np

from k25_pipelines.plan.size import vision_tokens
from k25_pipelines.sample.patches import patches, pixels_of


def picture(height, width):
    return (np.arange(height * width * 3).reshape(height, width, 3) * 7 % 256).astype(np.uint8)


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


def test_patches_give_back_the_pixels_they_were_cut_from():
    frames = np.stack([picture(28, 56)] * 3)
    np.testing.assert_array_equal(pixels_of(*patches(frames)), frames)


def test_the_grid_is_the_planned_one():
    for width, height in [(1, 1), (28, 29), (57, 300), (640, 13)]:
        assert patches(picture(height, width))[1] == vision_tokens(width, height)[1]


def test_the_patches_are_those_that_past_runs_saw():
    cut, _ = patches(picture(31, 45))
    assert hashlib.sha256(cut.astype("<f4").tobytes()).hexdigest()[:16] == "e1ff8bf9149593bf"
