"""What `sample/resample.py` promises: Pillow's antialiased bicubic, bit for bit."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from k25_pipelines.sample import geometry
from k25_pipelines.sample.resample import resized, transposed

BICUBIC = Image.Resampling.BICUBIC


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(source, size, box):
    return np.asarray(Image.fromarray(source).resize(size, BICUBIC, box=box))


@st.composite
def resizes(draw):
    width, height = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    size = draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
    whole = 0, 0, width, height
    left, upper = (draw(st.floats(0, 0.95)) * length for length in (width, height))
    right, lower = (low + draw(st.floats(0.01, 1)) * (high - low) for low, high in ((left, width), (upper, height)))
    part = left, upper, min(right, width), min(lower, height)
    return width, height, size, draw(st.sampled_from([whole, part, (0, part[1], width, part[3])]))


@settings(max_examples=300, deadline=None)
@given(resizes(), st.integers(0, 2**32))
@example((1, 1, (200, 1), (0, 0, 1, 1)), 0)
@example((200, 1, (1, 200), (0, 0, 200, 1)), 0)
@example((100, 130, (101, 129), (0, 0, 100, 130)), 0)  # Pillow takes the vertical pass first
def test_the_bits_are_those_of_pillow(resize, seed):
    width, height, size, box = resize
    source = noise(height, width, seed)
    np.testing.assert_array_equal(resized(source, size, box), pillow(source, size, box))


@pytest.mark.parametrize("size", [(97, 61), (130, 200), (40, 31), (97, 30), (30, 61), (120, 30)])
@pytest.mark.parametrize(("flip_x", "flip_y"), [(True, False), (False, True), (True, True)])
def test_a_mirror_reverses_what_was_resized(size, flip_x, flip_y):
    source, box = noise(61, 97), (0, 0, 97, 61)
    expected = pillow(source, size, box)[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    np.testing.assert_array_equal(resized(source, size, box, flip_x=flip_x, flip_y=flip_y), expected)


def test_flat_areas_keep_their_level_and_edges_do_not_wrap_around():
    for level in (0, 1, 254, 255):
        flat = np.full((50, 70, 3), level, np.uint8)
        assert np.unique(resized(flat, (43, 91), (0, 0, 70, 50))).tolist() == [level]
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 255
    np.testing.assert_array_equal(resized(edge, (77, 55), (0, 0, 40, 40)), pillow(edge, (77, 55), (0, 0, 40, 40)))


def test_views_and_read_only_pixels_are_taken_as_they_are():
    source = noise(50, 60)
    views = [source[:, ::-1], source[10:40, 5:50], np.asarray(Image.fromarray(source))]
    for view in views:
        box = (0, 0, view.shape[1], view.shape[0])
        np.testing.assert_array_equal(resized(view, (33, 44), box), pillow(np.ascontiguousarray(view), (33, 44), box))


def test_threads_do_not_disturb_each_other_nor_what_they_returned_before():
    sizes = [(width, 150 - width) for width in range(20, 130, 10)]
    sources = [noise(40 + width, 170 - width, seed=width) for width, _ in sizes]

    def one(place):
        source = sources[place % len(sizes)]
        return resized(source, sizes[place % len(sizes)], (0, 0, source.shape[1], source.shape[0]))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8 * len(sizes))))
    for place, pixels in enumerate(found):
        source = sources[place % len(sizes)]
        expected = pillow(source, sizes[place % len(sizes)], (0, 0, source.shape[1], source.shape[0]))
        np.testing.assert_array_equal(pixels, expected)


def test_rows_and_columns_are_exchanged():
    for height, width in [(1, 1), (63, 64), (130, 65), (200, 3)]:
        source = noise(height, width)
        np.testing.assert_array_equal(transposed(source), source.transpose(1, 0, 2))


def test_warps_are_the_same_whatever_opencv_is_set_to_and_it_starts_no_threads():
    assert cv2.getNumThreads() == 1  # set where it is imported: the loader owns the threads
    turn = geometry.rotation(7, width=320, height=240)
    once = turn.pixels(noise(240, 320))
    try:
        cv2.setNumThreads(4)
        np.testing.assert_array_equal(turn.pixels(noise(240, 320)), once)
    finally:
        cv2.setNumThreads(1)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 11, 5), (5, 0, 5, 5), (0, 6, 5, 5), (0, 0, float("nan"), 5)])
def test_a_part_outside_the_picture_or_without_pixels_is_refused(box):
    with pytest.raises(ValueError, match="cannot resize the part"):
        resized(noise(10, 10), (5, 5), box)
    with pytest.raises(ValueError, match="cannot resize"):
        resized(noise(10, 10), (0, 5), (0, 0, 10, 10))


def test_the_pixels_are_those_that_past_runs_saw():
    source = (np.arange(90 * 120 * 3).reshape(90, 120, 3) ** 2 // 7 % 251).astype(np.uint8)
    sizes = (56, 42), (140, 30), (28, 84), (200, 170)
    found = b"".join(resized(source, size, (1.5, 2, 119, 88.25)).tobytes() for size in sizes)
    assert hashlib.sha256(found).hexdigest()[:16] == "8bb25dd4e8de5ad8"
