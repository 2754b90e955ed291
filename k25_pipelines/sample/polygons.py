"""Polygons cut at an image's edges, and their areas. Vertices in pixel centres in, vertices out."""

import numpy as np


def area(polygon: np.ndarray) -> float:
    """Return the area of [k, 2] vertices [square pixels], 0 below three: half the sum of cross products."""
    if len(polygon) < 3:
        return 0.0
    x, y = (polygon - polygon[0]).T  # near the origin nothing is lost to rounding
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def clipped(polygon: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Return the part of a polygon that lies in an image, from edge to edge: [-0.5, width - 0.5] and the same down.

    A polygon that the image cuts into several keeps one outline, joined along the edge, where it
    has no area; so the area is that of the parts together.

    Args:
        polygon: float64 [k, 2] vertices in order, the first not repeated.
        width: of the image [pixels].
        height: of the image [pixels].

    Returns:
        float64 [m, 2]; none if nothing is left.

    Source: Sutherland and Hodgman 1974, "Reentrant Polygon Clipping".
    """
    limits = ((0, -0.5, 1.0), (0, width - 0.5, -1.0), (1, -0.5, 1.0), (1, height - 0.5, -1.0))
    for axis, limit, sign in limits:
        depth = (polygon[:, axis] - limit) * sign
        if (depth >= 0).all():
            continue
        polygon = _cut(polygon, depth, axis, limit)
    return polygon


def simplified(polygon: np.ndarray, most_vertices: int) -> np.ndarray:
    """Return the polygon with at most so many vertices, at least 3, the least telling left out one by one.

    A vertex tells as much as the triangle it makes with its neighbours is large; of equals the first goes.

    Source: Visvalingam and Whyatt 1993, "Line generalisation by repeated elimination of points".
    """
    while len(polygon) > max(3, most_vertices):
        before, after = np.roll(polygon, 1, axis=0) - polygon, np.roll(polygon, -1, axis=0) - polygon
        told = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        polygon = np.delete(polygon, int(np.argmin(told)), axis=0)
    return polygon


def _cut(polygon: np.ndarray, depth: np.ndarray, axis: int, limit: float) -> np.ndarray:
    """Return the part where `depth` is not negative; where an edge crosses, a vertex exactly on the limit."""
    left = []
    for here, there, inner, outer in zip(polygon, np.roll(polygon, -1, axis=0), depth, np.roll(depth, -1), strict=True):
        if inner >= 0:
            left.append(here)
        if (inner > 0 > outer) or (inner < 0 < outer):
            crossing = here + (there - here) * (inner / (inner - outer))
            crossing[axis] = limit
            left.append(crossing)
    return np.array(left).reshape(-1, 2)
