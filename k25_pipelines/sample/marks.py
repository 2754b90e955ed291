"""Annotations drawn on a picture: pixels and what is marked on them in, a small picture for the eye out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from k25_pipelines.sample.annotations import Annotation
from k25_pipelines.sample.geometry import Affine
from k25_pipelines.sample.picture import COLOURS, thumbnail

DOT = 2.5
"""Radius of a point or keypoint [pixels of the small picture]."""


def marked(pixels: np.ndarray, annotations: Sequence[Annotation], *, side: int) -> np.ndarray:
    """Return a picture no larger than `side` with everything marked: boxes, outlines, keypoints with skeleton, points.

    A hidden keypoint is a ring, a seen one a disc; a direction is a line from the middle; of a line of text a
    dot stands at its first corner, where reading starts.

    Args:
        pixels: uint8 [H, W, 3].
        annotations: in pixel centres of `pixels`.
        side: the longer side at most [pixels].

    Returns:
        uint8 [h, w, 3]; small pictures are not enlarged.
    """
    small = thumbnail(pixels, side=side)
    height, width = small.shape[:2]
    scale_x, scale_y = width / pixels.shape[1], height / pixels.shape[0]
    matrix = [[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5], [0, 0, 1]]
    affine, image = Affine(np.array(matrix), width, height), Image.fromarray(small)
    drawing = ImageDraw.Draw(image)
    for number, one in enumerate(annotations):
        _draw(drawing, one, affine, COLOURS[number % len(COLOURS)])
    return np.asarray(image)


def _draw(drawing: ImageDraw.ImageDraw, one: Annotation, affine: Affine, colour: str) -> None:
    if one.box is not None:
        box = affine.boxes(one.box)[0]
        drawing.rectangle(tuple(box.tolist()), outline=colour)
        if one.angle is not None:
            middle = (box[:2] + box[2:]) / 2
            reach = (box[2:] - box[:2]).max() / 2
            tip = middle + reach * np.array([np.cos(np.deg2rad(one.angle)), np.sin(np.deg2rad(one.angle))])
            drawing.line([*middle.tolist(), *tip.tolist()], fill=colour, width=2)
    for polygon in affine.polygons(one.polygons):
        drawing.polygon([tuple(vertex) for vertex in polygon.tolist()], outline=colour)
        if one.is_text and len(polygon):
            _dot(drawing, polygon[0], colour, filled=True)
    if one.keypoints is not None:
        _draw_keypoints(drawing, one, affine.points(one.keypoints[:, :2]), colour)
    if one.point is not None:
        _dot(drawing, affine.points(one.point)[0], colour, filled=True)


def _draw_keypoints(drawing: ImageDraw.ImageDraw, one: Annotation, places: np.ndarray, colour: str) -> None:
    assert one.keypoints is not None
    seen = one.keypoints[:, 2]
    for here, there in one.skeleton:
        if seen[here] and seen[there]:
            drawing.line([*places[here].tolist(), *places[there].tolist()], fill=colour)
    for place, visibility in zip(places, seen, strict=True):
        if visibility:
            _dot(drawing, place, colour, filled=visibility > 1)


def _dot(drawing: ImageDraw.ImageDraw, place: np.ndarray, colour: str, *, filled: bool) -> None:
    x, y = place.tolist()
    drawing.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), outline=colour, fill=colour if filled else None)
