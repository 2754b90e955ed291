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
    excluded: np.ndarray | None = None
    """bool [n], lines that are drawn and charged as if they were packed, but never are: tombstoned, or left out by a
    fork. A plan's header tells of them apart."""
    more_tokens: np.ndarray | None = None
    """int64 [n], vision tokens of the media after the first; such a sample's pixels are not augmented."""
    more_patches: np.ndarray | None = None
    """int64 [n], their patches."""
    more_media: np.ndarray | None = None
    """int64 [n], their vision rows."""
    licences: Mapping[str, int] = field(default_factory=dict)
    """How many of the lines that can be packed stand under each licence."""
    origins: Mapping[str, int] = field(default_factory=dict)
    """How many of them come from each source, in the words of the samples."""

    @property
    def num_lines(self) -> int:
        """Lines of the dataset version."""
        return len(self.text_tokens)

    @property
    def multimodal(self) -> bool:
        """Whether any sample has media."""
        return self.width is not None and bool(self.width.any())


_PLANNED_FROM = (
    *("text_tokens", "quarantined", "width", "height", "frames", "fps"),
    *("more_tokens", "more_patches", "more_media"),
)


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
    columns = {name: getattr(table, name) for name in _PLANNED_FROM if getattr(table, name) is not None}
    return {
        "digest": table.digest,
        "num_lines": table.num_lines,
        "chunk_lines": table.chunk_lines,
        "columns": digest(columns),
    }


def sample_sizes(
    table: SourceTable, entry: Source, recipe: Recipe, line: np.ndarray, epoch: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the planned sizes of samples, a column each.

    Args:
        table: the dataset version.
        entry: the recipe's entry for it.
        recipe: seed, profile and image budget.
        line: int64 [n].
        epoch: int64 [n].

    Returns:
        num_tokens (all of them), vision_tokens, patches (over all sampled frames), media (vision
        rows: one an image, one a video volume), int64.
    """
    if table.width is None:
        none = np.zeros(line.shape, dtype=np.int64)
        return {"num_tokens": table.text_tokens[line], "vision_tokens": none, "patches": none, "media": none}
    model = profile(recipe.profile)
    drawn = sample_draws(table, entry, recipe, line, epoch, only_sizes=True)
    rows, columns = patch_grid(drawn["out_w"], drawn["out_h"], model)
    taken = np.where(table.width[line] > 0, sampled_frames(*_motion(table, line), model), 0)
    volumes = num_volumes(taken, model)
    sizes = {"vision_tokens": volumes * rows * columns // model.merge**2, "patches": taken * rows * columns}
    sizes["media"] = volumes
    more = {"vision_tokens": table.more_tokens, "patches": table.more_patches, "media": table.more_media}
    for name, column in more.items():
        sizes[name] = sizes[name] if column is None else sizes[name] + column[line]
    return {"num_tokens": table.text_tokens[line] + sizes["vision_tokens"], **sizes}


def sample_draws(
    table: SourceTable,
    entry: Source,
    recipe: Recipe,
    line: np.ndarray,
    epoch: np.ndarray,
    *,
    only_sizes: bool = False,
) -> dict[str, np.ndarray]:
    """Return the columns of `draws.draw` of samples; arguments as of `sample_sizes`."""
    model = profile(recipe.profile)
    rule = DrawRule(seed=recipe.seed, dataset=table.name, augment=entry.augment, flip_safe=entry.flip_safe)
    if table.width is None or table.height is None:
        none = np.zeros(line.shape, dtype=np.int64)
        return draw(rule, line, epoch, width=none, height=none, max_tokens=1, profile=model, only_sizes=only_sizes)
    budget = np.where(
        _motion(table, line)[1] > 0,
        min(recipe.max_image_tokens, model.max_frame_tokens),
        min(recipe.max_image_tokens, model.max_image_tokens),
    )
    return draw(
        rule,
        line,
        epoch,
        width=table.width[line],
        height=table.height[line],
        max_tokens=budget,
        profile=model,
        plain=None if table.more_media is None else table.more_media[line] > 0,
        only_sizes=only_sizes,
    )


def _motion(table: SourceTable, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and frames a second of the samples' first media; 1 and 0 of an image."""
    frames = np.ones(line.shape, dtype=np.int64) if table.frames is None else table.frames[line]
    return frames, np.zeros(line.shape) if table.fps is None else table.fps[line]
