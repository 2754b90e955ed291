"""Packs of a segment -> its rows as an Arrow table, with the draws of every sample."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from k25_pipelines.plan.draws import DRAW_DTYPES
from k25_pipelines.plan.recipe import Recipe, source_entry
from k25_pipelines.plan.segment import segment_table
from k25_pipelines.plan.source import SourceTable, sample_draws
from k25_pipelines.plan.window import Packs, joined


def rows_table(
    packs: Sequence[Packs],
    step_of_pack: np.ndarray,
    *,
    recipe: Recipe,
    names: tuple[str, ...],
    sources: Mapping[str, SourceTable],
) -> pa.Table:
    """Return the rows of packs, their draws made again from line and epoch.

    Args:
        packs: the packs in order, in parts.
        step_of_pack: int64 [packs in all parts], ascending.
        recipe: seed, profile and augmentation.
        names: all sources, in the order that numbers them.
        sources: the table of each.
    """
    every = joined(packs)
    items, sizes = every.items, np.diff(every.ends, prepend=0)
    first_of_step = np.searchsorted(step_of_pack, step_of_pack)
    columns = {
        "step": np.repeat(step_of_pack, sizes),
        "pack": np.repeat(np.arange(len(every)) - first_of_step, sizes),
        "slot": np.arange(len(items)) - np.repeat(every.ends - sizes, sizes),
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
    line, epoch, source = (np.ascontiguousarray(items[name]) for name in ("line", "epoch", "source"))
    for number, name in enumerate(names):
        mine = np.flatnonzero(source == number)
        if not mine.size:
            continue
        drawn = sample_draws(sources[name], source_entry(recipe, name), recipe, line[mine], epoch[mine])
        for column, values in drawn.items():
            if values.strides != (0,) or values[0] != 0:  # else one value for all of them, and there already
                columns[column][mine] = values
    return columns
