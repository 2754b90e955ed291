"""A plan in the lake, opened: which segment holds a step, and a step's rows."""

import json
import threading
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.errors import ObjectNotFoundError, PlanError
from k25_pipelines.plan.recipe import Recipe, parse_recipe
from k25_pipelines.plan.summary import plan_summary
from k25_pipelines.planning.index import (
    PLANS,
    Index,
    SegmentInfo,
    all_segments,
    last_segment,
    read_index,
    read_page,
)
from k25_pipelines.planning.objects import OpenSegment, open_segment, read_group, read_header
from k25_pipelines.storage.store import Store

SEGMENTS_OPEN = 4
GROUPS_IN_MEMORY = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A plan in the lake, as far as it was planned when it was opened. Safe to share between threads."""

    id: str
    recipe: Recipe
    """The newest, with `steps` as far as the plan goes."""
    datasets: Mapping[str, str]
    """Manifest digest of each dataset, those of steps before a fork included."""
    tokenizer: str
    """Digest of the tokenizer."""
    profile: str
    parent: Mapping[str, Any] | None
    """Of a fork: plan, step, without, reason, author."""
    index: Index
    store: Store
    _pages: dict[int, tuple[SegmentInfo, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _open: dict[int, OpenSegment] = field(default_factory=dict, init=False, repr=False, compare=False)
    _groups: dict[tuple[int, int], pa.Table] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    @property
    def num_steps(self) -> int:
        """Steps planned so far."""
        return self.recipe.steps

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        """All segments in the order of their steps; reads every page of the index."""
        return tuple(all_segments(self.store, self.index))

    def segment_of(self, step: int) -> SegmentInfo:
        """Return the segment that holds a step. Raises PlanError."""
        if not 0 <= step < self.num_steps:
            raise PlanError(
                f"plan {self.id} has steps 0 to {self.num_steps - 1}, not {step}; more: k25 plan RECIPE --steps N"
            )
        infos = self.index.tail
        if not infos or step < infos[0].first_step:
            number = bisect_right([page.first_step for page in self.index.pages], step) - 1
            with self._lock:
                if number not in self._pages:
                    self._pages[number] = read_page(self.store, self.index.pages[number])
                infos = self._pages[number]
        return infos[bisect_right([info.first_step for info in infos], step) - 1]

    def rows(self, step: int) -> pa.Table:
        """Return the rows of one step, a sample each, sorted by pack and slot (`plan.segment.SCHEMA`).

        Raises:
            PlanError: the plan has no such step, or the segment's object holds other rows than its name says.
        """
        info = self.segment_of(step)
        with self._lock:
            segment = self._segment(info)
            number = bisect_right([group.first_step for group in segment.groups], step) - 1
            table = self._group(segment, number)
        first, end = np.searchsorted(table["step"].to_numpy(), [step, step + 1]).tolist()
        return table.slice(first, end - first)

    def header(self, step: int) -> Mapping[str, Any]:
        """Return the header of the segment that holds a step: what it was planned from, and who forked it and why."""
        with self._lock:
            return self._segment(self.segment_of(step)).header

    def pack_tokens_at(self, step: int) -> int:
        """Return the length of the packs of a step [tokens]; forks keep it."""
        return self.recipe.pack_tokens

    def summary(self, *, steps: int | None = None) -> dict[str, Any]:
        """Return what the plan amounts to, from its last header: counts, fill, shares, epochs, also projected."""
        return plan_summary(read_header(self.store, last_segment(self.store, self.index)), self.recipe, steps=steps)

    def _segment(self, info: SegmentInfo) -> OpenSegment:
        if info.first_step not in self._open:
            opened = open_segment(self.store, info)
            while len(self._open) >= SEGMENTS_OPEN:
                del self._open[next(iter(self._open))]
            self._open[info.first_step] = opened
        return self._open[info.first_step]

    def _group(self, segment: OpenSegment, number: int) -> pa.Table:
        name = segment.info.first_step, number
        if name not in self._groups:
            table = read_group(segment, number)
            while len(self._groups) >= GROUPS_IN_MEMORY:
                del self._groups[next(iter(self._groups))]
            self._groups[name] = table
        return self._groups[name]


def open_plan(lake: Store, plan: str) -> Plan:
    """Return a plan of the lake: two small GETs, however long it is.

    Raises:
        PlanError: there is no such plan, or nothing of it is planned yet.
    """
    facts, index = read_facts(lake, plan), read_index(lake, plan)
    if index is None:
        raise PlanError(f"plan {plan} has no segment yet; run its planner again")
    return Plan(
        id=plan,
        recipe=with_budgets(parse_recipe({**facts["recipe"], "steps": index.num_steps}), index.budgets),
        datasets={name: version["digest"] for name, version in facts["datasets"].items()},
        tokenizer=facts["tokenizer"],
        profile=facts["profile"],
        parent=facts["parent"],
        index=index,
        store=lake,
    )


def read_facts(lake: Store, plan: str) -> dict[str, Any]:
    """Return what a plan is made from. Raises PlanError: there is no such plan."""
    if not plan.isalnum():
        raise PlanError(f"{plan!r} is no plan's id, which has 32 letters and digits; `k25 plan RECIPE.yaml` prints it")
    try:
        return json.loads(lake.get(f"{PLANS}{plan}/plan.json"))
    except ObjectNotFoundError as error:
        raise PlanError(f"no plan {plan!r} in {lake.url}; make one with: k25 plan RECIPE.yaml") from error


def with_budgets(recipe: Recipe, budgets: Mapping[str, int]) -> Recipe:
    """Return a recipe with the sources' budgets of bad samples, which bear no identity."""
    sources = {name: replace(source, max_bad_samples=budgets.get(name)) for name, source in recipe.sources.items()}
    return replace(recipe, sources=sources)
