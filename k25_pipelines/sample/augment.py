"""Pixels, boxes and words under the planned draws: what was drawn at plan time in, the augmented sample out.

Every draw comes from the plan; nothing here is random. Geometry is one `Affine`, colour comes after
resampling, and words that name sides follow the mirror.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from k25_pipelines.sample.geometry import Affine, crop_resize_flip

MIN_BOX_SHARE = 0.3
"""A box of which less than this share of the area is left in the crop is dropped."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

_SIDE = re.compile(r"(?<![^\W\d_])(left|right)(?![^\W\d_])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The augmentation of one sample, as its plan row states it."""

    crop: tuple[float, float, float, float]
    """x, y, width, height of the part that is kept, from the upper left corner, upright [pixels]."""
    width: int
    """Of the content after resizing, without padding [pixels]."""
    height: int
    """Of the content after resizing, without padding [pixels]."""
    flip: bool = False
    """Mirror left to right."""
    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor about the mean grey."""
    saturation: float = 1.0
    """Factor about each pixel's grey."""
    words: int = 0
    """Bits for the choice of words; 0 keeps the plain ones."""

    @property
    def affine(self) -> Affine:
        """The map from upright source pixels to the content."""
        return crop_resize_flip(self.crop, width=self.width, height=self.height, flip=self.flip)


def draws_of_row(row: Mapping) -> Draws:
    """Return the draws that stand in a plan row."""
    return Draws(
        crop=(row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"]),
        width=row["out_w"],
        height=row["out_h"],
        **{name: row[name] for name in ("flip", "brightness", "contrast", "saturation", "words")},
    )


def augmented_colour(pixels: np.ndarray, draws: Draws) -> np.ndarray:
    """Return pixels after brightness, contrast and saturation, in this order, in float32.

    With g(p) = 0.299 red + 0.587 green + 0.114 blue and m the mean of g over all pixels after brightness:
        p1 = brightness * p;  p2 = m + contrast * (p1 - m);  p3 = g(p2) + saturation * (p2 - g(p2)),
    clipped to [0, 255] and rounded to the nearest level, ties to even. Factors of 1 change no bit.

    Args:
        pixels: uint8 [..., H, W, 3]; frames of one video share m.
        draws: the three factors.
    """
    if (draws.brightness, draws.contrast, draws.saturation) == (1.0, 1.0, 1.0):
        return pixels
    brightness, contrast, saturation = (np.float32(f) for f in (draws.brightness, draws.contrast, draws.saturation))
    sums = pixels.reshape(-1, 3).sum(axis=0, dtype=np.int64)  # exact, so the mean depends on no order
    mean = np.float32(draws.brightness * float(sums @ LUMA.astype(np.float64)) / (pixels.size // 3))
    levels = pixels.astype(np.float32)
    levels *= brightness
    levels -= mean
    levels *= contrast
    levels += mean
    grey = (levels[..., 0] * LUMA[0] + levels[..., 1] * LUMA[1] + levels[..., 2] * LUMA[2])[..., None]
    levels -= grey
    levels *= saturation
    levels += grey
    return np.rint(np.clip(levels, 0, 255, out=levels), out=levels).astype(np.uint8)


def augmented_boxes(boxes: np.ndarray, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes that are left in the output, clipped to it, and which of the input they are.

    A box is dropped if less than MIN_BOX_SHARE of its moved area lies inside, or if it has no area.

    Args:
        boxes: float64 [n, 4] xyxy in source pixel centres.
        affine: the map of the pixels.

    Returns:
        float64 [m, 4] in output pixel centres and int64 [m] ascending indices into `boxes`.
    """
    moved = affine.boxes(boxes)
    limits = np.array([affine.width, affine.height, affine.width, affine.height]) - 0.5
    clipped = np.clip(moved, -0.5, limits)
    whole = _areas(moved)
    kept = np.flatnonzero((whole > 0) & (_areas(clipped) >= MIN_BOX_SHARE * whole - 1e-9))
    return clipped[kept], kept


def mirrored_words(text: str) -> str:
    """Return the words with `left` and `right` exchanged, whole words in any case, also in `left_eye`."""
    return _SIDE.sub(lambda found: _other_side(found.group()), text)


def mirrored_order(names: Sequence[str]) -> list[int]:
    """Return which keypoint stands at each place after a mirror: the one of the opposite side, where there is one."""
    places = {name: place for place, name in enumerate(names)}
    return [places.get(mirrored_words(name), place) for place, name in enumerate(names)]


def chosen(variants: Sequence[str], words: int) -> str:
    """Return one of several wordings by its draw; the first for 0."""
    return variants[(words >> 1) % len(variants)]  # the planner sets the lowest bit of every draw


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
