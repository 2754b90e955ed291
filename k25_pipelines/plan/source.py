"""One dataset version as the planner sees it: columns in; tokens, patches and draws of any (line, epoch) out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from k25_pipelines.keys import digest
from k25_pipelines.plan.draws import DrawRule, draw
from k25_pipelines.plan.recipe import Recipe, Source
from k25_pipelines.plan.shuffle import Order
from k25_pipelines.plan.size import num_volumes, patch_grid, profile, sampled_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTable:
    """The columns of a dataset version that a plan depends on, a place a line."""

    name: str
    text_tokens: np.ndarray
    """int64 [n], every token of the sample but the media pads; exact or an upper bound."""
    chunk_lines: int
    """Lines of a chunk."""
    digest: str = ""
    """Name of the manifest."""
    width: np.ndarray | None = None
    """int64 [n], of the medium as displayed, 0 without one [pixels]; None: a text-only dataset."""
    height: np.ndarray | None = None
    """The same."""
    frames: np.ndarray | None = None
    """int64 [n], frames of a video, 1 of an image."""
    fps: np.ndarray | None = None
    """float64 [n], 0 of an image [frames a second]."""
    quarantined: np.ndarray | None = None
    """bool [n], lines that are drawn and passed over, not charged."""
    licences: Mapping[str, int] = field(default_factory=dict)
    """How many of the other lines stand under each licence."""

    @property
    def num_lines(self) -> int:
        """Lines of the dataset version."""
        return len(self.text_tokens)

    @property
    def multimodal(self) -> bool:
        """Whether any sample has media."""
        return self.width is not None and bool(self.width.any())


def source_order(table: SourceTable, recipe: Recipe, lanes: int) -> Order:
    """Return what names the order of a source."""
    return Order(
        dataset=table.name,
        seed=recipe.seed,
        num_lines=table.num_lines,
        chunk_lines=table.chunk_lines,
        lanes=lanes,
    )


def source_identity(table: SourceTable) -> dict[str, object]:
    """Return what a plan's header says of a source: the manifest, and digests of what else it was planned from."""
    columns = {
        name: getattr(table, name)
        for name in ("text_tokens", "quarantined", "width", "height", "frames", "fps")
        if getattr(table, name) is not None
    }
    return {
        "digest": table.digest,
        "num_lines": table.num_lines,
        "chunk_lines": table.chunk_lines,
        "columns": digest(columns),
    }


def measure(
    table: SourceTable, entry: Source, recipe: Recipe, line: np.ndarray, epoch: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the planned sizes and draws of samples, a column each.

    Args:
        table: the dataset version.
        entry: the recipe's entry for it.
        recipe: seed, profile and image budget.
        line: int64 [n].
        epoch: int64 [n].

    Returns:
        num_tokens (all of them), vision_tokens, patches (over all sampled frames), media (vision
        rows: one an image, one a video volume), int64; and the columns of `draws.draw`.
    """
    line = np.asarray(line, dtype=np.int64)
    model = profile(recipe.profile)
    none = np.zeros(line.shape, dtype=np.int64)
    width = none if table.width is None else table.width[line]
    height = none if table.height is None else table.height[line]
    frames = none + 1 if table.frames is None else table.frames[line]
    fps = none.astype(np.float64) if table.fps is None else table.fps[line]
    budget = np.where(
        fps > 0,
        min(recipe.max_image_tokens, model.max_frame_tokens),
        min(recipe.max_image_tokens, model.max_image_tokens),
    )
    rule = DrawRule(seed=recipe.seed, dataset=table.name, augment=entry.augment, flip_safe=entry.flip_safe)
    draws = draw(rule, line, epoch, width=width, height=height, max_tokens=budget, profile=model)
    rows, columns = patch_grid(draws["out_w"], draws["out_h"], model)
    taken = sampled_frames(frames, fps, model) * (width > 0)
    volumes = num_volumes(taken, model)
    vision = volumes * rows * columns // model.merge**2
    sizes = {
        "num_tokens": table.text_tokens[line] + vision,
        "vision_tokens": vision,
        "patches": taken * rows * columns,
        "media": volumes,
    }
    return sizes | draws
