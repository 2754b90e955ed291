"""What `sample/geometry.py` promises: words and pixels move alike, and plain resizing is the reference's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from k25_pipelines.sample import geometry
from k25_pipelines.sample.geometry import Affine, boxes_from_coco, crop_resize_flip

WIDTH, HEIGHT = 181, 127


def noise(width=WIDTH, height=HEIGHT):
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def marked(points, width=WIDTH, height=HEIGHT, radius=2.5):
    """A black image with a smooth white spot centred on each point, in pixel centres."""
    rows, columns = np.mgrid[0:height, 0:width]
    squared = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in points]
    spots = 255 * np.exp(-np.min(squared, axis=0) / (2 * radius**2))
    return np.repeat(np.round(spots).astype(np.uint8)[:, :, None], 3, axis=2)


def found(pixels, expected):
    """Where the spot nearest to each expected place has its centre of mass."""
    grey = pixels[:, :, 0].astype(np.float64)
    labels, num_spots = ndimage.label(grey > 40)
    centres = np.array(ndimage.center_of_mass(grey**2, labels, range(1, num_spots + 1)))[:, ::-1]
    return np.array([centres[np.argmin(((centres - place) ** 2).sum(axis=1))] for place in expected])


crops = st.tuples(st.floats(0, 60), st.floats(0, 40), st.floats(70, 121), st.floats(60, 87))
sizes = st.tuples(st.integers(60, 200), st.integers(60, 200))
maps = st.builds(
    lambda crop, size, flip: crop_resize_flip(crop, width=size[0], height=size[1], flip=flip),
    crops,
    sizes,
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(first=maps, second=st.one_of(st.none(), st.booleans()), angle=st.sampled_from([0, 0, 90, 17]), data=st.data())
def test_marks_drawn_at_annotations_are_found_at_the_moved_annotations(first, second, angle, data):
    whole = first
    if angle:
        whole = geometry.rotation(angle, width=whole.width, height=whole.height).after(whole)
    if second is not None:
        inner = (2.0, 3.0, whole.width - 4.0, whole.height - 6.0)
        whole = crop_resize_flip(inner, width=whole.width - 9, height=whole.height + 5, flip=second).after(whole)
    margin = 14
    place = data.draw(st.tuples(st.floats(margin, whole.width - margin), st.floats(margin, whole.height - margin)))
    point = np.linalg.solve(whole.matrix, [*place, 1.0])[None, :2]
    if not (9 < point[0, 0] < WIDTH - 10 and 9 < point[0, 1] < HEIGHT - 10):
        return
    expected = whole.points(point)
    distance = np.abs(found(whole.pixels(marked(point)), expected) - expected).max()
    assert distance <= 0.5


@pytest.mark.parametrize("crop", [(0, 0, WIDTH, HEIGHT), (10, 5, 100, 90), (3.25, 4.5, 99.5, 77.125)])
@pytest.mark.parametrize("size", [(84, 56), (181, 127), (260, 200)])
def test_cropping_and_resizing_is_the_antialiased_bicubic_of_the_reference(crop, size):
    image = noise()
    x, y, width, height = crop
    box = (x, y, x + width, y + height)
    reference = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box))
    np.testing.assert_array_equal(crop_resize_flip(crop, width=size[0], height=size[1]).pixels(image), reference)


def test_a_flip_is_an_exact_reversal_and_its_own_inverse():
    image, mirror = noise(), geometry.flip(WIDTH, HEIGHT)
    np.testing.assert_array_equal(mirror.pixels(image), image[:, ::-1])
    np.testing.assert_array_equal(mirror.after(mirror).pixels(image), image)
    assert mirror.boxes([[0, 0, 10, 5]]).tolist() == [[WIDTH - 11, 0, WIDTH - 1, 5]]


def test_a_quarter_turn_moves_pixels_without_loss():
    image = noise(40, 40)
    turned = geometry.rotation(90, width=40, height=40)
    np.testing.assert_array_equal(turned.pixels(image), np.rot90(image, k=-1))
    np.testing.assert_allclose(turned.points([[0, 0]]), [[39, 0]], atol=1e-12)


def test_halving_an_image_maps_the_first_two_pixels_onto_the_middle_of_the_first():
    half = geometry.resize(8, 8, width=4, height=4)
    assert half.points([[0.5, 0.5], [-0.5, 7.5]]).tolist() == [[0, 0], [-0.5, 3.5]]


def test_boxes_are_envelopes_and_are_not_clipped():
    turned = geometry.rotation(45, width=101, height=101)
    reach = 50**0.5
    np.testing.assert_allclose(turned.boxes([[45, 45, 55, 55]]), [[50 - reach, 50 - reach, 50 + reach, 50 + reach]])
    crop = crop_resize_flip((10, 10, 20, 20), width=20, height=20)
    assert crop.boxes([[0, 0, 50, 15]]).tolist() == [[-10, -10, 40, 5]]
    assert crop.boxes(np.zeros((0, 4))).shape == (0, 4)


def test_polygons_keep_their_vertices():
    square = np.array([[0, 0], [3, 0], [3, 3.0]])
    moved = geometry.flip(10, 10).polygons([square, square[:0]])
    assert [polygon.tolist() for polygon in moved] == [[[9, 0], [6, 0], [6, 3]], []]


def test_what_lies_outside_the_source_is_black():
    shift = Affine(np.array([[1, 0, 30], [0, 1, 0], [0, 0, 1]]), 50, 20)
    moved = shift.pixels(np.full((20, 50, 3), 200, np.uint8))
    assert (moved[:, :30].max(), moved[:, 31:].min()) == (0, 200)


def test_a_strong_reduction_of_a_turned_image_does_not_alias():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    small = geometry.resize(400, 400, width=40, height=40)
    turned = small.after(geometry.rotation(10, width=400, height=400)).pixels(stripes)
    assert np.abs(turned[10:30, 10:30].astype(int) - 128).max() < 12


def test_coco_boxes_enter_in_pixel_centres():
    assert boxes_from_coco([[0, 0, 10, 4]]).tolist() == [[-0.5, -0.5, 9.5, 3.5]]


@pytest.mark.parametrize("matrix", [np.eye(2), np.zeros((3, 3)), np.diag([1, 0, 1])])
def test_a_matrix_that_cannot_be_undone_is_refused(matrix):
    with pytest.raises(ValueError, match="matrix"):
        Affine(matrix, 10, 10)
