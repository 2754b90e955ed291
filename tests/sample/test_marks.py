"""Marks drawn at annotations are found at the moved annotations, to half a pixel, under every draw of the planner."""

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from k25_pipelines.plan.draws import AUGMENTATIONS, DrawRule, draw
from k25_pipelines.plan.size import profile
from k25_pipelines.sample.annotations import Annotation, annotations_of, moved
from k25_pipelines.sample.augment import augmented_pixels, draws_of_row
from k25_pipelines.sample.decode import dct_scale, decode_image
from k25_pipelines.sample.marks import marked as drawn_on
from k25_pipelines.sample.picture import COLOURS
from tests.sample.annotated import BOWL, CUP, FACE, OUTLINE, POINT, SIGN

KIMI = profile("kimi_k25")
GEOMETRIC = ("resize", "crop", "flip", "turn", "rotate")
LIMIT, REDUCED_LIMIT = 0.2, 0.12
"""Half a pixel is promised; 0.13 and 0.06 were the worst of thousands, so these also show half a source pixel."""
SIGMA = 2.5
"""Of a mark as the model sees it, about [pixels]."""


def drawn(augment, line, *, width, height, max_tokens):
    rule = DrawRule(seed=5, dataset="marks", augment=tuple(augment))
    sizes = {"width": np.array([width]), "height": np.array([height]), "max_tokens": max_tokens}
    columns = draw(rule, np.array([line]), np.array([0]), **sizes, profile=KIMI)
    return draws_of_row({name: column[0].item() for name, column in columns.items()})


def spot(point, width, height, sigma):
    """A dark grey image with a smooth bright spot centred on a point, in pixel centres."""
    rows, columns = np.mgrid[0:height, 0:width]
    squared = (columns - point[0]) ** 2 + (rows - point[1]) ** 2
    level = 50 + 160 * np.exp(-squared / (2 * sigma**2))
    return np.repeat(np.round(level).astype(np.uint8)[:, :, None], 3, axis=2)


def found(pixels, expected):
    """The centre of mass of what stands out from the ground near the expected place."""
    x, y = np.round(expected).astype(int)
    reach = 9
    top, left = max(0, y - reach), max(0, x - reach)
    part = pixels[top : y + reach + 1, left : x + reach + 1].mean(axis=2)
    above = part - np.median(pixels.mean(axis=2))
    mass = np.where(above > 0.25 * above.max(), above, 0) ** 2
    rows, columns = np.mgrid[0 : mass.shape[0], 0 : mass.shape[1]]
    return np.array([(mass * columns).sum(), (mass * rows).sum()]) / mass.sum() + [left, top]


def missed_by(draws, width, height, place):
    """How far from its moved annotation a mark is found that is to be seen at a place of the content, in shares."""
    affine = draws.affine
    wanted = 12 + np.array(place) * (np.array([draws.width, draws.height]) - 25)
    source = np.linalg.solve(affine.matrix, [*wanted, 1.0])[:2]
    sigma = SIGMA / abs(np.linalg.det(affine.matrix[:2, :2])) ** 0.5
    [(_, after)] = moved([Annotation(label="mark", point=source)], affine, flip=draws.flip)
    pixels = augmented_pixels(affine.pixels(spot(source, width, height, sigma)), draws)
    assert pixels.shape == (draws.height, draws.width, 3)
    return np.abs(found(pixels, after.point) - after.point).max()


def covered(polygon, width, height):
    """Whether each pixel's centre lies in a polygon, by the number of edges to its right."""
    rows, columns = np.mgrid[0:height, 0:width]
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > rows) != (y1 > rows)) & (columns < x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
    return inside


def decoded(pixels, reduce):
    """The picture as a JPEG of the best quality gives it back, decoded at one over `reduce`."""
    data = simplejpeg.encode_jpeg(pixels, quality=100, colorsubsampling="444")
    return decode_image(data, reduce=reduce)


shares = st.tuples(st.floats(0, 1), st.floats(0, 1))


@pytest.mark.parametrize("augment", [(), *((name,) for name in AUGMENTATIONS[:8]), GEOMETRIC, AUGMENTATIONS])
@settings(max_examples=12, deadline=None)
@given(line=st.integers(0, 10**6), width=st.integers(120, 330), height=st.integers(120, 330), place=shares)
def test_a_mark_is_found_within_half_a_pixel_under_every_operation(augment, line, width, height, place):
    draws = drawn(augment, line, width=width, height=height, max_tokens=40)
    assert missed_by(draws, width, height, place) <= LIMIT


@settings(max_examples=120, deadline=None)
@given(
    augment=st.sets(st.sampled_from(AUGMENTATIONS)),
    line=st.integers(0, 10**6),
    width=st.integers(100, 400),
    height=st.integers(100, 400),
    max_tokens=st.integers(20, 200),
    place=shares,
)
def test_a_mark_is_found_within_half_a_pixel_under_every_composition(augment, line, width, height, max_tokens, place):
    draws = drawn(augment, line, width=width, height=height, max_tokens=max_tokens)
    if min(draws.width, draws.height) >= 28:
        assert missed_by(draws, width, height, place) <= LIMIT


@pytest.mark.parametrize(("longer", "reduces"), [(500, {1, 2, 4}), (900, {2, 4, 8}), (1400, {4, 8})])
@settings(max_examples=8, deadline=None)
@given(line=st.integers(0, 10**6), shorter=st.floats(0.8, 1), place=shares)
def test_a_mark_is_found_within_half_a_pixel_after_a_reduced_decode(longer, reduces, line, shorter, place):
    width, height = longer, int(longer * shorter)
    draws = drawn(("crop", "rotate", "turn", "flip"), line, width=width, height=height, max_tokens=4)
    size = (draws.height, draws.width) if draws.turns % 2 else (draws.width, draws.height)
    reduce = dct_scale(draws.crop[2:], size, source=(width, height))
    assert reduce in reduces
    wanted = 12 + np.array(place) * (np.array([draws.width, draws.height]) - 25)
    source = np.linalg.solve(draws.affine.matrix, [*wanted, 1.0])[:2]
    sigma = SIGMA / abs(np.linalg.det(draws.affine.matrix[:2, :2])) ** 0.5
    pixels = draws.affine.pixels(decoded(spot(source, width, height, sigma), reduce), reduced=reduce)
    assert np.abs(found(pixels, wanted) - wanted).max() <= REDUCED_LIMIT


@settings(max_examples=40, deadline=None)
@given(line=st.integers(0, 10**6), augment=st.sets(st.sampled_from(GEOMETRIC)))
def test_a_filled_box_and_outline_cover_what_the_moved_ones_cover(line, augment):
    width, height = 300, 240
    outline = np.array([[60, 40], [200, 30], [250, 120], [150, 90], [120, 200.0], [40, 130]])
    box = np.array([150.5, 99.5, 279.5, 220.5])
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = 255 * covered(outline, width, height)
    image[100:221, 151:280, 1] = 255
    draws = drawn(augment, line, width=width, height=height, max_tokens=80)
    pixels = draws.affine.pixels(image)
    left = dict(
        moved([Annotation(label="a", polygons=(outline,)), Annotation(label="b", box=box)], draws.affine, flip=False)
    )
    if 0 in left:
        [polygon] = left[0].polygons
        wrong = covered(polygon, draws.width, draws.height) != (pixels[:, :, 0] > 127)
        around = np.linalg.norm(polygon - np.roll(polygon, 1, axis=0), axis=1).sum()
        assert wrong.sum() <= 0.5 * around
    if 1 in left and not draws.angle:
        box, level = left[1].box, pixels[:, :, 1] / 255
        column, row = np.floor((box[:2] + box[2:]) / 2).astype(int)
        across, down = level[row], level[:, column]
        edges = [
            *(column + 0.5 - across[: column + 1].sum(), row + 0.5 - down[: row + 1].sum()),
            *(column + 0.5 + across[column + 1 :].sum(), row + 0.5 + down[row + 1 :].sum()),
        ]
        assert np.abs(np.array(edges) - box).max() <= LIMIT


@settings(max_examples=60, deadline=None)
@given(line=st.integers(0, 10**6), width=st.integers(1, 500), height=st.integers(1, 500))
def test_no_border_is_invented(line, width, height):
    draws = drawn(("crop", "rotate", "turn", "flip"), line, width=width, height=height, max_tokens=60)
    assert draws.affine.pixels(np.full((height, width, 3), 200, np.uint8)).min() >= 199


def test_marks_on_a_page_stand_on_the_pixels_they_mark():
    image = np.zeros((80, 120, 3), np.uint8)
    places = np.array([[20.0, 30.0], [100.0, 60.0]])
    one = Annotation(label="a", keypoints=np.array([[20, 30, 2], [100, 60, 2.0]]), names=("a", "b"))
    shown = drawn_on(image, [one], side=60).astype(int).sum(axis=2) > 100
    for x, y in (places + 0.5) * 0.5 - 0.5:
        rows, columns = np.nonzero(shown[int(y) - 6 : int(y) + 8, int(x) - 6 : int(x) + 8])
        assert np.abs([columns.mean() + int(x) - 6 - x, rows.mean() + int(y) - 6 - y]).max() <= 0.75


def test_every_kind_of_mark_is_drawn_in_the_colour_of_its_object():
    items = [CUP, OUTLINE, FACE, SIGN, POINT]
    shown = drawn_on(np.zeros((140, 200, 3), np.uint8), annotations_of({"annotations": items}, name="sample"), side=200)
    # a corner of the box, a vertex, the middle of nose and eye, the first corner of the line, the point
    for number, (x, y) in enumerate([(20, 10), (120, 10), (80, 55), (29, 29), (150, 70)]):
        colour = ImageColor.getrgb(COLOURS[number])
        assert (shown[y - 1 : y + 2, x - 1 : x + 2] == colour).all(axis=2).any(), items[number]


def test_a_direction_is_a_line_from_the_middle_of_its_box():
    [bowl] = annotations_of({"annotations": [BOWL | {"angle": 90}]}, name="sample")
    shown = drawn_on(np.zeros((140, 200, 3), np.uint8), [bowl], side=200)
    assert shown[85:125, 144:146].any(axis=2).all()
    assert not shown[50:75, 140:150].any()
