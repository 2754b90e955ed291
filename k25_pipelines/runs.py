"""A training run in the lake: which plan it follows, what it takes of it and, in `run_log`, what it was trained on.

k25/runs/<run>/plan.json                    pointer, overwritten: the plan to go on with, and what is known of the run
k25/runs/<run>/segments/<first step>.json   what rank 0 took at a boundary: plan, segment, steps; written once

At a boundary rank 0 asks which plan to read on, logs what it takes, and tells the others. A resumed run follows that
log, so an amend takes effect exactly at its step, and only where nothing was taken yet.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from k25_pipelines import planning
from k25_pipelines.errors import ObjectNotFoundError, RecipeError, RunError
from k25_pipelines.plan.recipe import Recipe, parse_recipe, recipe_at, recipe_dict
from k25_pipelines.planning import Plan, open_plan
from k25_pipelines.run_log import RUNS, consumed, consumed_ranges, log_steps, logged, sample_digests
from k25_pipelines.storage.store import Store, checked_key
from k25_pipelines.verdicts import plan_subjects, require_passed

__all__ = ["amend", "consumed", "consumed_ranges", "follow", "log_steps", "sample_digests", "start_run", "take_stretch"]

STRETCH_STEPS = 64
"""Most steps taken at one boundary: how far ahead of a running job an amend can take effect."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """Which plan a run goes on with."""

    plan: str
    from_step: int = 0
    """The first step at which `plan` differs from the one that was read before."""
    started_on: str
    """The plan that the run's config names."""
    steps: int | None = None
    """Where the run ends; None: not known."""
    stage: str | None = None
    hold: int | None = None
    """A step from which the plan is being changed now: nothing from there on is taken yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Consecutive steps that a run reads from one segment of one plan."""

    plan: str
    segment: str
    first_step: int
    num_steps: int

    @property
    def end_step(self) -> int:
        """The first step after it."""
        return self.first_step + self.num_steps


def start_run(lake: Store, run: str, plan: str, *, steps: int | None = None, stage: str | None = None) -> Pointer:
    """Point a new run at its plan, or find the pointer of one that goes on, and return it.

    Raises:
        RunError: the run was started on another plan.
        StoreError: its name cannot be part of a key.
    """
    checked_key(f"{RUNS}{run}/plan.json")
    try:
        pointer = read_pointer(lake, run)
    except RunError:
        pointer = Pointer(plan=plan, started_on=plan, steps=steps, stage=stage)
        _write_pointer(lake, run, pointer)
    if pointer.started_on != plan:
        raise RunError(f"run {run} was started on plan {pointer.started_on}, not {plan}; give the new run another name")
    return pointer


def read_pointer(lake: Store, run: str) -> Pointer:
    """Return the pointer of a run. Raises RunError: there is no such run."""
    try:
        return Pointer(**json.loads(lake.get(f"{RUNS}{run}/plan.json")))
    except ObjectNotFoundError as error:
        raise RunError(f"no run {run!r} in {lake.url}{nearest(run, run_names(lake))}") from error


def run_names(lake: Store) -> list[str]:
    """Return the names of all runs, in order."""
    return sorted(
        info.key.split("/")[2]
        for info in lake.list(RUNS)
        if info.key.endswith("/plan.json") and info.key.count("/") == 3
    )


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the words that end an error about an unknown name: the nearest of those that there are."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or sorted(known)[:5]
    return f"; did you mean {', '.join(close)}?" if close else "; there is none"


def follow(lake: Store, run: str, step: int) -> str:
    """Return the id of the plan to read at a step: of what was taken there before, else of what the pointer says.

    A plan that differs from what was read already is not followed: an amend takes effect at its step or never.
    """
    last = _last_stretch(lake, run, step)
    if last is not None and step < last.end_step:
        return last.plan
    pointer = read_pointer(lake, run)
    return last.plan if last is not None and pointer.from_step < step else pointer.plan


def note_segment(lake: Store, run: str, stretch: Stretch) -> None:
    """Log what rank 0 takes, before it is read. Raises ObjectExistsError: another process took something else there."""
    key = f"{RUNS}{run}/segments/{stretch.first_step:012}.json"
    lake.put_new(key, json.dumps(asdict(stretch), sort_keys=True).encode())


def take_stretch(lake: Store, run: str, step: int) -> Stretch:
    """Return what is to be read from a step on: the stretch that was logged there, or a new one, which is logged.

    Raises:
        PlanError: the plan has no such step.
        RunError: there is no such run.
        VerdictError: a blocking check of the plan or of one of its datasets failed, and nobody accepted it.
    """
    last = _last_stretch(lake, run, step)
    if last is not None and step < last.end_step:
        return last
    pointer, plan = read_pointer(lake, run), open_plan(lake, follow(lake, run, step))
    require_passed(lake, plan_subjects(plan))
    info = plan.segment_of(step)
    end = min(info.first_step + info.num_steps, step + STRETCH_STEPS)
    if pointer.hold is not None and step < pointer.hold:
        end = min(end, pointer.hold)
    taken = Stretch(plan=plan.id, segment=info.digest, first_step=step, num_steps=end - step)
    note_segment(lake, run, taken)
    return taken


def next_free_step(lake: Store, run: str) -> int:
    """Return the first step that the run has not taken yet: where an amend can begin."""
    keys = [info.key for info in lake.list(f"{RUNS}{run}/segments/")]
    return _read_stretch(lake, keys[-1]).end_step if keys else 0


def amend(
    lake: Store,
    plan: str,
    *,
    from_step: int,
    recipe: Recipe | None = None,
    changes: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    datasets: Mapping[str, str] | None = None,
    reason: str,
    author: str,
    run: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Change a plan from a step on for the runs that follow it, while they are going on, and return the new plan's id.

    Args:
        lake: where plans and runs are.
        plan: the plan that the runs follow now.
        from_step: the first step under the new recipe.
        recipe: the new recipe; or
        changes: fields of the recipe by their dotted names, such as {"sources.wiki.weight": 9}.
        without: what is left out from the step on, as `planning.fork_plan` reads it.
        datasets: manifest digests of dataset versions that join.
        reason: why, kept in the new plan.
        author: who, kept in the new plan.
        run: only this run; all that follow the plan and have not ended, by default.
        progress: told as planning goes on.

    Raises:
        RunError: a run has taken the step already (the first step allowed is named), or none follows the plan now.
        PlanError: nothing is different, or there is no reason or author.
        RecipeError: the new recipe cannot be.
    """
    parent = open_plan(lake, plan)
    if recipe is None and changes:
        recipe = changed_recipe(parent, changes, from_step=from_step)
    readers = _readers(lake, plan, run)
    _check_untaken(lake, readers, from_step)
    for name, pointer in readers.items():
        _write_pointer(lake, name, replace(pointer, hold=from_step))
    adopted: dict[str, Any] = {}
    try:
        forked = planning.fork_plan(
            lake,
            plan,
            at_step=from_step,
            recipe=recipe,
            without=without,
            datasets=datasets,
            steps=max(parent.num_steps, recipe.steps if recipe else 0),
            reason=reason,
            author=author,
            progress=progress,
        )
        _check_untaken(lake, readers, from_step)  # again: planning took its time
        adopted = {"adopted": forked, "from_step": from_step}
    finally:
        moved = _release(lake, readers, plan, **adopted)
    if moved:
        raise RunError(f"run {moved[0]} was amended by somebody else just now; amend the plan that it follows")
    return forked


def changed_recipe(plan: Plan, changes: Mapping[str, Any], *, from_step: int) -> Recipe:
    """Return a plan's recipe as it stands at a step, later changes kept, with some fields set by their dotted names.

    A source of weight 0 leaves; one that is new joins.

    Raises:
        RecipeError: a field is unknown or its value cannot be.
    """
    whole = recipe_dict(plan.recipe)
    told = recipe_dict(recipe_at(plan.recipe, from_step))
    told["changes"] = [
        {name: value for name, value in change.items() if value}  # a change that names no sources is read without them
        for change in whole["changes"]
        if change["from_step"] > from_step
    ]
    for name, value in changes.items():
        at, *path = name.split(".")
        place, here = told, at
        for part in path:
            place = place.setdefault(here, {})
            here = part
            if not isinstance(place, dict):
                raise RecipeError(f"{name}: {part!r} is a field of something that has none; see `k25 plan show`")
        place[here] = value
    if isinstance(told["sources"], Mapping):  # else `parse_recipe` says what is wrong with them
        told["sources"] = {name: source for name, source in told["sources"].items() if not _is_out(source)}
    return parse_recipe({name: value for name, value in told.items() if value is not None})


def _is_out(source: Any) -> bool:
    return isinstance(source, Mapping) and source.get("weight") == 0


def _last_stretch(lake: Store, run: str, step: int) -> Stretch | None:
    """Return the last stretch that begins at or before a step."""
    last = f"{RUNS}{run}/segments/{step:012}.json"
    keys = [info.key for info in lake.list(f"{RUNS}{run}/segments/") if info.key <= last]
    return _read_stretch(lake, keys[-1]) if keys else None


def _read_stretch(lake: Store, key: str) -> Stretch:
    return Stretch(**json.loads(lake.get(key)))


def _write_pointer(lake: Store, run: str, pointer: Pointer) -> None:
    lake.put(f"{RUNS}{run}/plan.json", json.dumps(asdict(pointer), sort_keys=True).encode())


def _readers(lake: Store, plan: str, run: str | None) -> dict[str, Pointer]:
    """Return the runs that follow a plan and have not ended; those of a plan that none follows any more are named."""
    pointers = {name: read_pointer(lake, name) for name in ([run] if run is not None else run_names(lake))}
    readers = {name: pointer for name, pointer in pointers.items() if pointer.plan == plan}
    gone_on = {name: pointer for name, pointer in pointers.items() if plan == pointer.started_on != pointer.plan}
    if not readers and (gone_on or run is not None):
        name, pointer = next(iter((gone_on or pointers).items()))
        raise RunError(f"run {name} follows plan {pointer.plan} now, not {plan}; amend that one")
    return {name: pointer for name, pointer in readers.items() if not _has_ended(lake, name, pointer)}


def _has_ended(lake: Store, run: str, pointer: Pointer) -> bool:
    return pointer.steps is not None and any(end >= pointer.steps for _, end, _ in logged(lake, run))


def _release(
    lake: Store, readers: Mapping[str, Pointer], plan: str, *, adopted: str | None = None, from_step: int = 0
) -> list[str]:
    """End the hold on runs, point them at the plan to adopt, and return those that another command has moved."""
    moved = []
    for name in readers:
        pointer = read_pointer(lake, name)
        if pointer.plan != plan:
            moved.append(name)
            continue
        if adopted is not None:
            is_pending = plan != pointer.started_on and next_free_step(lake, name) <= pointer.from_step
            first = min(from_step, pointer.from_step) if is_pending else from_step  # it differs from what the run reads
            pointer = replace(pointer, plan=adopted, from_step=first)
        _write_pointer(lake, name, replace(pointer, hold=None))
    return moved


def _check_untaken(lake: Store, readers: Mapping[str, Pointer], from_step: int) -> None:
    for name in readers:
        if (free := next_free_step(lake, name)) > from_step:
            raise RunError(f"run {name} has read its plan up to step {free} already; the first step allowed is {free}")
