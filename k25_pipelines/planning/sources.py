"""Manifests, token lengths and exclusions -> the tables that a plan is made from."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.recipe import Recipe
from k25_pipelines.plan.size import num_volumes, patch_grid, profile, resized_size, sampled_frames
from k25_pipelines.plan.source import SourceTable
from k25_pipelines.sample.lengths import text_lengths
from k25_pipelines.sample.tokens import Tokenizer
from k25_pipelines.storage.store import Store

Progress = Callable[[int, int, str], None]
Lines = Mapping[str, np.ndarray]
"""Line numbers by dataset, int64, ascending."""


def source_table(
    lake: Store,
    manifest: Manifest,
    tokenizer: Tokenizer,
    recipe: Recipe,
    *,
    excluded: np.ndarray | None = None,
    progress: Progress | None = None,
) -> SourceTable:
    """Return the columns of a dataset version that a plan depends on.

    Args:
        lake: where token lengths are kept.
        manifest: the dataset version.
        tokenizer: what counts its words.
        recipe: profile and image budget.
        excluded: int64, lines that are drawn and charged but never packed.
        progress: told chunks done, chunks in all, and what.
    """
    media = manifest.media_table()
    columns = {name: media[name] for name in ("width", "height", "frames", "fps")} if media["num_media"].any() else {}
    if (media["num_media"] > 1).any():
        columns |= _more_media(manifest, media, recipe)
    if excluded is not None and excluded.size:
        columns["excluded"] = np.isin(np.arange(manifest.num_lines), excluded)
    return SourceTable(
        name=manifest.dataset,
        digest=manifest.digest,
        chunk_lines=manifest.chunk_lines,
        text_tokens=text_lengths(lake, manifest, tokenizer, recipe.profile, progress=progress),
        quarantined=media["quarantined"],
        licences=_counts(manifest, "licence", columns.get("excluded")),
        origins=_counts(manifest, "source", columns.get("excluded")),
        **columns,
    )


def _counts(manifest: Manifest, column: str, excluded: np.ndarray | None) -> dict[str, int]:
    """Return how many of the lines that can be packed say what in a column."""
    fine = ~manifest.quarantined if excluded is None else ~manifest.quarantined & ~excluded
    values = manifest.table[column].filter(pa.array(fine)).value_counts()
    return {str(entry["values"]): entry["counts"] for entry in values.to_pylist()}


def excluded_lines(*exclusions: Lines) -> dict[str, np.ndarray]:
    """Return all lines of some exclusions together."""
    names = sorted({name for lines in exclusions for name in lines})
    empty = np.empty(0, dtype=np.int64)
    return {name: np.unique(np.concatenate([lines.get(name, empty) for lines in exclusions])) for name in names}


def _more_media(manifest: Manifest, media: Mapping, recipe: Recipe) -> dict[str, np.ndarray]:
    """Return what media after the first bring to each line: full frames, never augmented."""
    if "more" not in media:
        raise RecipeError(f"recipe {recipe.name}: {manifest.dataset} has samples of several media; only one is packed")
    model, more = profile(recipe.profile), media["more"]
    budget = np.where(more["fps"] > 0, model.max_frame_tokens, model.max_image_tokens)
    size = resized_size(more["width"], more["height"], np.minimum(budget, recipe.max_image_tokens), model)
    rows, columns = patch_grid(*size, model)
    taken = sampled_frames(more["frames"], more["fps"], model)
    volumes = num_volumes(taken, model)
    brought = {
        "more_tokens": volumes * rows * columns // model.merge**2,
        "more_patches": taken * rows * columns,
        "more_media": volumes,
    }
    return {
        name: np.bincount(more["line"], weights=values, minlength=manifest.num_lines).astype(np.int64)
        for name, values in brought.items()
    }
