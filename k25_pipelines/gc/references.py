"""What of a lake is referenced: registrations, versions, plans, runs, checkpoints and pointers in, names out."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from k25_pipelines.catalog.registry import dataset_names, dataset_versions
from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.lineage import checkpoint_records
from k25_pipelines.planning import SegmentInfo
from k25_pipelines.planning.index import PLANS, all_segments, read_index
from k25_pipelines.planning.objects import segment_key
from k25_pipelines.retention import state_of
from k25_pipelines.runs import RUNS
from k25_pipelines.storage.store import Store

NAMING = ("k25/outputs/", "k25/evaluations/", "k25/reports/")
"""Small objects of others that may name plans and checkpoints."""
_PLAN = re.compile(r"\b[0-9a-f]{32}\b")
_CHECKPOINT = re.compile(r"k25/checkpoints/[^/\"\s]+/\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """What is named by something that stays."""

    versions: Mapping[str, Mapping[str, str]]
    """Of each registered dataset, the state of each version by its digest, oldest first."""
    manifests: frozenset[tuple[str, str]]
    """Dataset and digest that a plan, or a version that is not deleted, reads."""
    planned: frozenset[tuple[str, str]]
    """Of these, those that a plan reads."""
    plans: frozenset[str]
    """Ids of all plans."""
    used_plans: frozenset[str]
    """Those that a run, a checkpoint or an output names, and all that these were forked from."""
    segments: Mapping[str, frozenset[str]]
    """The plans that each object of a segment, and each page of an index, belongs to, by its key."""
    checkpoints: Mapping[str, int]
    """Step of every published checkpoint, by its key."""
    named_checkpoints: frozenset[str]
    """Those that another checkpoint descends from, that were evaluated, or that an output names."""


def read_references(lake: Store) -> References:
    """Return what everything in a lake names."""
    versions = {
        name: {v["digest"]: state_of(lake, name, v["digest"]).state for v in dataset_versions(lake, name)}
        for name in dataset_names(lake)
    }
    facts = _plan_facts(lake)
    segments: dict[str, set[str]] = {}
    for plan in facts:
        for key in _segment_keys(lake, plan):
            segments.setdefault(key, set()).add(plan)
    planned = {(name, told["digest"]) for each in facts.values() for name, told in each["datasets"].items()}
    records = checkpoint_records(lake)
    words, named = _words_of_others(lake)
    named_plans = words | _plans_of_runs(lake) | {read["plan"] for r in records for read in _reads(r)}
    evaluated = {record["key"] for record in records if record.get("digest") in words}
    parents = {parent for record in records for parent in _listed(record.get("parent"))}
    return References(
        versions=versions,
        manifests=frozenset(planned | _living(versions)),
        planned=frozenset(planned),
        plans=frozenset(facts),
        used_plans=_with_parents(facts, segments, named_plans),
        segments={key: frozenset(plans) for key, plans in segments.items()},
        checkpoints={record["key"]: record["step"] for record in records},
        named_checkpoints=frozenset(evaluated | parents | named),
    )


def _living(versions: Mapping[str, Mapping[str, str]]) -> set[tuple[str, str]]:
    """Return the versions that stay: all that are not deleted, and the newest, whose lines later ones go on from."""
    newest = {(name, list(states)[-1]) for name, states in versions.items() if states}
    return newest | {(name, each) for name, states in versions.items() for each in states if states[each] != "deleted"}


def _plan_facts(lake: Store) -> dict[str, dict[str, Any]]:
    keys = [info.key for info in lake.list(PLANS) if info.key.count("/") == 3 and info.key.endswith("/plan.json")]
    return {key.split("/")[2]: json.loads(lake.get(key)) for key in keys}


def _segment_keys(lake: Store, plan: str) -> Iterable[str]:
    """Yield the keys of all segments and pages that a plan leads to, those of its chain beyond the index included."""
    index = read_index(lake, plan)
    for page in index.pages if index else ():
        yield f"{PLANS}{page.plan}/pages/{page.digest}.json"
    infos = list(all_segments(lake, index)) if index else []
    for info in (*infos, *_chain(lake, plan)):
        yield from (segment_key(info, kind) for kind in ("json", "state", "parquet"))


def _chain(lake: Store, plan: str) -> list[SegmentInfo]:
    found = [json.loads(lake.get(info.key)) for info in lake.list(f"{PLANS}{plan}/chain/")]
    return [SegmentInfo(digest=d, first_step=first, num_steps=steps, plan=owner) for first, steps, d, owner in found]


def _plans_of_runs(lake: Store) -> set[str]:
    """Return the plans that runs name: by their pointers, by what they took, and by the names of their logs."""
    found = set[str]()
    for info in lake.list(RUNS):
        folder, name = (*info.key.split("/")[3:], "", "")[:2]
        if folder == "steps":
            found |= set(_PLAN.findall(name.replace("-", " ")))
        elif folder in ("plan.json", "segments"):
            with suppress(ObjectNotFoundError):
                found |= set(_PLAN.findall(lake.get(info.key).decode("utf-8", "replace")))
    return found


def _words_of_others(lake: Store) -> tuple[set[str], set[str]]:
    """Return digests and checkpoint keys that outputs and evaluations name, in their keys or their JSON."""
    digests, checkpoints = set[str](), set[str]()
    for prefix in NAMING:
        for info in lake.list(prefix):
            told = info.key
            if info.key.endswith(".json"):
                with suppress(ObjectNotFoundError):
                    told += " " + lake.get(info.key).decode("utf-8", "replace")
            digests |= set(_PLAN.findall(told))
            checkpoints |= set(_CHECKPOINT.findall(told))
    return digests, checkpoints


def _with_parents(
    facts: Mapping[str, Mapping[str, Any]], segments: Mapping[str, set[str]], named: set[str]
) -> frozenset[str]:
    """Return the named plans and all that they were forked from or share segments with."""
    shared: dict[str, set[str]] = {}
    for key, plans in segments.items():
        for plan in plans:
            shared.setdefault(plan, set()).add(key.split("/")[2])
    reached, ahead = set[str](), [plan for plan in named if plan in facts]
    while ahead:
        if (plan := ahead.pop()) in reached or plan not in facts:
            continue
        reached.add(plan)
        ahead += [*shared.get(plan, ()), *_listed((facts[plan].get("parent") or {}).get("plan"))]
    return frozenset(reached)


def _reads(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(record.get("reads") or []), {"plan": record.get("plan")}]


def _listed(told: Any) -> list[str]:
    return [] if not told else [told] if isinstance(told, str) else list(told)
