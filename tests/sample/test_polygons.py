"""What `sample/polygons.py` promises: what is left of a polygon in an image is exactly its part there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.sample import polygons

WIDTH, HEIGHT = 60, 40


def stars(draw):
    """A polygon that does not cross itself, at half-pixel places often enough to lie on the edges."""
    angles = sorted(draw(st.lists(st.floats(0, 6.2), min_size=3, max_size=9, unique_by=lambda angle: round(angle, 2))))
    radii = [draw(st.integers(3, 50)) for _ in angles]
    x, y = draw(st.tuples(st.integers(-20, 80), st.integers(-20, 60)))
    return np.array([[x + r * np.cos(a), y + r * np.sin(a)] for a, r in zip(angles, radii, strict=True)])


def covered(polygon, points):
    """Whether each point lies in a polygon, by the number of edges to its right."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            right = points[:, 0] < x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y0 > points[:, 1]) != (y1 > points[:, 1])) & right
    return inside


@settings(max_examples=150, deadline=None)
@given(polygon=st.composite(stars)())
def test_a_cut_polygon_covers_what_the_whole_covers_inside_the_image(polygon):
    places = np.random.default_rng(4).uniform([-0.5, -0.5], [WIDTH - 0.5, HEIGHT - 0.5], (4000, 2))
    cut = polygons.clipped(polygon, width=WIDTH, height=HEIGHT)
    np.testing.assert_array_equal(covered(cut, places), covered(polygon, places))
    share = covered(polygon, places).mean() * WIDTH * HEIGHT
    assert abs(polygons.area(cut) - share) <= 5 * (WIDTH * HEIGHT / 4000) * 4000**0.5 / 2
    assert ((cut >= -0.5) & (cut <= [WIDTH - 0.5, HEIGHT - 0.5])).all()


def test_a_polygon_inside_keeps_its_vertices_and_one_outside_has_none():
    inside = np.array([[-0.5, -0.5], [59.5, -0.5], [30.0, 39.5]])
    assert polygons.clipped(inside, width=WIDTH, height=HEIGHT).tolist() == inside.tolist()
    assert polygons.clipped(inside + 100, width=WIDTH, height=HEIGHT).shape == (0, 2)


def test_a_square_over_a_corner_leaves_its_quarter():
    square = np.array([[-10.5, -10.5], [9.5, -10.5], [9.5, 9.5], [-10.5, 9.5]])
    cut = polygons.clipped(square, width=WIDTH, height=HEIGHT)
    assert sorted(cut.tolist()) == [[-0.5, -0.5], [-0.5, 9.5], [9.5, -0.5], [9.5, 9.5]]
    assert (polygons.area(square), polygons.area(cut)) == (400, 100)


def test_a_simplified_polygon_loses_its_least_telling_vertices():
    square = np.array([[0, 0], [5, 0.1], [10, 0], [10, 10], [5, 9.8], [0, 10.0]])
    assert polygons.simplified(square, 4).tolist() == [[0, 0], [10, 0], [10, 10], [0, 10]]
    assert polygons.simplified(square, 6).tolist() == square.tolist()
    assert len(polygons.simplified(square, 0)) == 3


def test_areas_far_from_the_origin_are_exact():
    assert polygons.area(np.array([[1e6, 1e6], [1e6 + 3, 1e6], [1e6, 1e6 + 2]])) == 3
    assert polygons.area(np.zeros((2, 2))) == 0
