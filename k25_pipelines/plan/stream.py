"""The measured samples of a lane's sources, a block at a time, and the loop that draws from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.blend import (
    VISION_DEBT,
    Blend,
    book,
    furthest_behind,
    largest_error,
    longest_allowed,
    scheduled,
)
from k25_pipelines.plan.recipe import Recipe
from k25_pipelines.plan.shuffle import lane_samples
from k25_pipelines.plan.source import SourceTable, sample_sizes, source_order
from k25_pipelines.plan.window import ITEM_FIELDS

FINE, QUARANTINED, REFUSED, EXCLUDED = 0, 1, 2, 3
"""Excluded samples are drawn and charged as if they were packed; the others are passed over."""
FIRST_BLOCK, MOST_BLOCK = 512, 4096
"""Positions of a source measured at once: the first time, and at most; changes no plan."""
BLOCK_MEMORY = 1 << 20
"""Positions measured at once in all lanes and sources together."""
MOST_NAMED = 20
"""Refused samples named in a segment's header, for each source."""
DONE, LOAD, DROP, DRY, FULL, BARREN, UNMET = range(7)
"""Why the loop stopped: the window is full, a source needs its next block, or is at its maximum, none is left to
draw from, the output is full, a source gives nothing that can be packed, or the share cannot be met."""

_FIELDS = ("line", "epoch", "tokens", "vision", "patches", "media")
_PLACES = np.array([ITEM_FIELDS.index(name) for name in _FIELDS])
_LINE, _EPOCH, _TOKENS, _VISION = range(4)
_WINDOW, _LEAST_TOKENS, _CAPACITY, _SETTLING, _MOST_ITEMS = range(5)
_ITEMS, _ALL_TOKENS, _OUT = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One source as a lane draws it."""

    number: int
    """In the order of the sources' names."""
    table: SourceTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """The next measured samples of every source in one lane: derived from the cursors, never stored."""

    samples: np.ndarray
    """int64 [sources, most, fields]."""
    status: np.ndarray
    """int8 [sources, most]: FINE, QUARANTINED, REFUSED or EXCLUDED."""
    first: np.ndarray
    """int64 [sources], position of a block's first sample."""
    size: np.ndarray
    """int64 [sources], samples in a block."""
    barren: np.ndarray
    """int64 [sources], samples drawn in a row that could not be packed."""
    most_barren: np.ndarray
    """int64 [sources], after so many the source counts as empty."""
    refused: np.ndarray
    """int64 [sources], samples refused since the loop began."""
    refused_lines: np.ndarray
    """int64 [sources, MOST_NAMED], the first of them."""


def new_blocks(streams: Sequence[Stream], lanes: int) -> Blocks:
    """Return empty blocks for the sources of a lane; `lanes`: how many share the memory."""
    num = len(streams)
    most = max(FIRST_BLOCK, min(MOST_BLOCK, BLOCK_MEMORY // (lanes * num)))
    return Blocks(
        samples=np.empty((num, most, len(_FIELDS)), dtype=np.int64),
        status=np.empty((num, most), dtype=np.int8),
        first=np.zeros(num, dtype=np.int64),
        size=np.zeros(num, dtype=np.int64),
        barren=np.zeros(num, dtype=np.int64),
        most_barren=np.array([4 * stream.table.num_lines + 1024 for stream in streams]),
        refused=np.zeros(num, dtype=np.int64),
        refused_lines=np.zeros((num, MOST_NAMED), dtype=np.int64),
    )


def load_block(
    blocks: Blocks, stream: Stream, position: int, *, blend: Blend, recipe: Recipe, lanes: int, lane: int
) -> None:
    """Measure the next block of a source, from `position` of the lane.

    Raises:
        RecipeError: a sample is so long that its debts would not stay exact.
    """
    number, table = stream.number, stream.table
    size = min(max(FIRST_BLOCK, 2 * int(blocks.size[number])), blocks.status.shape[1])
    line, epoch = lane_samples(source_order(table, recipe, lanes), lane, np.arange(position, position + size))
    sizes = sample_sizes(table, recipe.sources[table.name], recipe, line, epoch)
    longest = int(sizes["num_tokens"].max())
    if longest > longest_allowed(blend):
        raise RecipeError(
            f"recipe {recipe.name}: a sample of {table.name} has {longest} tokens, above the {longest_allowed(blend)} "
            "that debts can hold exactly with these weights; take rounder weights, or split it"
        )
    samples = blocks.samples[number, :size]
    columns = (line, epoch, *(sizes[name] for name in ("num_tokens", "vision_tokens", "patches", "media")))
    for place, column in enumerate(columns):
        samples[:, place] = column
    status = blocks.status[number, :size]
    status[:] = FINE if table.excluded is None else np.where(table.excluded[line], EXCLUDED, FINE)
    status[_too_large(sizes, recipe)] = REFUSED
    if table.quarantined is not None:
        status[table.quarantined[line]] = QUARANTINED
    blocks.first[number], blocks.size[number] = position, size


def _too_large(sizes: dict[str, np.ndarray], recipe: Recipe) -> np.ndarray:
    """Return which samples with media cannot stand in any pack."""
    too_large = sizes["num_tokens"] > recipe.pack_tokens
    if recipe.max_patches_per_pack is not None:
        too_large |= sizes["patches"] > recipe.max_patches_per_pack
    if recipe.max_images_per_pack is not None:
        too_large |= sizes["media"] > recipe.max_images_per_pack
    return too_large & (sizes["media"] > 0)


def draw_until_stopped(
    blend: Blend, blocks: Blocks, *, order: np.ndarray, cursors: np.ndarray, most_epochs: np.ndarray,
    limits: np.ndarray, counts: np.ndarray, out: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Draw samples into `out` until something is needed; return why the loop stopped, and for which source.

    Args:
        blend: debts and totals, booked.
        blocks: the measured samples.
        order: one period of the blend by samples.
        cursors: int64 [sources], next position of each in the lane, moved on.
        most_epochs: int64 [sources], -1: no limit.
        limits: int64 [5]: window [samples], least tokens, capacity, whether the lane settles, most items while it does.
        counts: int64 [3]: items and tokens in the window, items in `out`; counted on.
        out: int64 [n, item fields], zeros.
    """
    code, source, blend.worst = _draw(
        blend.weights, blend.multimodal, blend.debts, blend.totals, np.array(blend.share_terms), blend.by_samples,
        blend.worst, order, cursors, most_epochs, limits, counts, out, _PLACES, blocks.samples, blocks.status,
        blocks.first, blocks.size, blocks.barren, blocks.most_barren, blocks.refused, blocks.refused_lines,
    )  # fmt: skip
    return code, source


@njit(cache=True, nogil=True)
def _draw(
    weights, multimodal, debts, totals, share, by_samples, worst, order, cursors, most_epochs, limits, counts, out,
    places, samples, status, first, size, barren, most_barren, refused, refused_lines,
):  # fmt: skip
    """Draw in the order of the blend; arguments as of `draw_until_stopped`."""
    while True:
        longest = totals[2]
        error = largest_error(weights, multimodal, debts, totals, share) if limits[_SETTLING] else 0.0
        settles = limits[_SETTLING] and error > longest and counts[_ITEMS] < limits[_MOST_ITEMS]
        if not settles:
            unmet = 3 * share[1] * max(longest, limits[_CAPACITY])
            tries = not limits[_SETTLING] or counts[_ITEMS] >= limits[_MOST_ITEMS]  # settling may begin far off
            if tries and share[1] and totals[VISION_DEBT] > unmet:
                return UNMET, -1, worst
            enough = counts[_ITEMS] >= limits[_WINDOW] and counts[_ALL_TOKENS] >= limits[_LEAST_TOKENS]
            if enough and totals[VISION_DEBT] <= 0:
                return DONE, -1, worst
        if counts[_OUT] == out.shape[0]:
            return FULL, -1, worst
        if by_samples:
            source = scheduled(order, totals)
        else:
            source = furthest_behind(weights, multimodal, debts, totals, share[1] > 0)
        if source < 0:
            return DRY, source, worst
        place = cursors[source] - first[source]
        if place < 0 or place >= size[source]:
            return LOAD, source, worst
        state, tokens = status[source, place], samples[source, place, _TOKENS]
        if most_epochs[source] >= 0 and samples[source, place, _EPOCH] >= most_epochs[source]:
            return DROP, source, worst
        cursors[source] += 1
        if state != FINE:
            barren[source] += 1
            if state == REFUSED:
                if refused[source] < MOST_NAMED:
                    refused_lines[source, refused[source]] = samples[source, place, _LINE]
                refused[source] += 1
            if barren[source] > most_barren[source]:
                return BARREN, source, worst
            if state != EXCLUDED:
                continue
        vision = samples[source, place, _VISION]
        book(weights, multimodal, debts, totals, share, by_samples, source, tokens, vision)
        if not limits[_SETTLING]:
            worst = max(worst, largest_error(weights, multimodal, debts, totals, share))
        if state != FINE:
            continue
        barren[source] = 0
        out[counts[_OUT], 0] = source
        for field in range(places.size):
            out[counts[_OUT], places[field]] = samples[source, place, field]
        counts[_OUT] += 1
        counts[_ITEMS] += max(1, (tokens + limits[_CAPACITY] - 1) // limits[_CAPACITY])
        counts[_ALL_TOKENS] += tokens
