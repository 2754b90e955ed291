"""Sample and epoch -> augmentation parameters, drawn at plan time so that sizes are known before a byte is read."""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from k25_pipelines.keys import random_key
from k25_pipelines.plan.size import Profile, resized_size

AUGMENTATIONS = ("resize", "crop", "flip", "turn", "rotate", "colour", "blur", "jpeg", "words", "noise")
"""What a recipe may name for a source.

resize: a smaller size within the budget. crop: a part of the frame. flip: a mirror, left to right. turn: by quarter
turns, width and height changing places. rotate: by a small angle, kept inside the frame. colour: brightness, contrast
and saturation. blur: a Gaussian. jpeg: the marks of compression. words: which caption, prompt and wording. noise: of
whitespace and letter case in captions and documents.
"""

SMALLEST_SCALE = 0.5
"""`resize` scales the sides by a factor between this and 1."""
SMALLEST_AREA = 0.5
"""`crop` keeps at least this part of the area."""
WIDEST_STRETCH = 4 / 3
"""`crop` changes the aspect by a factor of at most this, up or down."""
LARGEST_ANGLE = 8.0
"""`rotate` turns by at most this, either way [degrees]."""
STRIP_ANGLE = 20.0
"""`rotate` turns by at most this over the aspect (longer by shorter side), so that it keeps 0.74 of each side."""
COLOUR_RANGE = 0.2
"""`colour` multiplies brightness, contrast and saturation by 1 plus or minus at most this."""
SIGMAS = (0.3, 1.5)
"""`blur` draws its sigma between these, for half of the samples [output pixels]."""
QUALITIES = (40, 95)
"""`jpeg` draws its quality between these, for half of the samples."""

DRAW_DTYPES = {
    "crop_x": np.float64,
    "crop_y": np.float64,
    "crop_w": np.float64,
    "crop_h": np.float64,
    "out_w": np.int64,
    "out_h": np.int64,
    "flip": np.bool_,
    "turns": np.int8,
    "angle": np.float64,
    "brightness": np.float64,
    "contrast": np.float64,
    "saturation": np.float64,
    "blur": np.float64,
    "jpeg": np.int16,
    "words": np.uint64,
    "noise": np.uint64,
}
"""The columns of the draws and their types, in the order of a segment's table."""

PLACES = (
    *("scale", "area", "stretch", "x", "y", "flip", "brightness", "contrast", "saturation", "words"),
    *("turns", "angle", "blur", "jpeg", "noise"),
)
"""What each random number is for; its place is the last counter of its key, so that no draw moves another."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_COLOURS = ("brightness", "contrast", "saturation")
_WORDS = ("words", "noise")


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
    plain: np.ndarray | None = None,
    only_sizes: bool = False,
) -> dict[str, np.ndarray]:
    """Return the augmentation of each sample, a column a parameter (DRAW_DTYPES).

    The crop is the part that is kept, in source pixels after EXIF orientation, before `angle`
    (degrees, clockwise as seen) turns it about its middle; it then lies inside the frame, as it
    does without an angle, so nothing is invented. `turns` are quarter turns, clockwise, after
    that; `flip` mirrors last. `out_w`, `out_h` are the content size of the outcome before padding
    [pixels]. Colours are factors, `blur` a sigma [output pixels] or 0, `jpeg` a quality or 0.
    `words` and `noise` are 64 random bits, 0 for the plain words. Without augmentation: the full
    frame at the published size. Samples without media (width 0) have no crop and no size.

    A quarter turn or mirror that would change what a sample says is given up when it is loaded
    (`sample.augment.settled`); that changes no count, as tokens and patches of w x h are those of h x w.

    Args:
        rule: seed, dataset and what is allowed.
        line: int64 [n], the samples' lines.
        epoch: int64 [n].
        width: int64 [n], as displayed, 0 without media [pixels].
        height: the same.
        max_tokens: scaling budget, for all or for each [tokens].
        profile: the model's.
        plain: bool [n], samples whose pixels stay as they are, or None: none of them.
        only_sizes: return `out_w` and `out_h` alone, as planning needs them.

    Returns:
        Columns [n]; those that hold one value are read-only.
    """
    line, epoch = np.asarray(line, dtype=np.int64), np.asarray(epoch, dtype=np.int64)
    if plain is not None and plain.any():
        kept = replace(rule, augment=tuple(name for name in rule.augment if name in _WORDS))
        sizes = {"width": width, "height": height, "max_tokens": max_tokens, "profile": profile}
        drawn = draw(rule, line, epoch, **sizes, only_sizes=only_sizes)
        upright = draw(kept, line, epoch, **sizes, only_sizes=only_sizes)
        return {name: np.where(plain, upright[name], drawn[name]) for name in drawn}
    width, height = np.asarray(width, dtype=np.int64), np.asarray(height, dtype=np.int64)
    seen = bool(width.any())
    units = _units(rule, line, epoch, seen=seen, only_sizes=only_sizes)
    columns = _frames(units, width, height, max_tokens, profile) if seen else {}
    if only_sizes:
        return {name: _column(name, columns.get(name, 0), line.shape) for name in ("out_w", "out_h")}
    for name in _COLOURS:
        columns[name] = 1.0 + COLOUR_RANGE * (2.0 * units[name] - 1.0) * (width > 0) if name in units else np.ones(())
    if "flip" in units:
        columns["flip"] = (units["flip"] < 0.5) & (width > 0)
    if "blur" in units:
        columns["blur"] = _half(units["blur"], *SIGMAS) * (width > 0)
    if "jpeg" in units:
        columns["jpeg"] = np.floor(_half(units["jpeg"], QUALITIES[0], QUALITIES[1] + 1)) * (width > 0)
    columns |= {name: units[name].view(np.uint64) | np.uint64(1) for name in _WORDS if name in units}
    return {name: _column(name, columns.get(name, 0), line.shape) for name in DRAW_DTYPES}


def _units(
    rule: DrawRule, line: np.ndarray, epoch: np.ndarray, *, seen: bool, only_sizes: bool
) -> dict[str, np.ndarray]:
    """Return numbers in [0, 1) for what the source asks for alone, by place; of words and noise their raw bits."""
    asked = {
        "resize": ("scale",),
        "crop": ("area", "stretch", "x", "y"),
        "flip": ("flip",) if rule.flip_safe and not only_sizes else (),
        "turn": ("turns",),
        "rotate": ("angle",),
        "colour": _COLOURS if not only_sizes else (),
        "blur": ("blur",) if not only_sizes else (),
        "jpeg": ("jpeg",) if not only_sizes else (),
        "words": ("words",) if not only_sizes else (),
        "noise": ("noise",) if not only_sizes else (),
    }
    names = [name for kind in AUGMENTATIONS if kind in rule.augment for name in asked[kind]]
    names = [name for name in names if seen or name in _WORDS]
    if not names:
        return {}
    key = np.uint64(random_key("draws", rule.seed, rule.dataset))
    raw = np.array([name in _WORDS for name in names])
    places = np.array([PLACES.index(name) for name in names], dtype=np.uint64)
    drawn = _drawn(key, np.ascontiguousarray(line).ravel(), np.ascontiguousarray(epoch).ravel(), places, raw)
    return {name: drawn[number].reshape(line.shape) for number, name in enumerate(names)}


@njit(cache=True, nogil=True)
def _drawn(key: np.uint64, line: np.ndarray, epoch: np.ndarray, places: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Return `keys.random_unit(key, line, epoch, place)` [places, n], or the bits of `keys.random_bits` where raw."""
    bits = np.empty((len(places), len(line)), dtype=np.uint64)
    units = bits.view(np.float64)
    words = np.array([_mixed(place * _GOLDEN + _GOLDEN) for place in places])
    for i in range(len(line)):
        state = _mixed(key ^ _mixed(np.uint64(line[i]) * _GOLDEN + _GOLDEN))
        state = _mixed(state ^ _mixed(np.uint64(epoch[i]) * _GOLDEN + _GOLDEN))
        for place in range(len(places)):
            word = _mixed(_mixed(state ^ words[place]) ^ _GOLDEN)
            if raw[place]:
                bits[place, i] = word
            else:
                units[place, i] = np.float64(word >> np.uint64(11)) * 2.0**-53
    return units


@njit(cache=True, nogil=True, inline="always")
def _mixed(word: np.uint64) -> np.uint64:
    """Return `keys.mix64` of one word."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _frames(
    units: dict[str, np.ndarray], width: np.ndarray, height: np.ndarray, max_tokens: np.ndarray | int, profile: Profile
) -> dict[str, np.ndarray]:
    """Return the columns of crop, angle, turns and size."""
    columns: dict[str, np.ndarray] = {"crop_w": width, "crop_h": height}
    if "area" in units:
        crop_w, crop_h = _crop_size(width, height, units["area"], units["stretch"])
        columns = {"crop_w": crop_w, "crop_h": crop_h}
        columns["crop_x"] = np.floor(units["x"] * (width - crop_w + 1))
        columns["crop_y"] = np.floor(units["y"] * (height - crop_h + 1))
    if "angle" in units:
        columns |= _inscribed(columns, units["angle"])
    crop_w, crop_h = (np.maximum(columns[name].astype(np.int64), 1) for name in ("crop_w", "crop_h"))
    out_w, out_h = resized_size(crop_w, crop_h, max_tokens, profile)
    if "scale" in units:
        scale = SMALLEST_SCALE + (1.0 - SMALLEST_SCALE) * units["scale"]
        out_w, out_h = _shrunk(out_w, scale, profile), _shrunk(out_h, scale, profile)
    if "turns" in units:
        turns = (4 * units["turns"]).astype(np.int8) * (width > 0)
        swapped = turns % 2 == 1
        out_w, out_h = np.where(swapped, out_h, out_w), np.where(swapped, out_w, out_h)
        columns["turns"] = turns
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


def _inscribed(crop: dict[str, np.ndarray], unit: np.ndarray) -> dict[str, np.ndarray]:
    """Return an angle and the largest part of the crop's shape that, turned by it about its middle, stays in the crop.

    Sine and cosine are series of products, the same on every machine: sizes follow from them.
    """
    width, height = crop["crop_w"].astype(np.float64), crop["crop_h"].astype(np.float64)
    shorter = np.maximum(np.minimum(width, height), 1.0)
    limit = np.minimum(LARGEST_ANGLE, STRIP_ANGLE * shorter / np.maximum(np.maximum(width, height), 1.0))
    angle = (2.0 * unit - 1.0) * limit * (width > 0)
    radians = np.abs(angle) * (np.pi / 180)
    square = radians * radians
    sine = radians * (1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72))))
    cosine = 1 - square / 2 * (1 - square / 12 * (1 - square / 30 * (1 - square / 56)))
    across = np.maximum(width * cosine + height * sine, width)
    down = np.maximum(width * sine + height * cosine, height)
    scale = np.minimum(width / np.maximum(across, 1.0), height / np.maximum(down, 1.0))
    return {
        "angle": angle,
        "crop_x": crop.get("crop_x", 0.0) + (width - scale * width) / 2,
        "crop_y": crop.get("crop_y", 0.0) + (height - scale * height) / 2,
        "crop_w": scale * width,
        "crop_h": scale * height,
    }


def _shrunk(side: np.ndarray, scale: np.ndarray, profile: Profile) -> np.ndarray:
    """Return the sides scaled down, to whole tokens where the profile rounds, but not below one merged patch."""
    token = profile.patch * profile.merge
    scaled = (side * scale).astype(np.int64)
    return np.maximum(np.minimum(side, token), scaled // token * token if profile.rounds else scaled)


def _half(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 for half of the numbers, for the others a value from `low` to below `high`."""
    return np.where(unit < 0.5, 0.0, low + (high - low) * (2.0 * unit - 1.0))


def _column(name: str, values: np.ndarray | float, shape: tuple[int, ...]) -> np.ndarray:
    column = np.asarray(values).astype(DRAW_DTYPES[name], copy=False)
    return column if column.shape == shape else np.broadcast_to(column, shape)
