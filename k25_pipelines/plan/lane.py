"""One lane of a plan: its cursors, debts, carry-over and pending packs; draws samples and fills packs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from k25_pipelines.errors import RecipeError
from k25_pipelines.keys import random_key
from k25_pipelines.plan.blend import Blend, charge, drop, error_tokens, next_source
from k25_pipelines.plan.recipe import Recipe
from k25_pipelines.plan.shuffle import lane_samples
from k25_pipelines.plan.source import SourceTable, measure, source_order
from k25_pipelines.plan.window import ITEM, ITEM_FIELDS, PackRule, pack_window, split_texts

FINE, QUARANTINED, REFUSED = 0, 1, 2
BLOCK = 1024
"""Positions measured at once; changes no plan."""
MOST_SETTLING = 64
"""After a change a window grows to at most this many times its samples."""
MOST_NAMED = 20
"""Refused samples named in a segment's header, for each source."""

_EPOCH, _TOKENS, _VISION = (ITEM_FIELDS.index(name) for name in ("epoch", "tokens", "vision"))


@dataclass(kw_only=True, slots=True)
class Lane:
    """The state of one lane between two windows; sources are numbers in the order of their names."""

    number: int
    cursors: list[int]
    """Next position of each source in the lane."""
    blend: Blend
    carry: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ITEM))
    """Samples that wait for a pack."""
    pending: list[np.ndarray] = field(default_factory=list)
    """Packs that wait for their step."""
    windows: int = 0
    """Windows packed so far."""
    dry: str = ""
    """Why no more samples come; empty while they do."""
    settling: bool = False
    """After a change: draw until carry-over and new samples together meet the blend."""


@dataclass(kw_only=True, slots=True)
class Stream:
    """Measured samples of one source in one lane, a block at a time: derived from the cursor, never stored."""

    number: int
    table: SourceTable
    first: int = 0
    """Position of the block's first sample."""
    rows: list[Any] = field(default_factory=list)
    """An ITEM each."""
    status: list[int] = field(default_factory=list)
    """FINE, QUARANTINED or REFUSED."""
    barren: int = 0
    """Samples passed over in a row."""


@dataclass(kw_only=True, slots=True)
class Refusals:
    """Samples with media that no pack can hold, by source."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)
    """The first of them."""


def new_blend(recipe: Recipe, names: Sequence[str], sources: Mapping[str, SourceTable]) -> Blend:
    """Return the blend of a recipe before any sample; `names` are all sources in their order.

    Raises:
        RecipeError: a vision share without multimodal or without text-only sources.
    """
    multimodal = frozenset(names.index(name) for name in recipe.sources if sources[name].multimodal)
    weights = {names.index(name): recipe.sources[name].weight for name in sorted(recipe.sources)}
    if recipe.vision_share is not None and not 0 < len(multimodal) < len(weights):
        missing = "text-only" if multimodal else "multimodal"
        raise RecipeError(
            f"recipe {recipe.name}: vision_share {recipe.vision_share} needs a {missing} source; "
            "add one, or leave the share out"
        )
    share = None if recipe.vision_share is None else Fraction(str(recipe.vision_share))
    return Blend(weights=weights, multimodal=multimodal, share=share, by_samples=recipe.blend == "samples")


def refill(lane: Lane, recipe: Recipe, streams: Sequence[Stream], *, lanes: int, refusals: Refusals) -> bool:
    """Draw samples up to the pack window, pack them, and move the packs that leave to `pending`.

    Returns:
        Whether any pack left: False when a group ran dry and what is left does not fill a step.

    Raises:
        RecipeError: the vision share cannot be met, or no sample of a source can be packed.
    """
    rule = PackRule(
        capacity=recipe.pack_tokens,
        packs_per_step=recipe.packs_per_step // lanes,
        max_patches=recipe.max_patches_per_pack,
        max_media=recipe.max_images_per_pack,
        vision_share=lane.blend.share,
    )
    if not lane.dry:
        rows = _draw_samples(lane, recipe, streams, lanes=lanes, rule=rule, refusals=refusals)
        drawn = split_texts(np.array(rows, dtype=ITEM), rule.capacity)
        lane.carry = np.concatenate([lane.carry, drawn])
    key = random_key("packs", recipe.seed, lane.number, lane.windows)
    packs, lane.carry = pack_window(lane.carry, rule, key, last=bool(lane.dry))
    lane.windows += 1
    lane.pending.extend(packs)
    return bool(packs)


def change_recipe(lane: Lane, recipe: Recipe, names: Sequence[str], sources: Mapping[str, SourceTable]) -> None:
    """Put a lane under another recipe, exactly at this step.

    Pending packs go back to the carry-over as samples, those of sources taken out are let go,
    and the rest is charged to the new debts: the samples that follow make up for them.
    """
    waiting = np.concatenate([lane.carry, *lane.pending])
    lane.carry = waiting[np.isin(waiting["source"], [names.index(name) for name in recipe.sources])]
    lane.pending = []
    blend = new_blend(recipe, names, sources)
    for item in lane.carry.tolist():
        charge(blend, item[0], num_tokens=item[_TOKENS], vision_tokens=item[_VISION])
    blend.longest, blend.worst = max(blend.longest, lane.blend.longest), lane.blend.worst
    lane.blend, lane.settling, lane.dry = blend, True, ""


def _draw_samples(
    lane: Lane, recipe: Recipe, streams: Sequence[Stream], *, lanes: int, rule: PackRule, refusals: Refusals
) -> list[tuple[int, ...]]:
    """Return the samples that join the window, an ITEM each, booked in cursors and debts."""
    blend, rows = lane.blend, []
    num_items, num_tokens = len(lane.carry), int(lane.carry["tokens"].sum())
    while _wants_more(lane, recipe, rule, num_items=num_items, num_tokens=num_tokens):
        source = next_source(blend)
        if source is None:
            lane.dry = _dry(lane, recipe, streams)
            break
        stream, position = streams[source], lane.cursors[source]
        place = position - stream.first
        if not 0 <= place < len(stream.rows):
            _load(stream, position, recipe, lanes=lanes, lane=lane.number)
            place = 0
        row, max_epochs = stream.rows[place], recipe.sources[stream.table.name].max_epochs
        if max_epochs is not None and row[_EPOCH] >= max_epochs:
            drop(blend, source)
            continue
        lane.cursors[source] = position + 1
        if stream.status[place]:
            _pass_over(stream, place, recipe, refusals)
            continue
        stream.barren = 0
        charge(blend, source, num_tokens=row[_TOKENS], vision_tokens=row[_VISION])
        if not lane.settling:
            blend.worst = max(blend.worst, error_tokens(blend))
        rows.append(row)
        num_items += max(1, -(-row[_TOKENS] // rule.capacity))
        num_tokens += row[_TOKENS]
    lane.settling = False
    return rows


def _wants_more(lane: Lane, recipe: Recipe, rule: PackRule, *, num_items: int, num_tokens: int) -> bool:
    """Whether the window has room: for samples, for two steps' tokens, or to settle after a change.

    It does not close while vision is behind, say after a very long text: every window holds the share.

    Raises:
        RecipeError: vision falls ever further behind, so that no order meets the share.
    """
    blend = lane.blend
    if lane.settling:
        if error_tokens(blend) > blend.longest and num_items < MOST_SETTLING * recipe.pack_window:
            return True
    elif blend.share is not None and blend.vision_debt > 3 * blend.share.denominator * max(
        blend.longest, recipe.pack_tokens
    ):
        raise RecipeError(
            f"recipe {recipe.name}: vision_share {recipe.vision_share} cannot be met: its multimodal samples "
            "have a smaller share of vision tokens themselves; lower it, or take samples with less text"
        )
    if num_items < recipe.pack_window or num_tokens < 2 * rule.packs_per_step * rule.capacity:
        return True
    return blend.vision_debt > 0


def _dry(lane: Lane, recipe: Recipe, streams: Sequence[Stream]) -> str:
    """Say which sources ran out."""
    wanted = None if lane.blend.share is None else lane.blend.vision_debt > 0
    names = [
        stream.table.name
        for stream in streams
        if stream.table.name in recipe.sources
        and stream.number not in lane.blend.weights
        and wanted in (None, stream.number in lane.blend.multimodal)
    ]
    group = {None: "sources", True: "multimodal sources", False: "text-only sources"}[wanted]
    return f"the {group} ran dry at their max_epochs: {', '.join(names)}"


def _load(stream: Stream, position: int, recipe: Recipe, *, lanes: int, lane: int) -> None:
    """Measure the next block of a stream, from `position`."""
    table = stream.table
    line, epoch = lane_samples(source_order(table, recipe, lanes), lane, np.arange(position, position + BLOCK))
    sizes = measure(table, recipe.sources[table.name], recipe, line, epoch)
    items = np.zeros(BLOCK, dtype=ITEM)
    items["source"], items["line"], items["epoch"] = stream.number, line, epoch
    items["tokens"], items["vision"] = sizes["num_tokens"], sizes["vision_tokens"]
    items["patches"], items["media"] = sizes["patches"], sizes["media"]
    status = np.where(_too_large(items, recipe), REFUSED, FINE)
    if table.quarantined is not None:
        status[table.quarantined[line]] = QUARANTINED
    stream.first, stream.rows, stream.status = position, items.tolist(), status.tolist()


def _too_large(items: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return which samples with media cannot stand in any pack."""
    too_large = items["tokens"] > recipe.pack_tokens
    if recipe.max_patches_per_pack is not None:
        too_large |= items["patches"] > recipe.max_patches_per_pack
    if recipe.max_images_per_pack is not None:
        too_large |= items["media"] > recipe.max_images_per_pack
    return too_large & (items["media"] > 0)


def _pass_over(stream: Stream, place: int, recipe: Recipe, refusals: Refusals) -> None:
    """Count a sample that was drawn but cannot be packed."""
    name = stream.table.name
    if stream.status[place] == REFUSED:
        refusals.counts[name] = refusals.counts.get(name, 0) + 1
        lines = refusals.lines.setdefault(name, [])
        if len(lines) < MOST_NAMED:
            lines.append(stream.rows[place][1])
    stream.barren += 1
    if stream.barren > 4 * stream.table.num_lines + BLOCK:
        raise RecipeError(
            f"recipe {recipe.name}: no sample of {name} can be packed (quarantined, or longer than pack_tokens "
            f"{recipe.pack_tokens}); leave the source out or raise pack_tokens"
        )
