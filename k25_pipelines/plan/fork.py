"""A planner that stands before a step -> the same under another recipe, other dataset versions or exclusions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from k25_pipelines.errors import RecipeError
from k25_pipelines.keys import digest
from k25_pipelines.plan.admission import check_sources
from k25_pipelines.plan.lane import Lane, change_recipe
from k25_pipelines.plan.planner import Planner, new_streams
from k25_pipelines.plan.recipe import Recipe, recipe_at, recipe_dict, source_entry, source_names
from k25_pipelines.plan.segment import PLAN_VERSION
from k25_pipelines.plan.shuffle import Order, lane_samples
from k25_pipelines.plan.source import SourceTable, source_identity

FIXED_FIELDS = ("seed", "pack_tokens", "profile", "tokenizer", "max_image_tokens")
"""What samples that wait for a pack were drawn and measured with."""
LIMITS = ("max_images_per_pack", "max_patches_per_pack")


def fork_id(fork: Mapping[str, Any], recipe: Mapping[str, Any], versions: Mapping[str, str], tombstones: str) -> str:
    """Return the name of a fork: of parent, step, exclusions, recipe, dataset versions and tombstones."""
    told = {name: fork[name] for name in ("parent", "step", "excluded")}
    return digest(PLAN_VERSION, "fork", told, recipe, versions, tombstones)


def rebased(
    planner: Planner,
    sources: Sequence[SourceTable],
    recipe: Recipe,
    *,
    tombstones: str,
    fork: Mapping[str, Any] | None,
) -> Planner:
    """Return a planner at the same step that goes on with other tables, recipe or exclusions.

    Samples that wait go back to the carry-over and are charged to the new debts; those that are
    excluded by now are charged too, and then let go. Sources that join begin at their first
    sample. A source whose dataset version is another one goes on with its next epoch, in the
    order of the new version: no sample comes twice under the same epoch's draws.

    Args:
        planner: stands before the step; it is used up.
        sources: the tables of the new recipe.
        recipe: what holds from the step on.
        tombstones: digest of the list that the tables' exclusions include.
        fork: what the header tells of the newest fork, None in a plan that is none.

    Raises:
        RecipeError: the recipe differs in what a plan keeps for life, or its sources cannot meet it.
    """
    _check_kept(planner, recipe)
    tables = {**planner.sources, **{table.name: table for table in sources}}
    names = (*planner.names, *sorted(set(source_names(recipe)) - set(planner.names)))
    check_sources(recipe, source_names(recipe), tables)
    identities = {
        **planner.start["datasets"],
        **{name: source_identity(tables[name]) for name in source_names(recipe)},
    }
    current = recipe_at(recipe, max(fork["step"] if fork else 0, planner.step - 1))  # a change at the step is to come
    for lane, cursors in zip(planner.lanes, _cursors(planner, names, identities), strict=True):
        lane.cursors = cursors
        change_recipe(lane, current, names, tables)
        lane.carry = lane.carry[~_is_excluded(lane, names, tables)]
    start = {
        **planner.start,
        "recipe": recipe_dict(recipe, steps=False),
        "names": list(names),
        "datasets": identities,
        "tombstones": tombstones,
        "fork": None if fork is None else dict(fork),
    }
    streams = new_streams(names, tables, len(planner.lanes))
    return replace(planner, start=start, recipe=recipe, names=names, sources=tables, streams=streams)


def _check_kept(planner: Planner, recipe: Recipe) -> None:
    """Raise RecipeError where a recipe differs from the plan's in what a plan keeps for life."""
    old, remedy = planner.recipe, "keep it, or make a new plan with: k25 plan RECIPE.yaml"
    for name in FIXED_FIELDS:
        ours, theirs = getattr(old, name), getattr(recipe, name)
        if ours != theirs:
            raise RecipeError(f"recipe {recipe.name}: {name} is {theirs!r}, a fork keeps the plan's {ours!r}; {remedy}")
    lanes = len(planner.lanes)
    if recipe.lanes not in (None, lanes):
        raise RecipeError(f"recipe {recipe.name}: lanes is {recipe.lanes}, a fork keeps the plan's {lanes}; {remedy}")
    for packs in (recipe.packs_per_step, *(c.packs_per_step for c in recipe.changes if c.packs_per_step)):
        if packs % lanes:
            raise RecipeError(
                f"recipe {recipe.name}: packs_per_step {packs} is no multiple of the plan's {lanes} lanes; take one, "
                "or make a new plan"
            )
    for name in LIMITS:
        ours, theirs = getattr(old, name), getattr(recipe, name)
        if theirs is not None and (ours is None or theirs < ours):
            raise RecipeError(
                f"recipe {recipe.name}: {name} is {theirs}, below the plan's {'none' if ours is None else ours}, which "
                f"samples that wait were drawn under; {remedy}"
            )
    for name in sorted({*source_names(old)} & {*source_names(recipe)}):
        ours, theirs = source_entry(old, name), source_entry(recipe, name)
        if (ours.augment, ours.flip_safe) != (theirs.augment, theirs.flip_safe):
            raise RecipeError(f"recipe {recipe.name}: sources.{name}.augment differs from the plan's; {remedy}")


def _cursors(planner: Planner, names: Sequence[str], identities: Mapping[str, Any]) -> list[list[int]]:
    """Return each lane's cursors: those that were, 0 of sources that join, the next epoch of other versions."""
    cursors = [[*map(int, lane.cursors), *[0] * (len(names) - len(planner.names))] for lane in planner.lanes]
    for number, name in enumerate(planner.names):
        was, now = planner.start["datasets"][name], identities[name]
        if was["digest"] == now["digest"]:
            continue
        if was["num_lines"] > now["num_lines"]:
            raise RecipeError(f"source {name}: version {now['digest']} is older than the plan's; take a newer one")
        places = [places[number] for places in cursors]
        epoch = _next_epoch(_order(planner, name, was), places)
        for lane, lane_places in enumerate(cursors):
            lane_places[number] = _first_of_epoch(_order(planner, name, now), lane, epoch)
    return cursors


def _order(planner: Planner, name: str, identity: Mapping[str, Any]) -> Order:
    return Order(
        dataset=name,
        seed=planner.recipe.seed,
        num_lines=identity["num_lines"],
        chunk_lines=identity["chunk_lines"],
        lanes=len(planner.lanes),
    )


def _next_epoch(order: Order, cursors: Sequence[int]) -> int:
    """Return the epoch after the last that any lane has drawn of; 0 where nothing was drawn."""
    last = [lane_samples(order, lane, np.array([at - 1]))[1][0] for lane, at in enumerate(cursors) if at]
    return int(max(last, default=-1)) + 1


def _first_of_epoch(order: Order, lane: int, epoch: int) -> int:
    """Return the first position of a lane that lies in an epoch, or after it where the lane has none of it."""
    low, high = 0, (epoch + 1) * order.num_lines + 1
    while low < high:
        middle = (low + high) // 2
        if lane_samples(order, lane, np.array([middle]))[1][0] < epoch:
            low = middle + 1
        else:
            high = middle
    return low


def _is_excluded(lane: Lane, names: Sequence[str], tables: Mapping[str, SourceTable]) -> np.ndarray:
    """Return which samples of the carry-over are excluded by now."""
    found = np.zeros(len(lane.carry), dtype=bool)
    for number, name in enumerate(names):
        excluded = tables[name].excluded
        if excluded is not None:
            mine = np.flatnonzero(lane.carry["source"] == number)
            found[mine] = excluded[lane.carry["line"][mine]]
    return found
