"""Pixels to patches: uint8 pixels in, what the vision tower reads out."""

import numpy as np
from numba import njit

from k25_pipelines.plan.size import Profile

PATCH = 14
"""Side of a patch [pixels]."""
MERGE = 2
"""Patches a side that become one token; media are padded to whole tokens."""

_LEVELS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Mean and deviation of Kimi K2.5."""


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

    Into uint8 go the levels as they are, padded with 0: `normalised` of them are the same patches.

    Args:
        frames: uint8 [H, W, 3] or [t, H, W, 3].
        out: float32 or uint8 [t * h * w, 3, patch, patch], C-contiguous; all of it is written.
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
    if out.shape != wanted or out.dtype not in (np.float32, np.uint8) or not out.flags.c_contiguous:
        raise ValueError(f"patches are float32 or uint8 {list(wanted)}, contiguous, not {out.dtype} {list(out.shape)}")
    volume = np.ascontiguousarray(frames if frames.ndim == 4 else frames[None])
    volume = volume if volume.flags.writeable else volume.copy()
    if out.dtype == np.uint8:
        _cut_levels(volume, patch, grid[1], grid[2], out)
        return grid
    mean, deviation = _LEVELS if profile is None else (profile.mean, profile.deviation)
    _cut(volume, patch, grid[1], grid[2], np.array(mean, np.float32), np.array(deviation, np.float32), out)
    return grid


def normalised(levels: np.ndarray, *, profile: Profile | None = None) -> np.ndarray:
    """Return float32 patches of uint8 ones [p, 3, patch, patch]: (level / 255 - mean) / deviation, a step at a time."""
    mean, deviation = _LEVELS if profile is None else (profile.mean, profile.deviation)
    found = levels.astype(np.float32)
    found /= np.float32(255)
    found -= np.array(mean, np.float32)[:, None, None]
    found /= np.array(deviation, np.float32)[:, None, None]
    return found


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
    mean, deviation = _LEVELS if profile is None else (profile.mean, profile.deviation)
    num_frames, rows, columns = (int(length) for length in grid)
    patch = patches.shape[-1]
    frames = patches.reshape(num_frames, rows, columns, 3, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    levels = np.round((frames * np.array(deviation, np.float32) + np.array(mean, np.float32)) * 255)
    return np.clip(levels, 0, 255).astype(np.uint8).reshape(num_frames, rows * patch, columns * patch, 3)


@njit(cache=True, nogil=True)
def _cut_levels(frames, patch, rows, columns, out):
    """Write the patches of frames [t, H, W, 3] as levels."""
    num_frames, height, width, _ = frames.shape
    lines = frames.reshape(num_frames, height, width * 3)
    bands = np.zeros((3, patch, columns * patch), dtype=np.uint8)
    for row in range(num_frames * rows):
        frame, top = row // rows, row % rows * patch
        for y in range(patch):
            red, green, blue = bands[0, y], bands[1, y], bands[2, y]
            if top + y < height:
                for x in range(width):
                    red[x] = lines[frame, top + y, 3 * x]
                    green[x] = lines[frame, top + y, 3 * x + 1]
                    blue[x] = lines[frame, top + y, 3 * x + 2]
            else:
                bands[:, y] = 0
        for column in range(columns):
            start = column * patch
            for band in range(3):
                for y in range(patch):
                    for x in range(patch):
                        out[row * columns + column, band, y, x] = bands[band, y, start + x]


@njit(cache=True, nogil=True)
def _cut(frames, patch, rows, columns, mean, deviation, out):
    """Write the patches of frames [t, H, W, 3], a row of patches at a time: bands apart first, then patch by patch.

    A level is (level / 255 - mean) / deviation in float32, rounded as the reference processors round it.
    """
    num_frames, height, width, _ = frames.shape
    lines = frames.reshape(num_frames, height, width * 3)
    mean_red, mean_green, mean_blue = mean[0], mean[1], mean[2]  # in registers, or the loops are not vectorised
    spread_red, spread_green, spread_blue = deviation[0], deviation[1], deviation[2]
    full, bands = np.float32(255), np.empty((3, patch, columns * patch), dtype=np.float32)
    for band in range(3):
        bands[band] = -mean[band] / deviation[band]
    for row in range(num_frames * rows):
        frame, top = row // rows, row % rows * patch
        for y in range(patch):
            if top + y < height:
                red, green, blue = bands[0, y], bands[1, y], bands[2, y]
                for x in range(width):
                    red[x] = (np.float32(lines[frame, top + y, 3 * x]) / full - mean_red) / spread_red
                    green[x] = (np.float32(lines[frame, top + y, 3 * x + 1]) / full - mean_green) / spread_green
                    blue[x] = (np.float32(lines[frame, top + y, 3 * x + 2]) / full - mean_blue) / spread_blue
            else:
                for band in range(3):
                    bands[band, y] = -mean[band] / deviation[band]
        for column in range(columns):
            start = column * patch
            for band in range(3):
                for y in range(patch):
                    for x in range(patch):
                        out[row * columns + column, band, y, x] = bands[band, y, start + x]
