"""What is written of a sample's annotations: annotations and a task in, labels with places in thousandths out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from k25_pipelines.errors import SampleError
from k25_pipelines.sample import chat
from k25_pipelines.sample.annotations import Annotation

TASKS = ("boxes", "polygons", "points", "keypoints", "lines")
"""What is written of an object: its box (with its direction, where it has one), its outline, its point, its box and
keypoints; or lines of text. What an object lacks is its box, else its outline, else its point."""


def task_of(inline: Mapping[str, Any], annotations: Sequence[Annotation], *, name: str) -> str:
    """Return which of TASKS a sample is for: what its JSON calls `task`, else what its annotations suggest.

    Lines of text make it `lines`, keypoints `keypoints`; outlines or points where no object has a
    box `polygons` or `points`; else it is `boxes`.

    Raises:
        SampleError: the task is unknown.
    """
    task = inline.get("task")
    if task is not None:
        if task not in TASKS:
            raise SampleError(f"{name}: the task {task!r} is none of {', '.join(TASKS)}")
        return task
    if any(one.is_text for one in annotations):
        return "lines"
    if any(one.keypoints is not None for one in annotations):
        return "keypoints"
    if all(one.box is None for one in annotations):
        return "polygons" if any(one.polygons for one in annotations) else "points"
    return "boxes"


def written(one: Annotation, source: Annotation, task: str, *, width: int, height: int) -> chat.Written | None:
    """Return an annotation as its task writes it, or None if what is to be written of it has left the image.

    Args:
        one: as the model sees it, in pixel centres of the content.
        source: the same as it is stored: what it has decides what is written.
        task: one of TASKS.
        width: of the content [pixels].
        height: of the content [pixels].
    """

    def numbers(points: np.ndarray) -> np.ndarray:
        return chat.normalised_points(points, width=width, height=height).ravel()

    form = _form(source, task)
    places: tuple[np.ndarray, ...] = ()
    if form == "point" and one.point is not None:
        places = (numbers(one.point),)
    elif form == "polygons":
        places = tuple(numbers(polygon) for polygon in one.polygons)
    elif form == "box" and one.box is not None:
        direction = [] if one.angle is None else [round(one.angle) % 360]
        places = (np.concatenate([numbers(one.box), np.array(direction, dtype=np.int64)]),)
    parts = ()
    if one.keypoints is not None and (task == "keypoints" or form == "parts"):
        names = one.names or [str(place) for place in range(1, len(one.keypoints) + 1)]
        known = zip(names, one.keypoints, strict=True)
        parts = tuple((name, numbers(point[:2])) for name, point in known if point[2] > 0)
    return chat.Written(label=one.label, places=places, parts=parts) if places or parts else None


def _form(one: Annotation, task: str) -> str:
    if task == "points" and one.point is not None:
        return "point"
    if task in ("polygons", "lines") and one.polygons:
        return "polygons"
    if one.box is not None:
        return "box"
    if one.polygons:
        return "polygons"
    return "point" if one.point is not None else "parts"
