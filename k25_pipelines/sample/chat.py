"""A sample to words: the only renderer, for training, rollouts and evaluation. Plain data in, spans out.

A span is plain words, one special token, or the place of a vision item. Which spans a model
learns to write stands in the span; markers and pads of media are never among them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RENDERING = "chat-1"
"""Changes whenever the same sample would give other words: token lengths and cached ids are kept under it."""

COORDINATES = 1000
"""Coordinates are written in thousandths of the content's width and height: 000 to 999."""

PROMPTS = ("", "Describe the image.", "What is shown here?", "Caption:", "Write a caption for this.")
"""Words between media and caption, never predicted; the plain one is none."""
OBJECT_WORDINGS = ("label, place", "place, label", "label, its places", "count and label, its places")
"""How objects are listed; the plain one first. The last two keep objects of one label together."""
LINE_WORDINGS = ("words, place", "place, words", "words")
"""How lines of text are listed; the plain one first."""

ROLES = {"system": "im_system", "user": "im_user", "assistant": "im_assistant", "tool": "im_system"}
"""Role -> the special token that opens its turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One piece of a rendered sample; exactly one of words, special and media says what it is."""

    words: str = ""
    """Plain words; a special token spelled in them stays words."""
    special: str = ""
    """Name of a special token, as in `tokens.SPECIAL_TOKENS`."""
    media: int = -1
    """Which vision item of the sample: an image, or one volume of a video."""
    is_target: bool = False
    """Whether the model is to predict it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """An object, point or line of text as it is written."""

    label: str
    """What it is, or what it reads."""
    places: tuple[np.ndarray, ...] = ()
    """int64 [k] numbers of each place, flat, in thousandths."""
    parts: tuple[tuple[str, np.ndarray], ...] = ()
    """Name and point of each keypoint."""


def render_text(text: str) -> list[Span]:
    """Return a document: its words and the end of text, all targets."""
    return [*_words(text), _END]


def render_caption(caption: str, *, media: Sequence[Span], prompt: str = "") -> list[Span]:
    """Return vision items and the caption to be predicted after them, then the end of text.

    Args:
        caption: what is to be predicted.
        media: the places of the vision items.
        prompt: words between them, not predicted.
    """
    return [*media, *([Span(words=prompt)] if prompt else []), *_words(caption), _END]


def render_grounding(labels: Sequence[str], boxes: np.ndarray, *, media: Sequence[Span]) -> list[Span]:
    """Return vision items, then for each object its label and box, then the end of text.

    Args:
        labels: what each object is.
        boxes: int [n, 4] x0 y0 x1 y1 as `normalised_boxes` gives them.
        media: what `image_media` gave.
    """
    objects = [Written(label=label, places=(box,)) for label, box in zip(labels, boxes, strict=True)]
    return render_objects(objects, media=media)


def render_objects(objects: Sequence[Written], *, media: Sequence[Span], wording: int = 0) -> list[Span]:
    """Return vision items, then the objects with their places, then the end of text.

    A place is its numbers between markers: 2 are a point, 4 a box, 5 a box and the direction it
    faces in degrees, 6 or more a polygon. Keypoints follow their object, name and point in the order of the wording.

    Args:
        objects: as they are to be written, places in thousandths.
        media: what `image_media` gave.
        wording: which of OBJECT_WORDINGS.
    """
    spans = list(media)
    if wording < 2:
        for one in objects:
            label = _words(one.label if one.places else f"{one.label}: ")  # else it would run into a keypoint's name
            places = [mark for place in one.places for mark in _place(place)]
            spans += [*label, *places] if wording == 0 else [*places, *label]
            spans += _parts(one, name_first=wording == 0)
        return [*spans, _END]
    for label in dict.fromkeys(one.label for one in objects):
        alike = [one for one in objects if one.label == label]
        is_bare = not any(one.places for one in alike)
        spans += _words((f"{len(alike)} {label}" if wording == 3 else label) + (": " if is_bare else ""))
        for one in alike:
            spans += [*(mark for place in one.places for mark in _place(place)), *_parts(one, name_first=True)]
    return [*spans, _END]


def render_lines(lines: Sequence[Written], *, media: Sequence[Span], wording: int = 0) -> list[Span]:
    """Return vision items, then the lines of text with their places, then the end of text.

    Args:
        lines: words and places, in reading order.
        media: what `image_media` gave.
        wording: which of LINE_WORDINGS.
    """
    if wording == 2:
        return [*media, *_words("\n".join(line.label for line in lines)), _END]
    return render_objects(lines, media=media, wording=wording)


def render_interleaved(pieces: Sequence[str | Sequence[Span]]) -> list[Span]:
    """Return a document of words and vision items in their order, its words and the end of text targets."""
    spans = []
    for piece in pieces:
        spans += _words(piece) if isinstance(piece, str) else piece
    return [*spans, _END]


def render_messages(
    messages: Sequence[Mapping[str, Any]], *, media: Sequence[Span] = (), generate: bool = False
) -> list[Span]:
    """Return a conversation in K2.5's chat template; what the assistant says is the target.

    Args:
        messages: `role` (of ROLES), `content`, and of the assistant optionally `thinking`.
            Content is words, or pieces: words, and the places of a vision item where it is shown.
        media: vision items, placed before the words of the first user message.
        generate: end with the opening of an assistant's turn, as a rollout is prompted.

    Raises:
        ValueError: a role is none of ROLES, or media stand in a conversation without a user.
    """
    spans, waiting = [], list(media)
    for message in messages:
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        spans += [Span(special=ROLES[role]), Span(words=role), Span(special="im_middle")]
        if role == "user":
            spans, waiting = spans + waiting, []
        spans += _turn(message, is_target=role == "assistant")
    if waiting:
        raise ValueError("vision items in a conversation without a user message have no place")
    if generate:
        spans += [Span(special="im_assistant"), Span(words="assistant"), Span(special="im_middle")]
        spans += [Span(special="think")]
    return spans


def image_media(num_images: int = 1, *, first: int = 0) -> list[Span]:
    """Return the places of `num_images` images, from vision item `first` on: markers around the pads of each."""
    return [span for item in range(first, first + num_images) for span in _medium("image", item)]


def video_media(seconds: Iterable[float], *, first: int = 0) -> list[Span]:
    """Return the places of a video's volumes, each after the time of its first frame.

    Args:
        seconds: time of the first frame of each volume, ascending [seconds].
        first: which vision item of the sample the first volume is.
    """
    spans = []
    for item, second in enumerate(seconds, first):
        spans += [Span(words=timestamp(second)), *_medium("video", item)]
    return spans


def timestamp(seconds: float) -> str:
    """Return `HH:MM:SS.mmm`, milliseconds truncated (a millionth of one forgives binary fractions)."""
    milliseconds = int(seconds * 1000 + 1e-6)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def normalised_boxes(boxes: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Return boxes in thousandths of the content, as they are written.

    A pixel-centre coordinate c lies (c + 0.5) / width of the way from the left edge; that
    fraction times 999, to the nearest whole number, runs from 0 at one edge to 999 at the other.

    Args:
        boxes: float64 [n, 4] xyxy in pixel centres, inside the content.
        width: of the content, without padding [pixels].
        height: of the content, without padding [pixels].

    Returns:
        int64 [n, 4] in [0, 999].
    """
    return normalised_points(np.asarray(boxes).reshape(-1, 2), width=width, height=height).reshape(-1, 4)


def normalised_points(points: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Return points [n, 2] in thousandths of the content, int64 [n, 2], by the rule of `normalised_boxes`."""
    size = np.array([width, height], dtype=np.float64)
    fraction = (np.asarray(points, dtype=np.float64).reshape(-1, 2) + 0.5) / size
    return np.clip(np.floor(fraction * (COORDINATES - 1) + 0.5), 0, COORDINATES - 1).astype(np.int64)


def pixel_boxes(normalised: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Return written boxes as float64 [n, 4] pixel centres of the content: `normalised_boxes` undone."""
    size = np.array([width, height, width, height], dtype=np.float64)
    return np.asarray(normalised, dtype=np.float64).reshape(-1, 4) / (COORDINATES - 1) * size - 0.5


def _target(special: str) -> Span:
    return Span(special=special, is_target=True)


_END = _target("eos")


def _words(text: str) -> list[Span]:
    return [Span(words=text, is_target=True)] if text else []


def _place(numbers: np.ndarray) -> list[Span]:
    return [_target("box"), *_words(" ".join(f"{int(value):03d}" for value in numbers)), _target("end_box")]


def _parts(one: Written, *, name_first: bool) -> list[Span]:
    pairs = [(_words(name), _place(point)) for name, point in one.parts]
    return [span for name, place in pairs for span in ((*name, *place) if name_first else (*place, *name))]


def _medium(kind: str, item: int) -> list[Span]:
    begin, content, end = (Span(special=name) for name in ("media_begin", "media_content", "media_end"))
    return [begin, Span(words=kind), content, Span(media=item), end]


def _turn(message: Mapping[str, Any], *, is_target: bool) -> list[Span]:
    thinking = []
    if message["role"] == "assistant":
        words = [Span(words=message["thinking"], is_target=True)] if message.get("thinking") else []
        thinking = [Span(special="think"), *words, _target("end_think")]
    content = message["content"]
    pieces = [content] if isinstance(content, str) else content
    said = []
    for piece in pieces:
        said += [Span(words=piece, is_target=is_target)] if isinstance(piece, str) and piece else []
        said += [] if isinstance(piece, str) else piece
    return [*thinking, *said, Span(special="im_end", is_target=is_target)]
