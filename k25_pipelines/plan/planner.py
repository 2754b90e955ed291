"""Source tables and a recipe -> the segments of a plan, one after the other, from the start or from a header."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from k25_pipelines.errors import PlanError, RecipeError
from k25_pipelines.plan.lane import Lane, Refusals, Stream, change_recipe, new_blend, refill
from k25_pipelines.plan.recipe import MOST_LANES, Recipe, recipe_at, recipe_dict, source_names
from k25_pipelines.plan.rows import rows_table
from k25_pipelines.plan.segment import NO_TOMBSTONES, PLAN_VERSION, Segment, make_segment
from k25_pipelines.plan.source import SourceTable, source_identity
from k25_pipelines.plan.state import lane_from_state, lane_state

PACKS_PER_SEGMENT = 16_384
MOST_SEGMENT_STEPS = 1000
LEAST_LANE_PACKS = 8
"""A lane by default gives each step at least so many packs, so that strata make steps alike."""


@dataclass(kw_only=True, slots=True)
class _Planner:
    """What planning goes on from: all of it is in the header of the next segment, or derived."""

    recipe: Recipe
    names: tuple[str, ...]
    sources: Mapping[str, SourceTable]
    lanes: list[Lane]
    streams: list[list[Stream]]
    refusals: Refusals = field(default_factory=Refusals)


def plan_segments(
    sources: Sequence[SourceTable],
    recipe: Recipe,
    *,
    tokenizer: str = "",
    steps: int | None = None,
    segment_steps: int | None = None,
    resume: Mapping[str, Any] | None = None,
) -> Iterator[Segment]:
    """Yield the segments of a plan.

    Args:
        sources: a table for each dataset the recipe and its changes name.
        recipe: what to plan.
        tokenizer: digest of the tokenizer that the lengths are of.
        steps: how far to plan; the recipe's by default [steps].
        segment_steps: length of a segment; changes no pack [steps].
        resume: header of an existing segment of this plan: it is planned again, then the rest.

    Raises:
        RecipeError: a source is missing or of a licence that is not allowed, the share cannot be
            met, or a group of sources runs dry before the last step.
        PlanError: `resume` is of a plan made from something else.
    """
    steps = recipe.steps if steps is None else steps
    start = first_start(sources, recipe, tokenizer=tokenizer)
    length = segment_steps or max(1, min(MOST_SEGMENT_STEPS, PACKS_PER_SEGMENT // recipe.packs_per_step))
    step, previous, num_steps = 0, None, length
    if resume is not None:
        _check_resume(resume, start)
        start = {**start, "state": resume["state"]}
        step, previous, num_steps = resume["first_step"], resume["previous"], resume["num_steps"]
    planner = _planner(sources, recipe, start, step=step)
    while step < steps:
        num_steps = min(num_steps, steps - step) if resume is None else num_steps
        segment = _plan_one(planner, start, first_step=step, num_steps=num_steps, previous=previous)
        yield segment
        step, previous, num_steps, resume = step + num_steps, segment.digest, length, None


def first_start(sources: Sequence[SourceTable], recipe: Recipe, *, tokenizer: str = "") -> dict[str, Any]:
    """Return what stands before step 0 of a plan: `segment.plan_id` of it is the plan's name.

    Raises:
        RecipeError: as `plan_segments`.
    """
    names = source_names(recipe)
    tables = {table.name: table for table in sources}
    _check_sources(recipe, names, tables)
    lanes = recipe.lanes or default_lanes(recipe, min(-(-t.num_lines // t.chunk_lines) for t in tables.values()))
    blend_of = recipe_at(recipe, 0)
    state = [
        lane_state(Lane(number=number, cursors=[0] * len(names), blend=new_blend(blend_of, names, tables)), names)
        for number in range(lanes)
    ]
    return {
        "plan_version": PLAN_VERSION,
        "recipe": recipe_dict(recipe, steps=False),
        "datasets": {name: source_identity(tables[name]) for name in names},
        "tokenizer": tokenizer,
        "tombstones": NO_TOMBSTONES,
        "lanes": lanes,
        "first_step": 0,
        "previous": None,
        "state": state,
    }


def default_lanes(recipe: Recipe, num_chunks: int) -> int:
    """Return the largest power of two that divides every packs_per_step of the recipe and suits it.

    Each lane keeps at least LEAST_LANE_PACKS packs a step, no source has fewer chunks than there
    are lanes, and there are at most MOST_LANES.
    """
    packs = [recipe.packs_per_step, *(c.packs_per_step for c in recipe.changes if c.packs_per_step)]
    lanes = 1
    while 2 * lanes <= min(MOST_LANES, num_chunks) and all(
        p % (2 * lanes) == 0 and p // (2 * lanes) >= LEAST_LANE_PACKS for p in packs
    ):
        lanes *= 2
    return lanes


def _planner(sources: Sequence[SourceTable], recipe: Recipe, start: Mapping[str, Any], *, step: int) -> _Planner:
    """Return the planner that stands before `step`; a change at that very step is still to come."""
    names = source_names(recipe)
    tables = {table.name: table for table in sources}
    current = recipe_at(recipe, max(0, step - 1))
    lanes = [
        lane_from_state(state, number, names=names, blend=new_blend(current, names, tables))
        for number, state in enumerate(start["state"])
    ]
    streams = [[Stream(number=n, table=tables[name]) for n, name in enumerate(names)] for _ in lanes]
    return _Planner(recipe=recipe, names=names, sources=tables, lanes=lanes, streams=streams)


def _plan_one(
    planner: _Planner, start: Mapping[str, Any], *, first_step: int, num_steps: int, previous: str | None
) -> Segment:
    """Return one segment, and leave the planner before the step after it."""
    state = [lane_state(lane, planner.names) for lane in planner.lanes]
    start = {**start, "first_step": first_step, "previous": previous, "state": state}
    planner.refusals = Refusals()
    packs: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    for step in range(first_step, first_step + num_steps):
        taken = _plan_step(planner, step)
        packs.extend(taken)
        steps.append(np.full(len(taken), step, dtype=np.int64))
    table = rows_table(
        packs, np.concatenate(steps), recipe=planner.recipe, names=planner.names, sources=planner.sources
    )
    report = {
        "worst_debt_tokens": max(lane.blend.worst for lane in planner.lanes),
        "refused": planner.refusals.counts,
        "refused_lines": planner.refusals.lines,
    }
    return make_segment(start, table, num_steps=num_steps, report=report)


def _plan_step(planner: _Planner, step: int) -> list[np.ndarray]:
    """Return the packs of one step: the same number from each lane, in the order of the lanes."""
    recipe = recipe_at(planner.recipe, step)
    changed = any(change.from_step == step for change in planner.recipe.changes)
    num_lanes = len(planner.lanes)
    wanted = recipe.packs_per_step // num_lanes
    packs = []
    for lane, streams in zip(planner.lanes, planner.streams, strict=True):
        if changed:
            change_recipe(lane, recipe, planner.names, planner.sources)
        while len(lane.pending) < wanted:
            if not refill(lane, recipe, streams, lanes=num_lanes, refusals=planner.refusals):
                raise RecipeError(
                    f"recipe {recipe.name}: {lane.dry}, at step {step}; plan at most {step} steps, "
                    "raise max_epochs or add a source"
                )
        packs.extend(lane.pending[:wanted])
        del lane.pending[:wanted]
    return packs


def _check_sources(recipe: Recipe, names: Sequence[str], tables: Mapping[str, SourceTable]) -> None:
    """Raise RecipeError where a source is missing, has nothing to give, or stands under a licence not allowed."""
    for name in names:
        if name not in tables:
            raise RecipeError(f"recipe {recipe.name}: no table of source {name}; known are {', '.join(sorted(tables))}")
        table = tables[name]
        if not table.num_lines or (table.quarantined is not None and table.quarantined.all()):
            raise RecipeError(f"recipe {recipe.name}: source {name} has no readable sample; index it or leave it out")
        refused = {
            licence: count
            for licence, count in sorted(table.licences.items())
            if recipe.licences is not None and licence not in recipe.licences
        }
        if refused:
            counts = ", ".join(f"{count} of {licence or 'no licence'}" for licence, count in refused.items())
            raise RecipeError(
                f"recipe {recipe.name}: source {name} has samples of licences that are not allowed: {counts}; "
                f"allowed are {', '.join(recipe.licences or ())}: add the licence, or leave the source out"
            )


def _check_resume(resume: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Raise PlanError where a header is not of the plan that starts so."""
    for name in ("plan_version", "recipe", "datasets", "tokenizer", "tombstones", "lanes"):
        if resume[name] != start[name]:
            raise PlanError(f"the last segment was planned from another {name}; make a new plan or a fork")
