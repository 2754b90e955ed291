"""What is marked on an image, and how it follows the pixels: a sample's JSON and a map in, moved annotations out.

In the JSON coordinates count from the first pixel's corner, as COCO's do; here they are pixel centres.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from k25_pipelines.errors import SampleError
from k25_pipelines.sample import polygons
from k25_pipelines.sample.geometry import Affine, boxes_from_coco
from k25_pipelines.sample.words import mirrored_order, mirrored_words

MIN_SHARE = 0.3
"""An object of which less than this share of the area is left in the crop is dropped."""
MIN_TEXT_SHARE = 0.9
"""A line of text of which less than this share of the area is left is dropped: its words can no longer be read."""

GEOMETRY = ("bbox", "segmentation", "polygon", "keypoints", "point")
"""Keys of an annotation that place it on the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """One object, point or line of text on an image. Coordinates are pixel centres."""

    label: str
    """What it is; of a line of text its words."""
    box: np.ndarray | None = None
    """float64 [4] xyxy."""
    polygons: tuple[np.ndarray, ...] = ()
    """float64 [k, 2] vertices each; of a line of text its four corners, the first at the first letter's upper left."""
    keypoints: np.ndarray | None = None
    """float64 [k, 3] x, y and visibility: 0 unknown or outside, 1 hidden, 2 seen."""
    names: tuple[str, ...] = ()
    """Of the keypoints."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of places of keypoints that are joined."""
    point: np.ndarray | None = None
    """float64 [2]."""
    angle: float | None = None
    """Orientation: clockwise from the x axis to its direction [degrees]."""
    is_text: bool = False
    """A line of text: `label` is what it reads, and nobody may change it."""


def annotations_of(inline: Mapping[str, Any], *, name: str) -> list[Annotation]:
    """Return what a sample's JSON marks on its image; annotations without geometry, such as captions, are left out.

    Args:
        inline: the sample's JSON; `annotations` is a list of objects with `label` or `category`, or
            `text` of a line of text, and with any of GEOMETRY, `keypoint_names`, `skeleton` (places from 1,
            as COCO's) and `angle`. Run-length masks are passed over, as are polygons without area.
        name: what the sample is called in errors.

    Raises:
        SampleError: an object has no label, or its geometry is not what its key says.
    """
    found = inline.get("annotations") or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise SampleError(f"{name}: 'annotations' is not a list of objects")
    return [_annotation(item, name) for item in found if any(item.get(key) is not None for key in GEOMETRY)]


def moved(
    annotations: Sequence[Annotation], affine: Affine, *, flip: bool, simple: bool = False
) -> list[tuple[int, Annotation]]:
    """Return what is left of the annotations in the output, each with its place in the input.

    Boxes and polygons are cut at the output's edges (the box of an object that is turned or cut is
    that of its polygons, where it has any); what is left of less than MIN_SHARE of the moved area
    (MIN_TEXT_SHARE of a line of text) is dropped. Points outside are dropped, keypoints outside
    are unknown. A mirror exchanges the words for sides in labels, and keypoints by their names.

    Args:
        annotations: in source pixel centres.
        affine: the map of the pixels.
        flip: whether the map mirrors.
        simple: give no polygon more vertices than it has in the source (`polygons.simplified`).
    """
    with_box = [place for place, one in enumerate(annotations) if one.box is not None]
    boxes = np.array([annotations[place].box for place in with_box]).reshape(-1, 4)
    cut, kept, shares = _cut_boxes(boxes, affine)
    boxes_left = {with_box[place]: (box, share) for place, box, share in zip(kept, cut, shares, strict=True)}
    left = ((place, _moved(one, affine, boxes_left.get(place), simple=simple)) for place, one in enumerate(annotations))
    return [(place, mirrored(one) if flip else one) for place, one in left if one is not None]


def augmented_boxes(boxes: np.ndarray, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes that are left in the output, cut at its edges, and which of the input they are.

    A box is dropped if less than MIN_SHARE of its moved area lies inside, or if it has no area; of
    one that is turned by a small angle the envelope of what lies inside is left.

    Args:
        boxes: float64 [n, 4] xyxy in source pixel centres.
        affine: the map of the pixels.

    Returns:
        float64 [m, 4] in output pixel centres and int64 [m] ascending indices into `boxes`.
    """
    cut, kept, shares = _cut_boxes(boxes, affine)
    enough = shares >= MIN_SHARE - 1e-9
    return cut[enough], kept[enough]


def mirrored(annotation: Annotation) -> Annotation:
    """Return the annotation with its words and keypoints as a mirror names them, its coordinates as they were."""
    label = annotation.label if annotation.is_text else mirrored_words(annotation.label)
    if annotation.keypoints is None or not annotation.names:
        return replace(annotation, label=label)
    return replace(annotation, label=label, keypoints=annotation.keypoints[mirrored_order(annotation.names)])


def _moved(one: Annotation, affine: Affine, box: tuple[np.ndarray, float] | None, *, simple: bool) -> Annotation | None:
    """Return an annotation in the output, or None if too little is left of it; `box` is its cut box and share."""
    whole = affine.polygons(one.polygons)
    cut = [polygons.clipped(polygon, width=affine.width, height=affine.height) for polygon in whole]
    share = 1.0 if box is None else box[1]
    if whole:
        share = sum(map(polygons.area, cut)) / sum(map(polygons.area, whole))
    if (one.box is not None and box is None) or share < (MIN_TEXT_SHARE if one.is_text else MIN_SHARE) - 1e-9:
        return None
    if simple:
        cut = [polygons.simplified(left, len(source)) for left, source in zip(cut, whole, strict=True)]
    cut = [polygon for polygon in cut if polygons.area(polygon) > 0]
    edge = None if box is None else box[0]
    if edge is not None and cut and (share < 1 or not _is_straight(affine)):
        corners = np.concatenate(cut)
        edge = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    keypoints, point = _moved_keypoints(one.keypoints, affine), _moved_point(one.point, affine)
    if edge is None and not cut and point is None and (keypoints is None or not keypoints[:, 2].any()):
        return None
    angle = None if one.angle is None else _turned(one.angle, affine)
    return replace(one, box=edge, polygons=tuple(cut), keypoints=keypoints, point=point, angle=angle)


def _moved_point(point: np.ndarray | None, affine: Affine) -> np.ndarray | None:
    if point is None:
        return None
    place = affine.points(point)
    return place[0] if _inside(place, affine)[0] else None


def _moved_keypoints(keypoints: np.ndarray | None, affine: Affine) -> np.ndarray | None:
    if keypoints is None:
        return None
    places = affine.points(keypoints[:, :2])
    seen = keypoints[:, 2] * _inside(places, affine)
    return np.concatenate([places * (seen > 0)[:, None], seen[:, None]], axis=1)


def _turned(angle: float, affine: Affine) -> float:
    """Return the orientation of the moved direction, in [0, 360)."""
    radians = np.deg2rad(angle)
    x, y = affine.matrix[:2, :2] @ [np.cos(radians), np.sin(radians)]
    return float(np.rad2deg(np.arctan2(y, x)) % 360)


def _cut_boxes(boxes: np.ndarray, affine: Affine) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cut envelopes of boxes with any area left, their places, and the share of the area that is left."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    envelopes = affine.boxes(boxes)
    limits = np.array([affine.width, affine.height, affine.width, affine.height]) - 0.5
    cut = np.clip(envelopes, -0.5, limits)
    whole, left = _areas(envelopes), _areas(cut)
    if not _is_straight(affine):
        quads = affine.points(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
        whole = np.array([polygons.area(quad) for quad in quads])
        left = whole.copy()
        for place in np.flatnonzero((cut != envelopes).any(axis=1)):
            inside = polygons.clipped(quads[place], width=affine.width, height=affine.height)
            left[place] = polygons.area(inside)
            if left[place] > 0:
                cut[place] = np.concatenate([inside.min(axis=0), inside.max(axis=0)])
    kept = np.flatnonzero((whole > 0) & (left > 0))
    return cut[kept], kept, left[kept] / whole[kept]


def _is_straight(affine: Affine) -> bool:
    """Return whether rows and columns stay rows and columns, whichever."""
    x, y = np.abs(affine.matrix[0, :2]), np.abs(affine.matrix[1, :2])
    return max(x[1], y[0]) < 1e-9 * max(x[0], y[1]) or max(x[0], y[1]) < 1e-9 * max(x[1], y[0])


def _inside(places: np.ndarray, affine: Affine) -> np.ndarray:
    return np.all((places >= -0.5) & (places <= np.array([affine.width, affine.height]) - 0.5), axis=1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def _annotation(item: Mapping[str, Any], name: str) -> Annotation:
    is_text = item.get("text") is not None
    label = item["text"] if is_text else item.get("label", item.get("category"))
    if not isinstance(label, str):
        raise SampleError(f"{name}: an object has no label, or one that is not words")
    keypoints, names = _keypoints(item, name)
    box, point = _numbers(item.get("bbox"), "a bbox", name, 4), _numbers(item.get("point"), "a point", name, 2)
    angle = _numbers(item.get("angle"), "an angle", name, 1)
    return Annotation(
        label=label,
        box=None if box is None else boxes_from_coco(box)[0],
        polygons=_polygons(item, name),
        keypoints=keypoints,
        names=names,
        skeleton=_skeleton(item.get("skeleton"), len(names), name),
        point=None if point is None else point - 0.5,
        angle=None if angle is None else float(angle[0]),
        is_text=is_text,
    )


def _polygons(item: Mapping[str, Any], name: str) -> tuple[np.ndarray, ...]:
    rings = item.get("segmentation")
    rings = rings if isinstance(rings, list) else []  # a run-length mask is an object
    if item.get("polygon") is not None:
        rings = [*rings, item["polygon"]]
    found = [_numbers(ring, "a polygon", name) for ring in rings]
    if any(ring is not None and ring.size % 2 for ring in found):
        raise SampleError(f"{name}: a polygon has an odd number of coordinates")
    outlines = [ring.reshape(-1, 2) - 0.5 for ring in found if ring is not None]
    return tuple(outline for outline in outlines if polygons.area(outline) > 0)


def _keypoints(item: Mapping[str, Any], name: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    flat = _numbers(item.get("keypoints"), "keypoints", name)
    if flat is None or not flat.size:
        return None, ()
    names = item.get("keypoint_names") or []
    is_names = isinstance(names, list) and all(isinstance(one, str) for one in names)
    if flat.size % 3 or not is_names or (names and len(names) != flat.size // 3):
        raise SampleError(f"{name}: keypoints are not x, y, visibility for each of the keypoint_names")
    keypoints = flat.reshape(-1, 3)
    return np.where(keypoints[:, 2:] > 0, keypoints - [0.5, 0.5, 0.0], 0.0), tuple(names)


def _skeleton(pairs: Any, num_names: int, name: str) -> tuple[tuple[int, int], ...]:
    places = _numbers(pairs, "a skeleton", name)
    if places is None or not places.size:
        return ()
    if places.size % 2 or places.min() < 1 or places.max() > num_names:
        raise SampleError(f"{name}: a skeleton is not pairs of places from 1 to {num_names}")
    return tuple((int(a) - 1, int(b) - 1) for a, b in places.reshape(-1, 2))


def _numbers(value: Any, what: str, name: str, count: int | None = None) -> np.ndarray | None:
    """Return the finite numbers of a JSON value, flat; None where there is none."""
    if value is None:
        return None
    try:
        numbers = np.array(value, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise SampleError(f"{name}: {what} is not {count or 'a list of'} numbers ({error})") from error
    if (count is not None and numbers.size != count) or not np.isfinite(numbers).all():
        raise SampleError(f"{name}: {what} is not {count or 'a list of'} numbers, or not finite")
    return numbers
