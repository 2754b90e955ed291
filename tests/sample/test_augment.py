"""What `sample/augment.py` promises: draws carried out on pixels, boxes and words alike."""

import numpy as np
import pytest

from k25_pipelines.sample.augment import (
    Draws,
    augmented_boxes,
    augmented_colour,
    chosen,
    mirrored_order,
    mirrored_words,
)
from k25_pipelines.sample.geometry import crop_resize_flip


def draws(**changes):
    return Draws(**{"crop": (0.0, 0.0, 40.0, 20.0), "width": 40, "height": 20, **changes})


def pixels():
    return np.random.default_rng(5).integers(0, 256, (20, 40, 3), dtype=np.uint8)


def test_factors_of_one_change_no_bit():
    assert augmented_colour(pixels(), draws()) is not None
    np.testing.assert_array_equal(augmented_colour(pixels(), draws()), pixels())


def test_brightness_scales_and_clips():
    assert augmented_colour(np.array([[[100, 200, 10]]], np.uint8), draws(brightness=1.5)).tolist() == [
        [[150, 255, 15]]
    ]


def test_contrast_turns_about_the_mean_grey_of_all_frames():
    frames = np.array([[[[100] * 3, [200] * 3]]], np.uint8)
    assert augmented_colour(frames, draws(contrast=0.5))[0, 0, :, 0].tolist() == [125, 175]
    assert augmented_colour(frames, draws(contrast=0.0)).max() == 150


def test_without_saturation_a_pixel_is_its_grey():
    grey = augmented_colour(np.array([[[255, 0, 0], [10, 20, 30]]], np.uint8), draws(saturation=0.0))
    assert grey.tolist() == [[[76] * 3, [18] * 3]]


def test_the_three_factors_follow_the_stated_formula():
    image = pixels()
    luma = np.array([0.299, 0.587, 0.114])
    bright = image * 1.1
    contrast = (bright @ luma).mean() + 0.9 * (bright - (bright @ luma).mean())
    grey = (contrast @ luma)[..., None]
    expected = np.clip(grey + 1.2 * (contrast - grey), 0, 255)
    found = augmented_colour(image, draws(brightness=1.1, contrast=0.9, saturation=1.2))
    assert np.abs(found - expected).max() < 0.5001


def test_boxes_are_clipped_to_the_crop_and_dropped_below_three_tenths():
    crop = crop_resize_flip((10, 0, 20, 20), width=20, height=20)
    boxes = [[12, 2, 15, 8], [-0.5, 0, 16.5, 10], [2.5, 0, 12.5, 10], [0, 0, 5, 5], [15, 5, 15, 9]]
    left, kept = augmented_boxes(np.array(boxes, dtype=float), crop)
    assert kept.tolist() == [0, 1, 2]
    assert left.tolist() == [[2, 2, 5, 8], [-0.5, 0, 6.5, 10], [-0.5, 0, 2.5, 10]]


def test_a_box_of_which_less_is_left_is_dropped():
    crop = crop_resize_flip((10, 0, 20, 20), width=20, height=20)
    assert augmented_boxes(np.array([[2.4, 0, 12.4, 10]]), crop)[1].tolist() == []


@pytest.mark.parametrize(
    ("words", "mirrored"),
    [
        ("a bear to the left of a tree", "a bear to the right of a tree"),
        ("Left LEFT rIght left_eye", "Right RIGHT left right_eye"),
        ("bright leftovers, right-hand", "bright leftovers, left-hand"),
    ],
)
def test_a_mirror_exchanges_the_words_for_sides(words, mirrored):
    assert mirrored_words(words) == mirrored


def test_keypoints_change_places_in_a_mirror():
    assert mirrored_order(["nose", "left_eye", "right_eye", "left_ear"]) == [0, 2, 1, 3]


def test_the_draw_of_words_is_the_first_where_nothing_was_drawn():
    assert [chosen("abc", words) for words in (0, 1, 3, 5, 7)] == ["a", "a", "b", "c", "a"]
