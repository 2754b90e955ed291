"""A sample to words: the only renderer, for training, rollouts and evaluation. Plain data in, spans out.

A span is plain words, one special token, or the place of a vision item. Which spans a model
learns to write stands in the span; markers and pads of media are never among them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COORDINATES = 1000
"""Boxes are written in thousandths of the content's width and height: 000 to 999."""

ROLES = ("system", "user", "assistant")


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


def render_text(text: str) -> list[Span]:
    """Return a document: its words and the end of text, all targets."""
    return [*_words(text), _END]


def render_caption(caption: str, *, media: Sequence[Span]) -> list[Span]:
    """Return vision items and the caption to be predicted after them, then the end of text."""
    return [*media, *_words(caption), _END]


def render_grounding(labels: Sequence[str], boxes: np.ndarray, *, media: Sequence[Span]) -> list[Span]:
    """Return vision items, then for each object its label and box, then the end of text.

    Args:
        labels: what each object is.
        boxes: int [n, 4] x0 y0 x1 y1 as `normalised_boxes` gives them.
        media: what `image_media` gave.
    """
    spans = list(media)
    for label, box in zip(labels, boxes, strict=True):
        coordinates = " ".join(f"{int(value):03d}" for value in box)
        spans += [*_words(label), _target("box"), *_words(coordinates), _target("end_box")]
    return [*spans, _END]


def render_messages(
    messages: Sequence[Mapping[str, str]], *, media: Sequence[Span] = (), generate: bool = False
) -> list[Span]:
    """Return a conversation in K2.5's chat template; what the assistant says is the target.

    Args:
        messages: `role` (system, user, assistant), `content`, and of the assistant optionally `thinking`.
        media: vision items, placed before the words of the first user message.
        generate: end with the opening of an assistant's turn, as a rollout is prompted.

    Raises:
        ValueError: a role is none of the three, or media stand in a conversation without a user.
    """
    spans, waiting = [], list(media)
    for message in messages:
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        spans += [Span(special=f"im_{role}"), Span(words=role), Span(special="im_middle")]
        if role == "user":
            spans, waiting = spans + waiting, []
        spans += _turn(message, is_target=role == "assistant")
    if waiting:
        raise ValueError("vision items in a conversation without a user message have no place")
    if generate:
        spans += [Span(special="im_assistant"), Span(words="assistant"), Span(special="im_middle")]
        spans += [Span(special="think")]
    return spans


def image_media(num_images: int = 1) -> list[Span]:
    """Return the places of `num_images` images: markers around the pads of each."""
    return [span for item in range(num_images) for span in _medium("image", item)]


def video_media(seconds: Iterable[float]) -> list[Span]:
    """Return the places of a video's volumes, each after the time of its first frame.

    Args:
        seconds: time of the first frame of each volume, ascending [seconds].
    """
    spans = []
    for item, second in enumerate(seconds):
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
    size = np.array([width, height, width, height], dtype=np.float64)
    fraction = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) + 0.5) / size
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


def _medium(kind: str, item: int) -> list[Span]:
    begin, content, end = (Span(special=name) for name in ("media_begin", "media_content", "media_end"))
    return [begin, Span(words=kind), content, Span(media=item), end]


def _turn(message: Mapping[str, str], *, is_target: bool) -> list[Span]:
    thinking = []
    if message["role"] == "assistant":
        words = [Span(words=message["thinking"], is_target=True)] if message.get("thinking") else []
        thinking = [Span(special="think"), *words, _target("end_think")]
    content = [Span(words=message["content"], is_target=is_target)] if message["content"] else []
    return [*thinking, *content, Span(special="im_end", is_target=is_target)]
