"""Source tables and a recipe -> the segments of a plan, one after the other, from the start or from a header."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.errors import PlanError, RecipeError
from k25_pipelines.plan.admission import check_sources
from k25_pipelines.plan.compact import compact, expanded
from k25_pipelines.plan.lane import Lane, Refusals, change_recipe, new_blend, refill
from k25_pipelines.plan.recipe import Recipe, parse_recipe, recipe_at, recipe_dict, source_names
from k25_pipelines.plan.rows import rows_table
from k25_pipelines.plan.segment import (
    NO_TOMBSTONES,
    PLAN_VERSION,
    Segment,
    make_segment,
    state_name,
)
from k25_pipelines.plan.source import SourceTable, source_identity
from k25_pipelines.plan.state import lane_from_state, lane_state
from k25_pipelines.plan.stream import Stream
from k25_pipelines.plan.summary import Totals, totals_after
from k25_pipelines.plan.window import Packs

PACKS_PER_SEGMENT = 16_384
MOST_SEGMENT_STEPS = 1000
LEAST_LANE_PACKS = 8
"""A lane by default gives each step at least so many packs, so that strata make steps alike."""
DEFAULT_LANES = 64
"""Lanes of a recipe that asks for none, at most; one for more machines asks for as many as they are."""


@dataclass(kw_only=True, slots=True)
class Planner:
    """Stands before a step. All of it is in the header and state of the segment that begins there, or derived."""

    start: Mapping[str, Any]
    """The header's fields but those of one segment."""
    recipe: Recipe
    names: tuple[str, ...]
    """All sources, in the order that numbers them: in forks, those that joined stand last."""
    sources: Mapping[str, SourceTable]
    lanes: list[Lane]
    streams: list[list[Stream]]
    step: int = 0
    previous: str | None = None
    """Digest of the segment before."""
    totals: Totals = field(default_factory=dict)
    """What the plan amounts to before the step."""
    refusals: Refusals = field(default_factory=Refusals)

    @property
    def fork_step(self) -> int:
        """The step from which the recipe is in force: that of the newest fork, or 0."""
        fork = self.start["fork"]
        return fork["step"] if fork else 0


def plan_segments(
    sources: Sequence[SourceTable],
    recipe: Recipe,
    *,
    tokenizer: str = "",
    steps: int | None = None,
    segment_steps: int | None = None,
    resume: tuple[Mapping[str, Any], bytes] | None = None,
) -> Iterator[Segment]:
    """Yield the segments of a plan.

    Args:
        sources: a table for each dataset the recipe and its changes name.
        recipe: what to plan.
        tokenizer: digest of the tokenizer that the lengths are of.
        steps: how far to plan; the recipe's by default [steps].
        segment_steps: length of a segment; changes no pack [steps].
        resume: header and state of an existing segment of this plan: it is planned again, then the rest.

    Raises:
        RecipeError: a source is missing or of a licence that is not allowed, the share cannot be
            met, or a group of sources runs dry before the last step.
        PlanError: `resume` is of a plan made from something else.
    """
    steps = recipe.steps if steps is None else steps
    if resume is None:
        planner = begun(sources, recipe, tokenizer=tokenizer)
    else:
        planner = resumed(sources, *resume)
        if resume[0]["recipe"] != recipe_dict(recipe, steps=False) or resume[0]["tokenizer"] != tokenizer:
            raise PlanError("the last segment was planned from another recipe or tokenizer; make a new plan or a fork")
        yield next_segment(planner, resume[0]["num_steps"])
    while planner.step < steps:
        yield next_segment(planner, min(segment_steps or default_segment_steps(planner), steps - planner.step))


def begun(
    sources: Sequence[SourceTable], recipe: Recipe, *, tokenizer: str = "", tombstones: str = NO_TOMBSTONES
) -> Planner:
    """Return the planner that stands before step 0.

    Raises:
        RecipeError: as `plan_segments`.
    """
    names = source_names(recipe)
    tables = {table.name: table for table in sources}
    check_sources(recipe, names, tables)
    num_lanes = recipe.lanes or default_lanes(recipe, min(-(-t.num_lines // t.chunk_lines) for t in tables.values()))
    blend_of = recipe_at(recipe, 0)
    lanes = [
        Lane(number=number, cursors=[0] * len(names), blend=new_blend(blend_of, names, tables))
        for number in range(num_lanes)
    ]
    start = {
        "plan_version": PLAN_VERSION,
        "recipe": recipe_dict(recipe, steps=False),
        "names": list(names),
        "datasets": {name: source_identity(tables[name]) for name in names},
        "tokenizer": tokenizer,
        "tombstones": tombstones,
        "lanes": num_lanes,
        "fork": None,
    }
    return Planner(
        start=start,
        recipe=recipe,
        names=names,
        sources=tables,
        lanes=lanes,
        streams=new_streams(names, tables, num_lanes),
    )


def first_start(
    sources: Sequence[SourceTable], recipe: Recipe, *, tokenizer: str = "", tombstones: str = NO_TOMBSTONES
) -> dict[str, Any]:
    """Return what stands before step 0 of a plan: `segment.plan_id` of it is the plan's name.

    Raises:
        RecipeError: as `plan_segments`.
    """
    return _start_here(begun(sources, recipe, tokenizer=tokenizer, tombstones=tombstones))[0]


def resumed(sources: Sequence[SourceTable], header: Mapping[str, Any], state: bytes) -> Planner:
    """Return the planner that stands before a segment, from its header and state; a change at that step is to come.

    Raises:
        PlanError: a source is not the one that the segment was planned from, or the planner is another one.
    """
    if header["plan_version"] != PLAN_VERSION:
        raise PlanError(
            f"the segment was planned by {header['plan_version']}, this is {PLAN_VERSION}; make a new plan, "
            "or take the release that made it"
        )
    recipe = parse_recipe({**header["recipe"], "steps": 1})
    names = tuple(header["names"])
    tables = {table.name: table for table in sources}
    for name in source_names(recipe):
        if source_identity(tables[name]) != header["datasets"][name]:
            raise PlanError(f"the segment was planned from another {name} than this version; make a new plan or a fork")
    tables |= {name: _gone(name) for name in names if name not in tables}
    step, fork = header["first_step"], header["fork"]
    current = recipe_at(recipe, max(fork["step"] if fork else 0, step - 1))
    kept = expanded(state)
    lanes = [
        lane_from_state(entry, number, names=names, blend=new_blend(current, names, tables))
        for number, entry in enumerate(kept["lanes"])
    ]
    fixed = {name: value for name, value in header.items() if name not in _OF_ONE_SEGMENT}
    return Planner(
        start=fixed,
        recipe=recipe,
        names=names,
        sources=tables,
        lanes=lanes,
        streams=new_streams(names, tables, len(lanes)),
        step=step,
        previous=header["previous"],
        totals=kept["totals"],
    )


def next_segment(planner: Planner, num_steps: int) -> Segment:
    """Return the segment of the next steps, and leave the planner before the step after it."""
    start, state = _start_here(planner)
    planner.refusals = Refusals()
    first_step, end_step = planner.step, planner.step + num_steps
    packs: list[Packs] = []
    sizes: list[int] = []
    for step in range(first_step, end_step):
        taken = _plan_step(planner, step)
        packs.extend(taken)
        sizes.append(recipe_at(planner.recipe, step).packs_per_step)
    table = rows_table(
        packs,
        np.repeat(np.arange(first_step, end_step), sizes),
        recipe=planner.recipe,
        names=planner.names,
        sources=planner.sources,
    )
    report = _report(planner, table, packs=sizes)
    segment = make_segment(start, state, table, num_steps=num_steps, report=report)
    planner.step, planner.previous, planner.totals = end_step, segment.digest, report["totals"]
    return segment


def default_segment_steps(planner: Planner) -> int:
    """Return how many steps a segment has where nothing else is said."""
    packs = recipe_at(planner.recipe, planner.step).packs_per_step
    return max(1, min(MOST_SEGMENT_STEPS, PACKS_PER_SEGMENT // packs))


def default_lanes(recipe: Recipe, num_chunks: int) -> int:
    """Return the largest power of two that divides every packs_per_step of the recipe and suits it.

    Each lane keeps at least LEAST_LANE_PACKS packs a step, no source has fewer chunks than there
    are lanes, and there are at most DEFAULT_LANES.
    """
    packs = [recipe.packs_per_step, *(c.packs_per_step for c in recipe.changes if c.packs_per_step)]
    lanes = 1
    while 2 * lanes <= min(DEFAULT_LANES, num_chunks) and all(
        p % (2 * lanes) == 0 and p // (2 * lanes) >= LEAST_LANE_PACKS for p in packs
    ):
        lanes *= 2
    return lanes


def new_streams(names: Sequence[str], tables: Mapping[str, SourceTable], num_lanes: int) -> list[list[Stream]]:
    """Return the streams of every lane, a source each."""
    return [[Stream(number=n, table=tables[name]) for n, name in enumerate(names)] for _ in range(num_lanes)]


_OF_ONE_SEGMENT = ("first_step", "previous", "state", "num_steps", "body", "report")


def _gone(name: str) -> SourceTable:
    """Return a table in the place of a source that left, so that the others keep their numbers."""
    return SourceTable(name=name, text_tokens=np.zeros(0, dtype=np.int64), chunk_lines=1)


def _start_here(planner: Planner) -> tuple[dict[str, Any], bytes]:
    """Return header fields and state of a segment that begins at the planner's step."""
    lanes = [lane_state(lane, planner.names) for lane in planner.lanes]
    state = compact({"lanes": lanes, "totals": planner.totals})
    place = {"first_step": planner.step, "previous": planner.previous, "state": state_name(state)}
    return {**planner.start, **place}, state


def _plan_step(planner: Planner, step: int) -> list[Packs]:
    """Return the packs of one step: the same number from each lane, in the order of the lanes."""
    recipe = recipe_at(planner.recipe, step)
    is_changed = step > planner.fork_step and any(change.from_step == step for change in planner.recipe.changes)
    num_lanes = len(planner.lanes)
    wanted = recipe.packs_per_step // num_lanes
    packs: list[Packs] = []
    for lane, streams in zip(planner.lanes, planner.streams, strict=True):
        if is_changed:
            change_recipe(lane, recipe, planner.names, planner.sources)
        while len(lane.pending) < wanted:
            if not refill(lane, recipe, streams, lanes=num_lanes, refusals=planner.refusals):
                raise RecipeError(
                    f"recipe {recipe.name}: {lane.dry}, at step {step}; plan at most {step} steps, "
                    "raise max_epochs or add a source"
                )
        packs.append(lane.pending.take(wanted))
    return packs


def _report(planner: Planner, table: pa.Table, *, packs: Sequence[int]) -> dict[str, Any]:
    """Return what a segment's header tells of its rows, and of the plan up to its end."""
    refusals, recipe = planner.refusals, planner.recipe
    room = sum(packs) * recipe.pack_tokens
    totals = totals_after(planner.totals, table, num_packs=sum(packs), room=room, refused=refusals.counts)
    return {
        "worst_debt_tokens": max(lane.blend.worst for lane in planner.lanes),
        "refused": refusals.counts,
        "refused_lines": refusals.lines,
        "totals": totals,
    }


__all__ = [
    "Planner",
    "begun",
    "default_lanes",
    "first_start",
    "next_segment",
    "plan_segments",
    "resumed",
]
