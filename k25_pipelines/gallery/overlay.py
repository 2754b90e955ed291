"""A picture with what is marked on it, sharp at any size: pixels and annotations in, an SVG figure out."""

from collections.abc import Sequence
from html import escape

import numpy as np

from k25_pipelines.sample import picture
from k25_pipelines.sample.annotations import Annotation
from k25_pipelines.sample.picture import COLOURS

SHOWN_SIDE = 224
"""Longer side of a picture on the page [CSS pixels]."""
KEPT_SIDE = 448
"""Longer side of the pixels that the page holds, at most: sharp on a screen of twice the density [pixels]."""
FIXED = "vector-effect=non-scaling-stroke fill=none"
TOKEN_GRID = "stroke=#fff stroke-opacity=.28 stroke-width=1"


def figure(
    pixels: np.ndarray,
    annotations: Sequence[Annotation] = (),
    *,
    caption: str = "",
    side: int = SHOWN_SIDE,
    token_pixels: int = 0,
) -> str:
    """Return a figure of a picture: boxes, outlines, keypoints with their skeleton, points and directions drawn.

    What a mark is called shows where the pointer rests on it. A hidden keypoint is small and a seen one large; of a
    line of text a dot stands at its first corner.

    Args:
        pixels: uint8 [H, W, 3].
        annotations: in pixel centres of `pixels`.
        caption: words below it.
        side: longer side on the page [CSS pixels].
        token_pixels: side of the squares that become one token, drawn as a fine grid; 0: no grid [pixels].
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    marks = "".join(_mark(one, COLOURS[place % len(COLOURS)]) for place, one in enumerate(annotations))
    if token_pixels:
        down = "".join(f"M{x - 0.5:g} -0.5V{height - 0.5:g}" for x in range(token_pixels, width, token_pixels))
        across = "".join(f"M-0.5 {y - 0.5:g}H{width - 0.5:g}" for y in range(token_pixels, height, token_pixels))
        marks = f"<path d='{down}{across}' {FIXED} {TOKEN_GRID} />{marks}"
    smooth = "" if scale < 2 else " style='image-rendering:pixelated'"
    size = f"width='{max(1, round(width * scale))}' height='{max(1, round(height * scale))}'"
    address = picture.data_uri(picture.thumbnail(pixels, side=KEPT_SIDE), quality=85)
    image = (
        f"<image href='{address}' x=-0.5 y=-0.5 width='{width}' height='{height}'{smooth} preserveAspectRatio=none />"
    )
    drawing = f"<svg viewBox='-0.5 -0.5 {width} {height}' {size}>{image}{marks}</svg>"
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawing}{told}</figure>"


def legend(annotations: Sequence[Annotation], *, most: int = 12) -> str:
    """Return the names of what is marked, each with the colour of its mark."""
    dots = [
        f"<span class=chip><i style='background:{COLOURS[place % len(COLOURS)]}'></i>{escape(one.label)}</span>"
        for place, one in enumerate(annotations[:most])
    ]
    left = f"<span class=chip>and {len(annotations) - most} more</span>" if len(annotations) > most else ""
    return "".join(dots) + left


def _mark(one: Annotation, colour: str) -> str:
    shapes = []
    line = f"{FIXED} stroke='{colour}' stroke-width=2 stroke-linejoin=round"
    for polygon in one.polygons:
        places = " ".join(f"{x:.2f},{y:.2f}" for x, y in polygon.tolist())
        filled = line.replace("fill=none", f"fill='{colour}' fill-opacity=.18")
        shapes.append(f"<polygon points='{places}' {filled} />")
        if one.is_text and len(polygon):
            shapes.append(_dot(polygon[0], colour, size=7))
    if one.box is not None:
        x0, y0, x1, y1 = one.box.tolist()
        dashed = " stroke-dasharray='4 3'" if one.polygons else ""
        size = f"width='{max(0, x1 - x0):.2f}' height='{max(0, y1 - y0):.2f}'"
        shapes.append(f"<rect x='{x0:.2f}' y='{y0:.2f}' {size} {line}{dashed} />")
        if one.angle is not None:
            shapes.append(_direction(one.box, one.angle, line))
    if one.keypoints is not None:
        shapes.append(_keypoints(one, colour, line))
    if one.point is not None:
        shapes.append(_dot(one.point, "#fff", size=11) + _dot(one.point, colour, size=8))
    return f"<g><title>{escape(one.label)}</title>{''.join(shapes)}</g>"


def _keypoints(one: Annotation, colour: str, line: str) -> str:
    assert one.keypoints is not None
    places, seen = one.keypoints[:, :2].tolist(), one.keypoints[:, 2].tolist()
    bones = [
        f"<path d='M{places[a][0]:.2f} {places[a][1]:.2f}L{places[b][0]:.2f} {places[b][1]:.2f}' {line} />"
        for a, b in one.skeleton
        if seen[a] and seen[b]
    ]
    dots = [_dot(place, colour, size=8 if shown > 1 else 4) for place, shown in zip(places, seen, strict=True) if shown]
    return "".join(bones + dots)


def _direction(box: np.ndarray, angle: float, line: str) -> str:
    middle, reach = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max()) / 2
    tip = middle + reach * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    return f"<path d='M{middle[0]:.2f} {middle[1]:.2f}L{tip[0]:.2f} {tip[1]:.2f}' {line} />"


def _dot(place: Sequence[float] | np.ndarray, colour: str, *, size: int) -> str:
    """Return a disc that keeps its size on the screen: a line of no length with round ends."""
    x, y = float(place[0]), float(place[1])
    return f"<path d='M{x:.2f} {y:.2f}h0' {FIXED} stroke='{colour}' stroke-width={size} stroke-linecap=round />"
