"""What `sample/annotations.py` promises: JSON is checked, and what is marked follows the pixels by stated rules."""

import numpy as np
import pytest

from k25_pipelines.errors import SampleError
from k25_pipelines.sample.annotations import annotations_of, moved
from tests.sample.annotated import BOWL, CUP, FACE, OUTLINE, POINT, PRICE, SIGN, whole


def read(*items):
    return annotations_of({"annotations": list(items)}, name="sample")


def seen(draws, *items):
    return dict(moved(read(*items), draws.affine, flip=draws.flip))


def test_coordinates_enter_in_pixel_centres():
    cup, cloud, pole, face, sign = read(CUP, OUTLINE, POINT, FACE, SIGN)
    assert cup.box.tolist() == [19.5, 9.5, 79.5, 59.5]
    assert cloud.polygons[0].tolist()[:2] == [[19.5, 19.5], [119.5, 9.5]]
    assert pole.point.tolist() == [150, 70]
    assert face.keypoints.tolist() == [[89.5, 69.5, 2], [69.5, 39.5, 1], [0, 0, 0]]
    assert (face.skeleton, face.names) == (((0, 1), (0, 2)), ("nose", "left_eye", "right_eye"))
    assert (sign.is_text, sign.label, sign.polygons[0].shape) == (True, "STOP here", (4, 2))


def test_run_length_masks_captions_and_outlines_without_area_are_passed_over():
    assert read({"caption": "a cup"}) == []
    assert read(CUP | {"segmentation": {"counts": "abc", "size": [1, 1]}})[0].polygons == ()
    assert read(CUP | {"segmentation": [[1, 1, 2, 2], [1, 1, 2, 2, 3, 3]]})[0].polygons == ()


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ({"bbox": [1, 2, 3], "label": "a"}, "a bbox is not 4 numbers"),
        ({"bbox": [1, 2, 3, "x"], "label": "a"}, "a bbox is not 4 numbers"),
        ({"bbox": [1, 2, 3, float("inf")], "label": "a"}, "not finite"),
        ({"bbox": [1, 2, 3, 4]}, "no label"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]], "label": "a"}, "odd number"),
        (FACE | {"keypoints": [1, 2]}, "keypoints are not"),
        (FACE | {"keypoint_names": ["nose"]}, "keypoints are not"),
        (FACE | {"skeleton": [[0, 1]]}, "skeleton is not"),
        ({"point": [1], "label": "a"}, "a point is not 2 numbers"),
    ],
)
def test_annotations_that_are_not_what_they_say_are_bad_samples(item, complaint):
    with pytest.raises(SampleError, match=complaint):
        read(item)


def test_a_mirror_exchanges_sides_keypoints_and_directions():
    after = seen(whole(flip=True), CUP, BOWL, FACE)
    assert (after[0].label, after[0].box.tolist()) == ("right cup", [119.5, 9.5, 179.5, 59.5])
    assert round(after[1].angle, 9) == 150
    assert after[2].keypoints.tolist() == [[109.5, 69.5, 2], [0, 0, 0], [129.5, 39.5, 1]]


def test_a_quarter_turn_takes_the_upper_left_corner_to_the_upper_right():
    after = seen(whole(turns=1, width=140, height=200), BOWL, POINT, SIGN)
    assert after[0].box.tolist() == [9.5, 99.5, 109.5, 189.5]
    assert round(after[0].angle, 9) == 120
    assert after[1].point.tolist() == [69, 150]
    assert after[2].polygons[0][0].tolist() == [109.5, 29.5]


def test_a_small_angle_turns_directions_and_takes_the_tight_box_of_an_outline():
    draws = whole(angle=5.0)
    after = seen(draws, BOWL, OUTLINE | {"bbox": [20, 10, 160, 120]})
    assert abs(after[0].angle - 35) < 1e-9
    [polygon] = after[1].polygons
    np.testing.assert_array_equal(after[1].box, [*polygon.min(axis=0), *polygon.max(axis=0)])


def test_what_is_left_of_too_little_is_dropped_text_sooner_than_objects():
    half = whole(crop=(50.0, 0.0, 150.0, 140.0), width=150)
    after = seen(half, CUP, OUTLINE, POINT, FACE, SIGN, PRICE)
    assert sorted(after) == [0, 1, 2, 3, 5]
    assert after[0].box.tolist() == [-0.5, 9.5, 29.5, 59.5]
    assert after[3].keypoints[:, 2].tolist() == [2, 1, 0]
    far = whole(crop=(100.0, 0.0, 100.0, 140.0), width=100)
    assert sorted(seen(far, CUP, POINT, PRICE)) == [1, 2]


def test_keypoints_outside_are_unknown_and_without_any_nothing_is_left():
    bare = {name: FACE[name] for name in ("keypoints", "keypoint_names", "category")}
    part = whole(crop=(0.0, 50.0, 200.0, 90.0), height=90)
    assert seen(part, bare)[0].keypoints.tolist() == [[89.5, 19.5, 2], [0, 0, 0], [0, 0, 0]]
    assert seen(whole(crop=(0.0, 100.0, 200.0, 40.0), height=40), bare) == {}


def test_the_lines_of_a_mirrored_page_keep_their_words():
    assert seen(whole(flip=True), {"text": "turn left", "bbox": [0, 0, 50, 20]})[0].label == "turn left"
