"""One lane of a plan: its cursors, debts, carry-over and pending packs; draws samples and fills packs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from k25_pipelines.errors import RecipeError
from k25_pipelines.keys import random_key
from k25_pipelines.plan.blend import (
    LARGEST_DEBT,
    LONGEST,
    VISION_DEBT,
    Blend,
    blend_of,
    charge,
    drop,
    longest_allowed,
    sample_order,
)
from k25_pipelines.plan.recipe import Recipe
from k25_pipelines.plan.source import SourceTable
from k25_pipelines.plan.stream import (
    BARREN,
    DROP,
    DRY,
    FULL,
    LOAD,
    MOST_NAMED,
    UNMET,
    Blocks,
    Stream,
    draw_until_stopped,
    load_block,
    new_blocks,
)
from k25_pipelines.plan.window import ITEM, PackRule, Packs, as_table, concatenated, joined, pack_window, split_texts

MOST_SETTLING = 64
"""After a change a window grows to at most this many times its samples."""


@dataclass(kw_only=True, slots=True)
class Lane:
    """The state of one lane between two windows; sources are numbers in the order of their names."""

    number: int
    cursors: list[int]
    """Next position of each source in the lane."""
    blend: Blend
    carry: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ITEM))
    """Samples that wait for a pack."""
    pending: Packs = field(default_factory=Packs)
    """Packs that wait for their step."""
    windows: int = 0
    """Windows packed so far."""
    dry: str = ""
    """Why no more samples come; empty while they do."""
    settling: bool = False
    """After a change: draw until carry-over and new samples together meet the blend."""
    blocks: Blocks | None = None
    """Measured samples, derived from the cursors."""


@dataclass(kw_only=True, slots=True)
class Refusals:
    """Samples with media that no pack can hold, by source."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)
    """The first of them."""


def new_blend(recipe: Recipe, names: Sequence[str], sources: Mapping[str, SourceTable]) -> Blend:
    """Return the blend of a recipe before any sample; `names` are all sources in their order.

    Raises:
        RecipeError: a vision share that only one kind of sources is there to meet, or weights, a share and
            packs so large that debts would not stay exact in 64 bits.
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
    blend = blend_of(
        weights, num_sources=len(names), multimodal=multimodal, share=share, by_samples=recipe.blend == "samples"
    )
    if recipe.pack_tokens * max(recipe.pack_window, 2 * recipe.packs_per_step) > longest_allowed(blend):
        raise RecipeError(
            f"recipe {recipe.name}: debts of a window of {recipe.pack_window} samples of {recipe.pack_tokens} tokens "
            "do not fit 64 bits with these weights and this share; take rounder weights, or a smaller pack_window"
        )
    return blend


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
        drawn = _draw_samples(lane, recipe, streams, lanes=lanes, rule=rule, refusals=refusals)
        lane.carry = concatenated([lane.carry, split_texts(drawn, rule.capacity)])
    key = random_key("packs", recipe.seed, lane.number, lane.windows)
    packs, lane.carry = pack_window(lane.carry, rule, key, last=bool(lane.dry))
    lane.windows += 1
    lane.pending = joined([lane.pending, packs])
    return len(packs) > 0


def change_recipe(lane: Lane, recipe: Recipe, names: Sequence[str], sources: Mapping[str, SourceTable]) -> None:
    """Put a lane under another recipe, exactly at this step.

    Pending packs go back to the carry-over as samples, those of sources taken out are let go,
    and the rest is charged to the new debts: the samples that follow make up for them.

    Raises:
        RecipeError: as `new_blend`, or the debts of what is carried would not stay exact.
    """
    waiting = concatenated([lane.carry, lane.pending.items])
    lane.carry = waiting[np.isin(waiting["source"], [names.index(name) for name in recipe.sources])]
    lane.pending = Packs()
    blend = new_blend(recipe, names, sources)
    if int(lane.carry["tokens"].sum()) > 8 * longest_allowed(blend):
        raise RecipeError(
            f"recipe {recipe.name}: debts of the carried samples exceed {LARGEST_DEBT}; take rounder weights"
        )
    for source, tokens, vision in lane.carry[["source", "tokens", "vision"]].tolist():
        charge(blend, source, num_tokens=tokens, vision_tokens=vision)
    blend.totals[LONGEST] = max(blend.totals[LONGEST], lane.blend.totals[LONGEST])
    blend.worst = lane.blend.worst
    lane.blend, lane.settling, lane.dry, lane.blocks = blend, True, "", None


def _draw_samples(
    lane: Lane, recipe: Recipe, streams: Sequence[Stream], *, lanes: int, rule: PackRule, refusals: Refusals
) -> np.ndarray:
    """Return the samples that join the window, ITEM [n], booked in cursors and debts.

    A window closes when it has its samples and two steps' tokens, not while vision is behind,
    say after a very long text: every window holds the share. After a change it first settles.
    """
    lane.blocks = lane.blocks or new_blocks(streams, lanes)
    blend, blocks = lane.blend, lane.blocks
    entries = [recipe.sources.get(stream.table.name) for stream in streams]
    most_epochs = np.array([-1 if entry is None or entry.max_epochs is None else entry.max_epochs for entry in entries])
    least_tokens = 2 * rule.packs_per_step * rule.capacity
    limits = np.array(
        [recipe.pack_window, least_tokens, rule.capacity, lane.settling, MOST_SETTLING * recipe.pack_window]
    )
    counts = np.array([len(lane.carry), lane.carry["tokens"].sum(), 0])
    cursors, order = np.array(lane.cursors), sample_order(blend)
    parts = [np.zeros(recipe.pack_window, dtype=ITEM)]
    while True:
        code, source = draw_until_stopped(
            blend, blocks, order=order, cursors=cursors, most_epochs=most_epochs, limits=limits, counts=counts,
            out=as_table(parts[-1]),
        )  # fmt: skip
        if code == LOAD:
            load_block(
                blocks, streams[source], int(cursors[source]), blend=blend, recipe=recipe, lanes=lanes, lane=lane.number
            )
        elif code == DROP:
            drop(blend, source)
            order = sample_order(blend)
        elif code == FULL:
            parts.append(np.zeros(recipe.pack_window, dtype=ITEM))
            counts[2] = 0
        else:
            break
    lane.cursors, lane.settling = cursors.tolist(), False
    _note_refusals(blocks, streams, refusals)
    if code == DRY:
        lane.dry = _dry(lane, recipe, streams)
    elif code in (BARREN, UNMET):
        raise RecipeError(f"recipe {recipe.name}: {_hopeless(recipe, None if code == UNMET else streams[source])}")
    return concatenated([*parts[:-1], parts[-1][: counts[2]]])


def _note_refusals(blocks: Blocks, streams: Sequence[Stream], refusals: Refusals) -> None:
    """Move what the loop counted to the refusals."""
    for number in np.flatnonzero(blocks.refused).tolist():
        name, count = streams[number].table.name, int(blocks.refused[number])
        refusals.counts[name] = refusals.counts.get(name, 0) + count
        lines = refusals.lines.setdefault(name, [])
        lines.extend(blocks.refused_lines[number, : min(count, MOST_NAMED - len(lines))].tolist())
    blocks.refused[:] = 0


def _dry(lane: Lane, recipe: Recipe, streams: Sequence[Stream]) -> str:
    """Say which sources ran out."""
    wanted = None if lane.blend.share is None else bool(lane.blend.totals[VISION_DEBT] > 0)
    names = [
        stream.table.name
        for stream in streams
        if stream.table.name in recipe.sources
        and not lane.blend.weights[stream.number]
        and wanted in (None, bool(lane.blend.multimodal[stream.number]))
    ]
    group = {None: "sources", True: "multimodal sources", False: "text-only sources"}[wanted]
    return f"the {group} ran dry at their max_epochs: {', '.join(names)}"


def _hopeless(recipe: Recipe, stream: Stream | None) -> str:
    """Say why no plan can be made: of one source that gives nothing, or of the share."""
    if stream is None:
        return (
            f"vision_share {recipe.vision_share} cannot be met: its multimodal samples have a smaller share of vision "
            "tokens themselves; lower it, or take samples with less text"
        )
    return (
        f"no sample of {stream.table.name} can be packed (quarantined, excluded, or longer than pack_tokens "
        f"{recipe.pack_tokens}); leave the source out or raise pack_tokens"
    )
