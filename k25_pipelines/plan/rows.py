"""Packs of a segment -> its rows as an Arrow table, with the draws of every sample."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from k25_pipelines.plan.draws import DRAW_DTYPES
from k25_pipelines.plan.recipe import Recipe, source_entry
from k25_pipelines.plan.segment import segment_table
from k25_pipelines.plan.source import SourceTable, measure


def rows_table(
    packs: Sequence[np.ndarray],
    step_of_pack: np.ndarray,
    *,
    recipe: Recipe,
    names: tuple[str, ...],
    sources: Mapping[str, SourceTable],
) -> pa.Table:
    """Return the rows of packs (`window.ITEM` arrays, in order), their draws measured again from line and epoch.

    Args:
        packs: the samples of each pack.
        step_of_pack: int64 [packs], ascending.
        recipe: seed, profile and augmentation.
        names: all sources, in the order that numbers them.
        sources: the table of each.
    """
    items = np.concatenate(packs)
    sizes = np.array([len(pack) for pack in packs])
    first_of_step = np.searchsorted(step_of_pack, step_of_pack)
    columns = {
        "step": np.repeat(step_of_pack, sizes),
        "pack": np.repeat(np.arange(len(packs)) - first_of_step, sizes),
        "slot": np.arange(len(items)) - np.repeat(np.cumsum(sizes) - sizes, sizes),
        "dataset": items["source"],
        "line": items["line"],
        "epoch": items["epoch"],
        "token_start": items["start"],
        "num_tokens": items["tokens"],
        "vision_tokens": items["vision"],
        "patches": items["patches"],
        "media": items["media"],
    }
    columns |= _draws(items, recipe=recipe, names=names, sources=sources)
    return segment_table(columns, names)


def _draws(
    items: np.ndarray, *, recipe: Recipe, names: tuple[str, ...], sources: Mapping[str, SourceTable]
) -> dict[str, np.ndarray]:
    """Return the draw columns of all items, source by source."""
    columns = {name: np.zeros(len(items), dtype=dtype) for name, dtype in DRAW_DTYPES.items()}
    for number, name in enumerate(names):
        mine = np.flatnonzero(items["source"] == number)
        if not mine.size:
            continue
        entry = source_entry(recipe, name)
        drawn = measure(sources[name], entry, recipe, items["line"][mine], items["epoch"][mine])
        for column in columns:
            columns[column][mine] = drawn[column]
    return columns
