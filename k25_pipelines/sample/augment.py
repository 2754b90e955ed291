"""Pixels under the planned draws: what was drawn at plan time in, the augmented pixels and their map out.

Every draw comes from the plan; nothing here is random. Geometry is one `Affine`: the kept part is turned
by the small angle, resized, turned by quarters and mirrored, in one resampling. Then come blur,
colour and the marks of JPEG, none of which moves anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
import simplejpeg
from numba import njit

from k25_pipelines.sample.annotations import Annotation
from k25_pipelines.sample.geometry import Affine, crop_resize_flip, flip, quarter_turns, rotation
from k25_pipelines.sample.words import mirror_misleads, pairs_are_whole, turn_misleads

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
FRACTION_BITS = 16
"""Colours are summed in whole numbers of 2^-16 of a level: exact, hence the same on every machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The augmentation of one sample, as its plan row states it."""

    crop: tuple[float, float, float, float]
    """x, y, width, height of the part that is kept, from the upper left corner, upright, before `angle` [pixels]."""
    width: int
    """Of the content after resizing and turning, without padding [pixels]."""
    height: int
    """Of the content after resizing and turning, without padding [pixels]."""
    flip: bool = False
    """Mirror left to right, last of all."""
    turns: int = 0
    """Quarter turns, clockwise."""
    angle: float = 0.0
    """Turn of the content about the middle of the crop, clockwise [degrees]."""
    brightness: float = 1.0
    """Factor."""
    contrast: float = 1.0
    """Factor about the mean grey."""
    saturation: float = 1.0
    """Factor about each pixel's grey."""
    blur: float = 0.0
    """Sigma of a Gaussian; 0: none [output pixels]."""
    jpeg: int = 0
    """Quality of a JPEG that the pixels go through; 0: none."""
    words: int = 0
    """Bits for the choice of words; 0 keeps the plain ones."""
    noise: int = 0
    """Bits for noise in the words; 0 keeps them."""

    @property
    def affine(self) -> Affine:
        """The map from upright source pixels to the content."""
        width, height = (self.height, self.width) if self.turns % 2 else (self.width, self.height)
        whole = crop_resize_flip(self.crop, width=width, height=height)
        if self.angle:
            x, y, crop_width, crop_height = self.crop
            middle = x + (crop_width - 1) / 2, y + (crop_height - 1) / 2
            whole = whole.after(rotation(self.angle, width=width, height=height, about=middle))
        if self.turns % 4:
            whole = quarter_turns(self.turns, width=width, height=height).after(whole)
        return flip(self.width, self.height).after(whole) if self.flip else whole

    def is_augmented(self, width: int, height: int) -> bool:
        """Return whether the pixels of an image of this size are more than resized and mirrored [pixels]."""
        kept = (self.crop, self.turns, self.angle, self.blur, self.jpeg)
        colours = (self.brightness, self.contrast, self.saturation)
        return kept != ((0, 0, width, height), 0, 0, 0, 0) or colours != (1, 1, 1)


def draws_of_row(row: Mapping) -> Draws:
    """Return the draws that stand in a plan row."""
    same = ("flip", "turns", "angle", "brightness", "contrast", "saturation", "blur", "jpeg", "words", "noise")
    return Draws(
        crop=(row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"]),
        width=row["out_w"],
        height=row["out_h"],
        **{name: row[name] for name in same},
    )


def settled(draws: Draws, *, texts: Iterable[str], annotations: Iterable[Annotation]) -> Draws:
    """Return the draws without a mirror or quarter turn that would change what the sample says.

    No mirror where the image shows lines of text, where keypoints have no names or a side without
    its opposite, or where the words would mislead (`words.mirror_misleads`). No quarter turn where
    words or labels name directions (`words.turn_misleads`). Neither changes a count of tokens or
    patches: without an odd turn width and height change places.

    Args:
        draws: as planned.
        texts: every wording of the sample, chosen or not.
        annotations: what is marked on its image.
    """
    if not draws.flip and not draws.turns:
        return draws
    annotations = list(annotations)
    said = [*texts, *(one.label for one in annotations if not one.is_text)]
    if draws.flip and (any(map(_has_no_mirror, annotations)) or mirror_misleads(said)):
        draws = replace(draws, flip=False)
    if draws.turns and turn_misleads(said):
        sides = (draws.height, draws.width) if draws.turns % 2 else (draws.width, draws.height)
        draws = replace(draws, turns=0, width=sides[0], height=sides[1])
    return draws


def augmented_pixels(pixels: np.ndarray, draws: Draws) -> np.ndarray:
    """Return uint8 [..., H, W, 3] pixels after blur, colour and JPEG, in this order; shape and places stay.

    Frames of one video are treated alike. Draws that ask for nothing change no bit.
    """
    frames = pixels.reshape(-1, *pixels.shape[-3:])
    if draws.blur:
        reach = 2 * max(1, round(3 * draws.blur)) + 1
        frames = np.stack([cv2.GaussianBlur(frame, (reach, reach), draws.blur) for frame in frames])
    frames = augmented_colour(frames, draws)
    if draws.jpeg:
        frames = np.stack([_through_jpeg(frame, draws.jpeg) for frame in frames])
    return frames.reshape(pixels.shape)


def augmented_colour(pixels: np.ndarray, draws: Draws) -> np.ndarray:
    """Return pixels after brightness, contrast and saturation, in this order.

    With g(p) = 0.299 red + 0.587 green + 0.114 blue and m the mean of g over all pixels after brightness:
        p1 = brightness * p;  p2 = m + contrast * (p1 - m);  p3 = g(p2) + saturation * (p2 - g(p2)),
    rounded to the nearest level and clipped to [0, 255]. So p3 is a sum of four functions of a level, which
    are tabled to 2^-16 of a level. Factors of 1 change no bit.

    Args:
        pixels: uint8 [..., H, W, 3]; frames of one video share m.
        draws: the three factors.
    """
    if (draws.brightness, draws.contrast, draws.saturation) == (1.0, 1.0, 1.0):
        return pixels
    flat = np.ascontiguousarray(pixels).reshape(-1, 3)
    mean = 0.0
    if draws.contrast != 1.0:
        mean = (
            draws.brightness * sum(weight * total for weight, total in zip(LUMA, _sums(flat), strict=True)) / len(flat)
        )
    levels = mean + draws.contrast * (draws.brightness * np.arange(256.0) - mean)
    greys = (1.0 - draws.saturation) * np.array(LUMA)[:, None] * levels
    tables = np.rint(np.concatenate([draws.saturation * levels[None], greys]) * 2**FRACTION_BITS).astype(np.int32)
    return _coloured(flat, tables).reshape(pixels.shape)


@njit(cache=True, nogil=True)
def _sums(flat: np.ndarray) -> tuple[int, int, int]:
    """Return the sums of red, green and blue of uint8 [n, 3]."""
    red, green, blue = 0, 0, 0
    for place in range(len(flat)):
        red += flat[place, 0]
        green += flat[place, 1]
        blue += flat[place, 2]
    return red, green, blue


@njit(cache=True, nogil=True)
def _coloured(flat: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Return uint8 [n, 3]: for each colour its own table's value plus those of red, green and blue for grey."""
    out = np.empty_like(flat)
    half = 1 << (FRACTION_BITS - 1)
    for place in range(len(flat)):
        red, green, blue = flat[place, 0], flat[place, 1], flat[place, 2]
        grey = tables[1, red] + tables[2, green] + tables[3, blue] + half
        out[place, 0] = min(max((tables[0, red] + grey) >> FRACTION_BITS, 0), 255)
        out[place, 1] = min(max((tables[0, green] + grey) >> FRACTION_BITS, 0), 255)
        out[place, 2] = min(max((tables[0, blue] + grey) >> FRACTION_BITS, 0), 255)
    return out


def _through_jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    """Return a frame as a JPEG of this quality, colours halved as in most photographs, gives it back."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=int(quality), colorsubsampling="420")
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)


def _has_no_mirror(annotation: Annotation) -> bool:
    return annotation.is_text or (annotation.keypoints is not None and not _pairs(annotation))


def _pairs(annotation: Annotation) -> bool:
    return bool(annotation.names) and pairs_are_whole(annotation.names)
