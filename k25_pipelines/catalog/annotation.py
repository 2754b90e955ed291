"""What annotations may say, and how many of which kind there are: plain JSON data in, a fault or counts out.

An annotation is {"bbox": [x, y, w, h], "label" or "category": "cup", "segmentation": [[x0, y0, x1, y1,
...], ...], "keypoints": [x, y, v, ...], "keypoint_names": [...], "point": [x, y], "text": "STOP" with a
"polygon": [x0, y0, ...] or bbox, "angle": degrees clockwise, "caption": "..."}; coordinates are COCO's:
pixels from the corner of the image as displayed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {
    "bbox": "boxes",
    "segmentation": "polygons",
    "keypoints": "keypoints",
    "point": "points",
    "text": "texts",
    "angle": "angles",
    "caption": "captions",
}
"""Field of an annotation -> what it is counted as."""
WORDS = ("label", "category", "text", "caption")


def annotation_fault(record: Mapping) -> str:
    """Return what is wrong with the annotations and captions of a record, with field and value; "" if nothing is."""
    annotations, captions = record.get("annotations"), record.get("captions")
    if captions is not None and not _is_list_of(captions, str):
        return f"'captions' is {_shown(captions)}, expected a list of strings"
    if annotations is None:
        return ""
    if not _is_list_of(annotations, Mapping):
        return f"'annotations' is {_shown(annotations)}, expected a list of objects"
    for number, annotation in enumerate(annotations):
        for field, expected in _faults(annotation):
            return f"annotations[{number}].{field} is {_shown(annotation[field])}, expected {expected}"
    return ""


def without_rle(annotations: Sequence[Mapping]) -> tuple[list[dict], int]:
    """Return annotations without the segmentations that are run-length encoded masks, and how many those were."""
    kept, num_masks = [], 0
    for annotation in annotations:
        if isinstance(annotation.get("segmentation"), Mapping):
            annotation = {field: value for field, value in annotation.items() if field != "segmentation"}
            num_masks += 1
        kept.append(dict(annotation))
    return kept, num_masks


def cleaned(record: Mapping) -> dict:
    """Return a record whose annotations hold no run-length encoded masks; `left_out` says how many it held."""
    annotations: Any = record.get("annotations")
    if not _is_list_of(annotations, Mapping):
        return dict(record)
    kept, num_masks = without_rle(annotations)
    return {**record, "annotations": kept, **({"left_out": {"rle": num_masks}} if num_masks else {})}


def annotation_counts(record: Mapping) -> dict[str, int]:
    """Return how many annotations of each kind a record has, by the names of `KINDS`."""
    counts: Counter[str] = Counter()
    for annotation in record.get("annotations") or ():
        counts.update(KINDS[field] for field in KINDS if annotation.get(field) not in (None, []))
    counts.update({"captions": len(record.get("captions") or ()) + bool(record.get("caption"))})
    counts.update({f"{name}_left_out": number for name, number in (record.get("left_out") or {}).items()})
    return {name: number for name, number in sorted(counts.items()) if number}


def annotation_words(record: Mapping) -> int:
    """Return the length of a record's labels, texts and captions together [characters]."""
    words = [annotation.get(field) for annotation in record.get("annotations") or () for field in WORDS]
    return sum(len(word) for word in [*words, record.get("caption")] if isinstance(word, str))


def _faults(annotation: Mapping):
    """Yield each field that is not what it should be, and what that is."""
    for field in WORDS:
        if annotation.get(field) is not None and not isinstance(annotation[field], str):
            yield field, "a string"
    for field, count in (("bbox", 4), ("point", 2)):
        if field in annotation and not (_is_numbers(annotation[field]) and len(annotation[field]) == count):
            yield field, f"{count} finite numbers"
    if "angle" in annotation and not _is_number(annotation["angle"]):
        yield "angle", "a finite number of degrees"
    if "polygon" in annotation and not _is_polygon(annotation["polygon"]):
        yield "polygon", "[x0, y0, x1, y1, x2, y2, ...]"
    outline = annotation.get("segmentation")
    if not isinstance(outline, Mapping | None) and not (_is_list_of(outline, list) and all(map(_is_polygon, outline))):
        yield "segmentation", "a list of polygons [x0, y0, x1, y1, x2, y2, ...]"
    yield from _keypoint_faults(annotation)


def _keypoint_faults(annotation: Mapping):
    points, names = annotation.get("keypoints"), annotation.get("keypoint_names")
    if points is not None and not (_is_numbers(points) and len(points) % 3 == 0):
        yield "keypoints", "[x, y, visibility, ...]"
    elif names is not None and not (_is_list_of(names, str) and len(names) == len(points or ()) // 3):
        yield "keypoint_names", f"{len(points or ()) // 3} strings, one a keypoint"


def _is_polygon(value: Any) -> bool:
    return _is_numbers(value) and len(value) >= 6 and len(value) % 2 == 0


def _is_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
