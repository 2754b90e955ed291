"""Pixels to patches: uint8 pixels in, what the vision tower reads out."""

import numpy as np

PATCH = 14
"""Side of a patch [pixels]."""
MERGE = 2
"""Patches a side that become one token; media are padded to whole tokens."""

_LEVELS = ((np.arange(256) / 255.0).astype(np.float32) - np.float32(0.5)) * np.float32(2.0)
"""Level -> (level / 255 - 0.5) / 0.5, rounded as the reference processor rounds it."""


def patches(frames: np.ndarray, *, patch: int = PATCH, merge: int = MERGE) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the patches of an image or of the frames of a volume.

    Frames are padded with zeros right and below to whole tokens, before the levels are
    normalised: padding is -1.

    Args:
        frames: uint8 [H, W, 3] or [t, H, W, 3].
        patch: side of a patch [pixels].
        merge: patches a side that become one token.

    Returns:
        float32 [t * h * w, 3, patch, patch], frames, then rows, then columns; and (t, h, w).
    """
    frames = frames if frames.ndim == 4 else frames[None]
    num_frames, height, width, _ = frames.shape
    side = patch * merge
    padding = ((0, 0), (0, -height % side), (0, -width % side), (0, 0))
    padded = np.pad(frames, padding)
    rows, columns = padded.shape[1] // patch, padded.shape[2] // patch
    cut = padded.reshape(num_frames, rows, patch, columns, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    return _LEVELS[cut.reshape(-1, 3, patch, patch)], (num_frames, rows, columns)


def pixels_of(patches: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Return uint8 [t, H, W, 3] of the patches of one vision item, padding included: what the model sees."""
    num_frames, rows, columns = (int(length) for length in grid)
    patch = patches.shape[-1]
    frames = patches.reshape(num_frames, rows, columns, 3, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    levels = np.round((frames * np.float32(0.5) + np.float32(0.5)) * 255)
    return np.clip(levels, 0, 255).astype(np.uint8).reshape(num_frames, rows * patch, columns * patch, 3)
