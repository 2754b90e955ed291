"""Two plans -> what differs: the first differing step, recipes, dataset versions, exclusions, tokens, samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.plan.recipe import recipe_dict
from k25_pipelines.planning.plan import Plan, open_plan
from k25_pipelines.planning.sources import Progress
from k25_pipelines.storage.store import Store

SAMPLES_NAMED = 20


def diff_plans(
    lake: Store, plan_a: str, plan_b: str, *, most_steps: int = 1000, progress: Progress | None = None
) -> dict[str, Any]:
    """Return what differs between two plans.

    Args:
        lake: where both are.
        plan_a: one.
        plan_b: the other.
        most_steps: samples are compared over at most so many steps from the first that differs [steps].
        progress: told steps compared, steps in all, and what.

    Returns:
        num_steps; first_differing_step (None where the common steps are equal); recipe, datasets, tombstones and
        forks, by field: [of a, of b] where they differ; compared_steps [first, end]; tokens_of_source and
        vision_tokens over these, [a, b]; only_in: counts of samples of only one, and samples: the first of them.
    """
    a, b = open_plan(lake, plan_a), open_plan(lake, plan_b)
    common = min(a.num_steps, b.num_steps)
    first = _first_difference(a, b, common)
    end = min(common, first + most_steps)
    sums: list[dict[str, list[int]]] = [{}, {}]
    samples: list[set[tuple[str, int]]] = [set(), set()]
    for step in range(first, end):
        for plan, counts, seen in zip((a, b), sums, samples, strict=True):
            _count(plan.rows(step), counts, seen)
        if progress:
            progress(step + 1 - first, end - first, "comparing")
    names = sorted({*sums[0], *sums[1]})
    zero = [0, 0]
    return {
        "plans": [plan_a, plan_b],
        "num_steps": [a.num_steps, b.num_steps],
        "first_differing_step": first if first < common else None,
        "recipe": _different(_flat(recipe_dict(a.recipe, steps=False)), _flat(recipe_dict(b.recipe, steps=False))),
        "datasets": _different(a.datasets, b.datasets),
        "tombstones": _different(_told(a, "tombstones"), _told(b, "tombstones")),
        "fork": [a.parent and dict(a.parent), b.parent and dict(b.parent)],
        "compared_steps": [first, end],
        "tokens_of_source": {name: [counts.get(name, zero)[0] for counts in sums] for name in names},
        "vision_tokens_of_source": {name: [counts.get(name, zero)[1] for counts in sums] for name in names},
        "only_in": [len(samples[0] - samples[1]), len(samples[1] - samples[0])],
        "samples": [
            [f"{name}:{line}" for name, line in sorted(mine - other)[:SAMPLES_NAMED]]
            for mine, other in (samples, samples[::-1])
        ],
    }


def _first_difference(a: Plan, b: Plan, common: int) -> int:
    """Return the first step whose rows differ, or `common`; equal segments and row groups are not read."""
    step = 0
    while step < common:
        ours, theirs = a.segment_of(step), b.segment_of(step)
        if ours == theirs:
            step = ours.end_step
            continue
        equal = _equal_groups(a, b, step)
        if equal > step:
            step = equal
        elif _content(a.rows(step)) == _content(b.rows(step)):
            step += 1
        else:
            return step
    return common


def _equal_groups(a: Plan, b: Plan, step: int) -> int:
    """Return the step after the row groups that begin at `step` in both plans and are equal."""
    bodies = [{first: (steps, rows, name) for first, steps, rows, name in p.header(step)["body"]} for p in (a, b)]
    while step in bodies[0] and bodies[0][step] == bodies[1].get(step):
        step += bodies[0][step][0]
    return step


def _content(rows: pa.Table) -> list[list]:
    return [column.to_pylist() for column in rows.columns]


def _count(rows: pa.Table, counts: dict[str, list[int]], seen: set[tuple[str, int]]) -> None:
    names, lines = rows["dataset"].to_pylist(), rows["line"].to_pylist()
    seen.update(zip(names, lines, strict=True))
    tokens, vision = rows["num_tokens"].to_numpy(), rows["vision_tokens"].to_numpy()
    column = np.array(names)
    for name in set(names):
        mine = column == name
        sums = counts.setdefault(name, [0, 0])
        sums[0] += int(tokens[mine].sum())
        sums[1] += int(vision[mine].sum())


def _told(plan: Plan, name: str) -> Mapping[str, Any]:
    return {name: plan.header(plan.num_steps - 1)[name]}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return plain data as one mapping of dotted names."""
    if isinstance(value, Mapping) and value:
        inner = [_flat(item, f"{name}.{key}" if name else key) for key, item in value.items()]
        return {key: item for part in inner for key, item in part.items()}
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return _flat({str(place): item for place, item in enumerate(value)}, name)
    return {name: value}


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list]:
    """Return the names that differ with both values, None where one has none."""
    return {name: [a.get(name), b.get(name)] for name in sorted({*a, *b}) if a.get(name) != b.get(name)}
