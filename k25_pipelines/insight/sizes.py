"""How large samples are to a model: a dataset version in, tokens and patches of each line out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.plan.size import Profile, num_volumes, patch_grid, resized_size, sampled_frames
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.sample.lengths import text_lengths
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of the lines that are used, int64 each, 0 where a line is quarantined."""

    text_tokens: np.ndarray
    """Words and markers, the most that any draw gives [lines]."""
    vision_tokens: np.ndarray
    """Of all media, not augmented [lines]."""
    patches: np.ndarray
    """Of all media, frames of a volume each [lines]."""
    used: np.ndarray
    """Bool [lines]."""

    @property
    def tokens(self) -> np.ndarray:
        """Words and vision together [lines]."""
        return self.text_tokens + self.vision_tokens


def sample_sizes(
    lake: Store,
    manifest: Manifest,
    *,
    tokenizer: str = "default",
    profile: str = "kimi_k25",
    max_image_tokens: int | None = None,
    progress: Progress | None = None,
) -> Sizes:
    """Return tokens and patches of every line, from headers alone; words are tokenized once and kept.

    Args:
        lake: where token lengths are kept.
        manifest: the dataset version.
        tokenizer: its name, digest or URI.
        profile: whose media sizes.
        max_image_tokens: of a medium, as a recipe limits it; None: the profile's own.
        progress: told chunks done, chunks in all, and what.
    """
    model = profile_named(profile)
    used, media = ~manifest.quarantined, manifest.media_table()
    lines, more = np.flatnonzero(used & (media["num_media"] > 0)), media.get("more")
    first = {name: media[name][lines] for name in ("width", "height", "frames", "fps")}
    vision, patches = np.zeros(manifest.num_lines, np.int64), np.zeros(manifest.num_lines, np.int64)
    _add(vision, patches, lines, first, model, max_image_tokens)
    if more is not None and len(more["line"]):
        kept = used[more["line"]]
        _add(vision, patches, more["line"][kept], {n: more[n][kept] for n in first}, model, max_image_tokens)
    text = text_lengths(lake, manifest, load_tokenizer(tokenizer, lake), model, progress=progress)
    return Sizes(text_tokens=text, vision_tokens=vision, patches=patches, used=used)


def _add(vision: np.ndarray, patches: np.ndarray, lines: np.ndarray, of, model: Profile, limit: int | None) -> None:
    """Add what media bring to their lines."""
    budget = np.where(of["fps"] > 0, model.max_frame_tokens, model.max_image_tokens)
    size = resized_size(of["width"], of["height"], np.minimum(budget, limit or budget.max(initial=1)), model)
    rows, columns = patch_grid(*size, model)
    taken = sampled_frames(of["frames"], of["fps"], model)
    np.add.at(vision, lines, num_volumes(taken, model) * rows * columns // model.merge**2)
    np.add.at(patches, lines, taken * rows * columns)
