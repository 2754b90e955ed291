"""Pixels to patches: uint8 pixels in, what the vision tower reads out."""

import functools

import numpy as np
from numba import njit

from k25_pipelines.plan.size import Profile

PATCH = 14
"""Side of a patch [pixels]."""
MERGE = 2
"""Patches a side that become one token; media are padded to whole tokens."""

_PADDING = np.float32(-1.0)
"""Level 0, normalised."""


def patches(
    frames: np.ndarray, *, patch: int = PATCH, merge: int = MERGE, out: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the patches of an image or of the frames of a volume.

    Frames are padded with zeros right and below to whole tokens, before the levels are
    normalised: padding is -1.

    Args:
        frames: uint8 [H, W, 3] or [t, H, W, 3].
        patch: side of a patch [pixels].
        merge: patches a side that become one token.
        out: where they are written if its number of patches is right; else they get an array of their own.

    Returns:
        float32 [t * h * w, 3, patch, patch], frames, then rows, then columns; and (t, h, w).
    """
    num_frames, rows, columns = grid_of(frames, patch=patch, merge=merge)
    shape = (num_frames * rows * columns, 3, patch, patch)
    if out is None or out.shape != shape:
        out = np.empty(shape, dtype=np.float32)
    return out, patches_into(frames, out, patch=patch, merge=merge)


def patches_into(
    frames: np.ndarray, out: np.ndarray, *, patch: int = PATCH, merge: int = MERGE, profile: Profile | None = None
) -> tuple[int, int, int]:
    """Write the patches of an image or of the frames of a volume where they are wanted: `patches` without a copy.

    Args:
        frames: uint8 [H, W, 3] or [t, H, W, 3].
        out: float32 [t * h * w, 3, patch, patch], C-contiguous; all of it is written.
        patch: side of a patch [pixels].
        merge: patches a side that become one token.
        profile: whose mean and deviation normalise the levels; None: Kimi K2.5's.

    Returns:
        (t, h, w).

    Raises:
        ValueError: `out` is not of this shape and type, or not contiguous.
    """
    grid = grid_of(frames, patch=patch, merge=merge)
    wanted = (grid[0] * grid[1] * grid[2], 3, patch, patch)
    if out.shape != wanted or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"patches are float32 {list(wanted)}, contiguous, not {out.dtype} {list(out.shape)}")
    volume = np.ascontiguousarray(frames if frames.ndim == 4 else frames[None])
    volume = volume if volume.flags.writeable else volume.copy()
    levels = None if profile is None else _levels(profile.mean, profile.deviation)
    if levels is None:
        _cut(volume, patch, grid[1], grid[2], out)
    else:
        _cut_by_table(volume, patch, grid[1], grid[2], levels, out)
    return grid


def grid_of(frames: np.ndarray, *, patch: int = PATCH, merge: int = MERGE) -> tuple[int, int, int]:
    """Return (t, h, w) of uint8 [H, W, 3] or [t, H, W, 3] frames, padded to whole tokens."""
    num_frames = 1 if frames.ndim == 3 else frames.shape[0]
    height, width, side = frames.shape[-3], frames.shape[-2], patch * merge
    return num_frames, -(-height // side) * merge, -(-width // side) * merge


def pixels_of(patches: np.ndarray, grid: tuple[int, int, int], *, profile: Profile | None = None) -> np.ndarray:
    """Return uint8 [t, H, W, 3] of the patches of one vision item, padding included: what the model sees.

    Args:
        patches: float32 [t * h * w, 3, patch, patch].
        grid: (t, h, w).
        profile: whose normalisation is undone; None: Kimi K2.5's.
    """
    mean, deviation = ((0.5,) * 3, (0.5,) * 3) if profile is None else (profile.mean, profile.deviation)
    num_frames, rows, columns = (int(length) for length in grid)
    patch = patches.shape[-1]
    frames = patches.reshape(num_frames, rows, columns, 3, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    levels = np.round((frames * np.array(deviation, np.float32) + np.array(mean, np.float32)) * 255)
    return np.clip(levels, 0, 255).astype(np.uint8).reshape(num_frames, rows * patch, columns * patch, 3)


@functools.cache
def _levels(mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray | None:
    """Return float32 [3, 256], each colour's levels normalised, or None: mean and deviation 1/2, done by arithmetic."""
    if mean == deviation == (0.5, 0.5, 0.5):
        return None
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    table = (levels[None] - np.array(mean, np.float32)[:, None]) / np.array(deviation, np.float32)[:, None]
    table.setflags(write=False)
    return table


@njit(cache=True, nogil=True)
def _cut_by_table(frames, patch, rows, columns, levels, out):
    """Write the patches of frames [t, H, W, 3] as `_cut` does, normalised by a table [3, 256]."""
    num_frames, height, width, _ = frames.shape
    for place in range(num_frames * rows * columns):
        frame, rest = place // (rows * columns), place % (rows * columns)
        top, left = rest // columns * patch, rest % columns * patch
        for y in range(patch):
            for x in range(patch):
                inside = top + y < height and left + x < width
                for band in range(3):
                    level = frames[frame, top + y, left + x, band] if inside else 0
                    out[place, band, y, x] = levels[band, level]


@njit(cache=True, nogil=True)
def _normalised(level):
    """Return (level / 255 - 0.5) / 0.5 in float32, rounded as the reference processor rounds it."""
    return (np.float32(level) / np.float32(255) - np.float32(0.5)) * np.float32(2)


@njit(cache=True, nogil=True)
def _cut(frames, patch, rows, columns, out):
    """Write the patches of frames [t, H, W, 3], a row of patches at a time: bands apart first, then patch by patch."""
    num_frames, height, width, _ = frames.shape
    lines = frames.reshape(num_frames, height, width * 3)
    bands = np.full((3, patch, columns * patch), _PADDING)
    for row in range(num_frames * rows):
        frame, top = row // rows, row % rows * patch
        for y in range(patch):
            if top + y < height:
                red, green, blue = bands[0, y], bands[1, y], bands[2, y]
                for x in range(width):
                    red[x] = _normalised(lines[frame, top + y, 3 * x])
                    green[x] = _normalised(lines[frame, top + y, 3 * x + 1])
                    blue[x] = _normalised(lines[frame, top + y, 3 * x + 2])
            else:
                bands[:, y] = _PADDING
        for column in range(columns):
            start = column * patch
            for band in range(3):
                for y in range(patch):
                    for x in range(patch):
                        out[row * columns + column, band, y, x] = bands[band, y, start + x]
