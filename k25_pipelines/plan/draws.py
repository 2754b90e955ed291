"""Sample and epoch -> augmentation parameters, drawn at plan time so that sizes are known before a byte is read."""

from dataclasses import dataclass

import numpy as np

from k25_pipelines.keys import random_bits, random_key, random_unit
from k25_pipelines.plan.size import Profile, resized_size

AUGMENTATIONS = ("resize", "crop", "flip", "colour", "words")

SMALLEST_SCALE = 0.5
"""`resize` scales the sides by a factor between this and 1."""
SMALLEST_AREA = 0.5
"""`crop` keeps at least this part of the area."""
WIDEST_STRETCH = 4 / 3
"""`crop` changes the aspect by a factor of at most this, up or down."""
COLOUR_RANGE = 0.2
"""`colour` multiplies brightness, contrast and saturation by 1 plus or minus at most this."""

DRAW_DTYPES = {
    "crop_x": np.float64,
    "crop_y": np.float64,
    "crop_w": np.float64,
    "crop_h": np.float64,
    "out_w": np.int64,
    "out_h": np.int64,
    "flip": np.bool_,
    "brightness": np.float64,
    "contrast": np.float64,
    "saturation": np.float64,
    "words": np.uint64,
}
"""The columns of the draws and their types, in the order of a segment's table."""

_PLACES = ("scale", "area", "stretch", "x", "y", "flip", "brightness", "contrast", "saturation", "words")


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRule:
    """What the draws of one source depend on, besides the sample."""

    seed: int
    dataset: str
    augment: tuple[str, ...] = ()
    """Names out of AUGMENTATIONS."""
    flip_safe: bool = True
    """False where a mirrored sample means something else: then `flip` never does."""


def draw(
    rule: DrawRule,
    line: np.ndarray,
    epoch: np.ndarray,
    *,
    width: np.ndarray,
    height: np.ndarray,
    max_tokens: np.ndarray | int,
    profile: Profile,
) -> dict[str, np.ndarray]:
    """Return the augmentation of each sample, a column a parameter (DRAW_DTYPES).

    Crops are whole source pixels after EXIF orientation; `out_w`, `out_h` are the content size
    before padding [pixels]; colours are factors; `words` is 64 random bits for the choice of
    words, 0 for the plain ones. Without augmentation: the full frame at the published size.
    Samples without media (width 0) have no crop and no size.

    Args:
        rule: seed, dataset and what is allowed.
        line: int64 [n], the samples' lines.
        epoch: int64 [n].
        width: int64 [n], as displayed, 0 without media [pixels].
        height: the same.
        max_tokens: scaling budget, for all or for each [tokens].
        profile: the model's.
    """
    key = random_key("draws", rule.seed, rule.dataset)
    line, epoch = np.asarray(line, dtype=np.int64), np.asarray(epoch, dtype=np.int64)

    def unit(place: str) -> np.ndarray:
        return random_unit(key, line, epoch, _PLACES.index(place))

    columns: dict[str, np.ndarray] = {name: np.zeros(line.shape, dtype=dtype) for name, dtype in DRAW_DTYPES.items()}
    for name in ("brightness", "contrast", "saturation"):
        colour = "colour" in rule.augment
        columns[name] = 1.0 + COLOUR_RANGE * (2.0 * unit(name) - 1.0) if colour else np.ones(line.shape)
    if "words" in rule.augment:
        columns["words"] = random_bits(key, line, epoch, _PLACES.index("words")) | np.uint64(1)
    width, height = np.asarray(width, dtype=np.int64), np.asarray(height, dtype=np.int64)
    if not width.any():
        return columns
    if "flip" in rule.augment and rule.flip_safe:
        columns["flip"] = (unit("flip") < 0.5) & (width > 0)
    crop_w, crop_h = width, height
    if "crop" in rule.augment:
        crop_w, crop_h = _crop_size(width, height, unit("area"), unit("stretch"))
    columns["crop_x"] = np.floor(unit("x") * (width - crop_w + 1)) if "crop" in rule.augment else columns["crop_x"]
    columns["crop_y"] = np.floor(unit("y") * (height - crop_h + 1)) if "crop" in rule.augment else columns["crop_y"]
    columns["crop_w"], columns["crop_h"] = crop_w.astype(np.float64), crop_h.astype(np.float64)
    out_w, out_h = resized_size(crop_w, crop_h, max_tokens, profile)
    if "resize" in rule.augment:
        scale = SMALLEST_SCALE + (1.0 - SMALLEST_SCALE) * unit("scale")
        out_w, out_h = _shrunk(out_w, scale, profile), _shrunk(out_h, scale, profile)
    columns["out_w"], columns["out_h"] = out_w * (width > 0), out_h * (width > 0)
    return columns


def _crop_size(
    width: np.ndarray, height: np.ndarray, area_unit: np.ndarray, stretch_unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return crop sizes of at least SMALLEST_AREA of the frame: a side that would leave it gives to the other."""
    area = SMALLEST_AREA + (1.0 - SMALLEST_AREA) * area_unit
    low = 1.0 / WIDEST_STRETCH
    stretch = low + (WIDEST_STRETCH - low) * stretch_unit
    part_w = np.clip(np.sqrt(area * stretch), area, 1.0)
    crop_w = np.minimum(width, np.ceil(width * part_w).astype(np.int64))
    crop_h = np.minimum(height, np.ceil(height * (area / part_w)).astype(np.int64))
    return crop_w, crop_h


def _shrunk(side: np.ndarray, scale: np.ndarray, profile: Profile) -> np.ndarray:
    """Return the sides scaled down, but not below one merged patch."""
    return np.maximum(np.minimum(side, profile.patch * profile.merge), (side * scale).astype(np.int64))
