"""What `sample/augment.py` promises: draws carried out on pixels, boxes and words alike."""

import numpy as np

from k25_pipelines.sample.annotations import augmented_boxes
from k25_pipelines.sample.augment import Draws, augmented_colour, augmented_pixels, draws_of_row
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
    assert np.abs(found - expected).max() < 0.501


def test_boxes_are_clipped_to_the_crop_and_dropped_below_three_tenths():
    crop = crop_resize_flip((10, 0, 20, 20), width=20, height=20)
    boxes = [[12, 2, 15, 8], [-0.5, 0, 16.5, 10], [2.5, 0, 12.5, 10], [0, 0, 5, 5], [15, 5, 15, 9]]
    left, kept = augmented_boxes(np.array(boxes, dtype=float), crop)
    assert kept.tolist() == [0, 1, 2]
    assert left.tolist() == [[2, 2, 5, 8], [-0.5, 0, 6.5, 10], [-0.5, 0, 2.5, 10]]


def test_a_box_of_which_less_is_left_is_dropped():
    crop = crop_resize_flip((10, 0, 20, 20), width=20, height=20)
    assert augmented_boxes(np.array([[2.4, 0, 12.4, 10]]), crop)[1].tolist() == []


def test_blur_is_a_gaussian_and_keeps_flat_pixels():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    seen = augmented_pixels(np.stack([image, image]), draws(blur=1.5))
    rows, columns = np.mgrid[0:41, 0:41]
    expected = 255 / (2 * np.pi * 1.5**2) * np.exp(-((rows - 20) ** 2 + (columns - 20) ** 2) / (2 * 1.5**2))
    assert np.abs(seen[1, :, :, 0] - expected).max() < 1.5
    flat = np.full((2, 9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(augmented_pixels(flat, draws(blur=0.3)), flat)


def test_the_marks_of_jpeg_are_stronger_at_lower_quality_and_keep_the_size():
    rows, columns = np.mgrid[0:61, 0:83]
    image = np.stack([127 + 100 * np.sin((columns * 2 + rows * k) / 9) for k in range(3)], axis=2).astype(np.uint8)
    seen = [augmented_pixels(image[None], draws(jpeg=quality))[0].astype(int) for quality in (40, 70, 95)]
    errors = [np.abs(pixels - image).mean() for pixels in seen]
    assert [pixels.shape for pixels in seen] == [image.shape] * 3
    assert 10 > errors[0] > errors[1] > errors[2] > 0


def test_draws_that_ask_for_nothing_change_no_bit():
    np.testing.assert_array_equal(augmented_pixels(pixels()[None], draws())[0], pixels())


def test_the_map_turns_by_the_angle_resizes_turns_by_quarters_and_mirrors():
    whole = draws(angle=6.0, turns=1, flip=True, width=10, height=20)
    middle = whole.affine.points(np.array([[19.5, 9.5]]))
    np.testing.assert_allclose(middle, [[4.5, 9.5]], atol=1e-12)
    right = whole.affine.points(np.array([[29.5, 9.5]])) - middle
    # 10 to the right: 6 degrees down, halved, a quarter turn clockwise makes it down and left, the mirror right
    np.testing.assert_allclose(right, [[5 * np.sin(np.deg2rad(6)), 5 * np.cos(np.deg2rad(6))]], atol=1e-12)


def test_a_quarter_turn_and_a_mirror_move_pixels_without_loss():
    image = pixels()
    for turns in range(4):
        size = {"width": 20, "height": 40} if turns % 2 else {}
        turned = np.rot90(image, k=-turns)
        np.testing.assert_array_equal(draws(turns=turns, **size).affine.pixels(image), turned)
        np.testing.assert_array_equal(draws(turns=turns, flip=True, **size).affine.pixels(image), turned[:, ::-1])


def test_a_plan_row_gives_its_draws():
    row = {"crop_x": 1.0, "crop_y": 2.0, "crop_w": 3.0, "crop_h": 4.0, "out_w": 5, "out_h": 6, "flip": True, "turns": 1}
    row |= {"angle": 2.0, "brightness": 1.1, "contrast": 1.2, "saturation": 0.9, "blur": 0.5, "jpeg": 50}
    assert draws_of_row(row | {"words": 7, "noise": 9, "line": 3}) == Draws(
        crop=(1.0, 2.0, 3.0, 4.0), width=5, height=6, flip=True, turns=1, angle=2.0, brightness=1.1, contrast=1.2,
        saturation=0.9, blur=0.5, jpeg=50, words=7, noise=9,
    )  # fmt: skip
