"""Width, height, frames -> patches and tokens: the one formula that planner and loader both use, per model profile."""

from dataclasses import dataclass

import numpy as np

from k25_pipelines.errors import RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a model's vision tower wants of media."""

    name: str
    patch: int
    """Side of a patch [pixels]."""
    merge: int
    """Patches a side that merge into one token."""
    volume_frames: int
    """Video frames averaged into one volume."""
    sample_fps: float
    """Frames sampled from a second of video."""
    max_side_patches: int
    """Longest side [patches]."""
    max_image_tokens: int
    """Published scaling budget of an image; padding may pass it [tokens]."""
    max_frame_tokens: int
    """The same for a frame of a video [tokens]."""
    rounds: bool = False
    """Whether the resize goes to whole merged patches, so that nothing is padded, and enlarges what is too small."""
    min_image_tokens: int = 1
    """With `rounds`, the fewest tokens of a medium."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of red, green, blue in [0, 1]: taken off before `deviation` divides."""
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """The same."""


PROFILES = {
    "kimi_k25": Profile(
        name="kimi_k25",
        patch=14,
        merge=2,
        volume_frames=4,
        sample_fps=2.0,
        max_side_patches=512,
        max_image_tokens=4096,
        max_frame_tokens=1024,
    ),
    "qwen2_vl": Profile(
        name="qwen2_vl",
        patch=14,
        merge=2,
        volume_frames=2,
        sample_fps=2.0,
        max_side_patches=2**15,
        max_image_tokens=1280,
        max_frame_tokens=768,
        rounds=True,
        min_image_tokens=4,
        mean=(0.48145466, 0.4578275, 0.40821073),
        deviation=(0.26862954, 0.26130258, 0.27577711),
    ),
}
"""Sizes and levels of media, by family. Words and special tokens are those of `sample.chat` for all of them.

Sources: the published processors of Kimi K2.5 and of Qwen2-VL (`smart_resize`, CLIP's mean and deviation).
"""


def profile(name: str) -> Profile:
    """Return the profile of that name. Raises RecipeError."""
    if name not in PROFILES:
        raise RecipeError(f"profile {name!r} is unknown; known are {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def resized_size(
    width: np.ndarray | int, height: np.ndarray | int, max_tokens: np.ndarray | int, profile: Profile
) -> tuple[np.ndarray, np.ndarray]:
    """Return the content size after the profile's resize, before padding.

    Kimi K2.5's never enlarges; one that rounds goes to the nearest whole tokens within its limits.

    Args:
        width: as displayed, at least 1 [pixels].
        height: the same.
        max_tokens: scaling budget; padding may pass it a little [tokens].
        profile: the model's.

    Returns:
        (width, height) int64 of the arguments' broadcast shape, at least 1 [pixels].

    Source: the published Kimi K2.5 image processor: s = min(1, sqrt(limit / (W//p * H//p)), side limits),
        sides cut to whole pixels. With `rounds`: `smart_resize` of the published Qwen2-VL processor.
    """
    width, height = np.asarray(width, dtype=np.int64), np.asarray(height, dtype=np.int64)
    if profile.rounds:
        return _rounded_size(width, height, np.asarray(max_tokens, dtype=np.int64), profile)
    longest = profile.max_side_patches * profile.patch
    limit = np.asarray(max_tokens, dtype=np.float64) * profile.merge**2
    patches = np.maximum(1, width // profile.patch) * np.maximum(1, height // profile.patch)
    scale = np.minimum(1.0, np.sqrt(limit / patches))
    scale = np.minimum(scale, np.minimum(longest / np.maximum(1, width), longest / np.maximum(1, height)))
    return _scaled(width, scale, longest), _scaled(height, scale, longest)


def patch_grid(width: np.ndarray | int, height: np.ndarray | int, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, columns) of patches of a content size [pixels], zero-padded to whole merged patches."""
    side = profile.patch * profile.merge
    rows = -(-np.asarray(height, dtype=np.int64) // side) * profile.merge
    columns = -(-np.asarray(width, dtype=np.int64) // side) * profile.merge
    return rows, columns


def sampled_frames(frames: np.ndarray | int, fps: np.ndarray | float, profile: Profile) -> np.ndarray:
    """Return how many frames are taken of a video (1 of an image, whose fps is 0), int64.

    Source: the published rule: max(round(frames * min(fps, 2) / fps), 1), halves to the even number.
    """
    frames, fps = np.asarray(frames, dtype=np.int64), np.asarray(fps, dtype=np.float64)
    moving = fps > 0
    rate = np.minimum(fps, profile.sample_fps) / np.where(moving, fps, 1.0)
    taken = np.where(moving, np.rint(frames * rate).astype(np.int64), 1)
    return np.maximum(1, taken)


def num_volumes(taken: np.ndarray | int, profile: Profile) -> np.ndarray:
    """Return the vision rows of a medium with so many sampled frames, int64: one an image, one per 4 frames."""
    return -(-np.asarray(taken, dtype=np.int64) // profile.volume_frames)


def vision_tokens(
    width: int, height: int, frames: int = 1, *, patch: int = 14, merge: int = 2, max_tokens: int | None = None
) -> tuple[int, tuple[int, int, int]]:
    """Return the tokens of one medium after the published resize, and its grid.

    Args:
        width: as displayed [pixels].
        height: the same.
        frames: sampled frames; 1 is an image.
        patch: side of a patch [pixels].
        merge: patches a side that merge into one token.
        max_tokens: scaling budget of an image or a frame; None is the published one, 4,096 for
            an image and 1,024 for a frame of a video [tokens].

    Returns:
        (tokens, (t, h, w)): t temporal volumes of up to 4 frames; h, w patches; tokens = t h w / merge^2.

    Raises:
        ValueError: a size, a count or the budget is below 1.
    """
    base = PROFILES["kimi_k25"]
    if max_tokens is None:
        max_tokens = base.max_image_tokens if frames == 1 else base.max_frame_tokens
    if min(width, height, frames, patch, merge, max_tokens) < 1:
        raise ValueError(
            f"width {width}, height {height}, frames {frames}, patch {patch}, merge {merge}, "
            f"max_tokens {max_tokens}: each is at least 1"
        )
    model = Profile(
        name="custom",
        patch=patch,
        merge=merge,
        volume_frames=base.volume_frames,
        sample_fps=base.sample_fps,
        max_side_patches=base.max_side_patches,
        max_image_tokens=max_tokens,
        max_frame_tokens=max_tokens,
    )
    rows, columns = patch_grid(*resized_size(width, height, max_tokens, model), model)
    grid = int(num_volumes(frames, model)), int(rows), int(columns)
    return grid[0] * grid[1] * grid[2] // merge**2, grid


def _rounded_size(
    width: np.ndarray, height: np.ndarray, max_tokens: np.ndarray, profile: Profile
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest whole tokens; above the budget the largest below it, under the least the smallest above."""
    side = profile.patch * profile.merge
    sides = np.maximum(width, 1), np.maximum(height, 1)
    area = (sides[0] * sides[1]).astype(np.float64)
    nearest = [np.maximum(1, np.rint(length / side).astype(np.int64)) for length in sides]
    tokens = nearest[0] * nearest[1]
    shrink = np.sqrt(area / (max_tokens * side**2))
    enlarge = np.sqrt(profile.min_image_tokens * side**2 / area)
    found = []
    for length, whole in zip(sides, nearest, strict=True):
        below = np.maximum(1, np.floor(length / shrink / side).astype(np.int64))
        above = np.ceil(length * enlarge / side).astype(np.int64)
        fits = np.where(tokens < profile.min_image_tokens, above, whole)
        found.append(np.where(tokens > max_tokens, below, fits) * side)
    return found[0], found[1]


def _scaled(side: np.ndarray, scale: np.ndarray, longest: int) -> np.ndarray:
    return np.minimum(np.maximum(1, (side * scale).astype(np.int64)), longest)
