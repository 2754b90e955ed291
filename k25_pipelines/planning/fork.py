"""A plan, a step and what is to be different from there on -> another plan that shares every step before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from k25_pipelines.errors import ObjectExistsError, PlanError, RecipeError
from k25_pipelines.plan.fork import fork_id, rebased
from k25_pipelines.plan.planner import Planner, default_segment_steps, next_segment
from k25_pipelines.plan.recipe import Recipe, bad_sample_budgets, parse_recipe, recipe_dict, source_names
from k25_pipelines.plan.segment import Segment
from k25_pipelines.planning.exclusions import (
    exclusions_told,
    read_exclusions,
    selected,
    tombstones,
    write_exclusions,
)
from k25_pipelines.planning.index import (
    PLANS,
    Index,
    appended,
    cut,
    followed,
    is_taken,
    last_segment,
    read_index,
)
from k25_pipelines.planning.make import Inputs, extend, go_on, open_inputs, plan_facts, planner_before, say_states
from k25_pipelines.planning.objects import read_header, write_segment
from k25_pipelines.planning.plan import Plan, open_plan, read_facts
from k25_pipelines.planning.sources import Progress, excluded_lines
from k25_pipelines.storage.store import Store


def fork_plan(
    lake: Store,
    plan: str,
    *,
    at_step: int,
    recipe: Recipe | None = None,
    without: Sequence[str] = (),
    datasets: Mapping[str, str] | None = None,
    steps: int | None = None,
    reason: str,
    author: str,
    progress: Progress | None = None,
) -> str:
    """Return the id of a plan that is another one's up to a step, and goes on otherwise.

    Earlier segments are shared; the one that holds the step is planned again up to it. The same
    fork again is the same plan: it keeps the reason and the author that were given first.

    Args:
        lake: where the plan is.
        plan: the parent.
        at_step: the first step that may differ.
        recipe: what holds from there on; the parent's if not given. Its `changes` count from step 0.
        without: what is left out from there on: see `exclusions.selected`. A source of which nothing is left leaves.
        datasets: manifest digests of dataset versions that join; the parent's version if not given, the newest of
            sources that join.
        steps: how far to plan; the recipe's, and at least one segment, if not given [steps].
        reason: why.
        author: who.
        progress: told steps done, steps in all, and what.

    Raises:
        PlanError: no such plan or step, a selector that chooses nothing, no reason, or nothing that is different.
        RecipeError: the recipe differs in what a fork keeps, or cannot be met.
    """
    parent = open_plan(lake, plan)
    _check(parent, at_step, reason=reason, author=author)
    inputs, left_out = _inputs(parent, recipe or parent.recipe, without, datasets or {}, progress)
    say_states(inputs)
    versions = {name: manifest.digest for name, manifest in inputs.manifests.items()}
    if not without:
        _check_differs(parent, inputs.recipe, versions)
    gone = tombstones(lake)
    told = {"parent": plan, "step": at_step, "without": sorted(set(without)), "excluded": exclusions_told(left_out)}
    name = fork_id(told, recipe_dict(inputs.recipe, steps=False), versions, gone.digest)
    told = _first_told(lake, name, {**told, "reason": reason, "author": author})
    target = steps or (recipe or parent.recipe).steps
    index = followed(lake, name, read_index(lake, name))
    if index is not None and index.num_steps > at_step:
        extend(inputs, name, index, gone, steps=target)
        return name
    before, planner, ended = _stand_at(parent, at_step)
    tables = inputs.tables(gone.lines, left_out)
    planner = rebased(planner, tables, inputs.recipe, tombstones=gone.digest, fork=told)
    write_exclusions(lake, left_out)
    facts = plan_facts(name, inputs.recipe, {**parent.datasets, **versions}, inputs.tokenizer, parent=told)
    _write_facts(lake, name, facts)
    before = _with_ended(lake, name, replace(before, budgets=bad_sample_budgets(inputs.recipe)), ended)
    target = target if target > at_step else at_step + default_segment_steps(planner)
    go_on(inputs, name, planner, before, steps=target)
    return name


def _check(parent: Plan, at_step: int, *, reason: str, author: str) -> None:
    if not reason.strip() or not author.strip():
        raise PlanError("a fork keeps why it was made and by whom; give a reason and an author")
    if not 0 <= at_step <= parent.num_steps:
        raise PlanError(
            f"plan {parent.id} has {parent.num_steps} steps, so no fork begins at step {at_step}; take one from 0 to "
            f"{parent.num_steps}, or extend the plan"
        )


def _check_differs(parent: Plan, recipe: Recipe, versions: Mapping[str, str]) -> None:
    same = all(parent.datasets.get(name) == version for name, version in versions.items())
    if same and recipe_dict(recipe, steps=False) == recipe_dict(parent.recipe, steps=False):
        raise PlanError(
            f"the fork of plan {parent.id} differs in nothing; give a recipe, samples to leave out or a version"
        )


def _inputs(
    parent: Plan, recipe: Recipe, without: Sequence[str], datasets: Mapping[str, str], progress: Progress | None
) -> tuple[Inputs, dict[str, np.ndarray]]:
    """Return what the fork is made from, and the lines it leaves out, its parents' included."""
    lake, names = parent.store, source_names(recipe)
    if unknown := sorted(set(datasets) - set(names)):
        raise PlanError(f"dataset {unknown[0]} is no source of the recipe; its sources are {', '.join(names)}")
    versions = {name: version for name in names if (version := datasets.get(name) or parent.datasets.get(name))}
    inputs = open_inputs(lake, recipe, versions, progress=progress)
    lines, whole = selected(parent, inputs.manifests, without)
    left_out = excluded_lines(read_exclusions(lake, parent.parent), lines)
    for name in lines:
        fine = ~inputs.manifests[name].quarantined
        fine[left_out[name]] = False
        if not fine.any():
            whole.add(name)
    if not whole:
        return inputs, left_out
    if whole.issuperset(names):
        raise RecipeError(f"recipe {recipe.name}: without {', '.join(sorted(whole))} no source is left; leave one in")
    manifests = {name: manifest for name, manifest in inputs.manifests.items() if name not in whole}
    return replace(inputs, recipe=_recipe_without(recipe, whole), manifests=manifests), left_out


def _recipe_without(recipe: Recipe, names: set[str]) -> Recipe:
    """Return a recipe that never takes of some sources."""

    def others(sources: Mapping[str, Any]) -> dict[str, Any]:
        return {name: source for name, source in sources.items() if name not in names}

    told = recipe_dict(recipe)
    told["sources"] = others(told["sources"])
    told["changes"] = [{**change, "sources": others(change["sources"] or {}) or None} for change in told["changes"]]
    return parse_recipe(told)


def _stand_at(parent: Plan, at_step: int) -> tuple[Index, Planner, Segment | None]:
    """Return the index before a step, the planner that stands there, and the segment that ends there, if one must."""
    lake = parent.store
    before, info = cut(lake, parent.index, at_step)
    if info is None and at_step < parent.num_steps:
        return before, planner_before(lake, parent.segment_of(at_step)), None
    if info is None:
        info = last_segment(lake, parent.index)
        planner = planner_before(lake, info)
        if next_segment(planner, info.num_steps).digest != info.digest:
            raise PlanError(f"plan {parent.id}: its last segment would be made otherwise now; fork at an earlier step")
        return before, planner, None
    planner = planner_before(lake, info)
    ended = next_segment(planner, at_step - info.first_step)
    whole = [group for group in read_header(lake, info)["body"] if group[0] + group[1] <= at_step]
    if list(ended.header["body"])[: len(whole)] != whole:
        raise PlanError(f"plan {parent.id}: step {info.first_step} would be made otherwise now; fork at its first step")
    return before, planner, ended


def _with_ended(lake: Store, name: str, before: Index, ended: Segment | None) -> Index:
    """Return the index with the segment that ends at the fork, written to the fork's own folder."""
    if ended is None:
        return before
    info = write_segment(lake, name, ended)
    if is_taken(lake, name, info):
        raise PlanError(f"fork {name}: its steps from {info.first_step} on would be made otherwise now; fork anew")
    return appended(lake, name, before, info)


def _first_told(lake: Store, name: str, told: dict[str, Any]) -> dict[str, Any]:
    """Return what was told of the fork when it was made first, reason and author included."""
    try:
        return read_facts(lake, name)["parent"]
    except PlanError:
        return told


def _write_facts(lake: Store, name: str, facts: Mapping[str, Any]) -> None:
    try:
        lake.put_new(f"{PLANS}{name}/plan.json", json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    except ObjectExistsError as error:
        raise PlanError(f"fork {name} was made with another reason just now; run the same command again") from error
