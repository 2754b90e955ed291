"""Which objects of a lake are garbage: what is there and what is referenced in, objects with reasons out. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from k25_pipelines.gc.references import References

WEEK = 7.0
KEPT_OF_CHECKPOINTS = ("record.json", "metrics.jsonl")
"""What stays of a checkpoint whose weights go: its lineage and its curve."""
NAMING_FIRST = ("/plan.json", "/index.json")
"""A plan without the first is none."""
Reason = str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What may go besides what nothing names."""

    older_than_days: float = WEEK
    """Nothing younger goes, whatever else holds."""
    keep_checkpoints: int | None = None
    """Newest checkpoints of each run whose weights stay; None: all of them."""
    unused_plans: bool = False
    """Whether plans go that no run, checkpoint, output or kept fork names."""
    data: bool = False
    """Whether a deleted version's own objects go that no other version names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """An object that is there."""

    key: str
    num_bytes: int
    written: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """An object that may go."""

    key: str
    num_bytes: int
    why: str


def garbage(stored: Iterable[Stored], references: References, policy: Policy, *, now: datetime) -> list[Garbage]:
    """Return what may go, in an order in which nothing is left that names what has gone.

    Args:
        stored: every object below `k25/` of the lake.
        references: what is named.
        policy: how old, and what else.
        now: against which ages are told.
    """
    border = now - timedelta(days=policy.older_than_days)
    whole = list(stored)
    rules: Mapping[str, Callable[[list[str]], Reason]] = {
        "datasets": partial(_dataset, references),
        "plans": partial(_plan, references, policy),
        "checkpoints": partial(_checkpoint, references, _weights_that_go(references, policy)),
    }
    young = {_group(each.key) for each in whole if each.written > border}
    found = []
    for each in whole:
        folders = each.key.split("/")
        rule = rules.get(folders[1]) if len(folders) > 3 and folders[0] == "k25" else None
        if rule is None or each.written > border or _group(each.key) in young:
            continue
        if why := rule(folders):
            found.append(Garbage(key=each.key, num_bytes=each.num_bytes, why=why))
    return sorted(found, key=lambda each: (naming_rank(each.key), each.key))


def naming_rank(key: str) -> int:
    """Return when an object goes, from 0: those that name others go before them."""
    return next((rank for rank, name in enumerate(NAMING_FIRST) if key.endswith(name)), len(NAMING_FIRST))


def _group(key: str) -> str:
    """Return what an object is part of: while any of a plan or of a checkpoint is young, somebody may be writing it."""
    folders = key.split("/")
    depth = {"plans": 3, "checkpoints": 4}.get(folders[1] if len(folders) > 1 else "", len(folders))
    return "/".join(folders[:depth])


def _dataset(references: References, folders: list[str]) -> Reason:
    name, kind = folders[2:4]
    if name not in references.versions or len(folders) < 5:
        return None
    if kind == "scans" and references.versions[name]:
        return "lines found while indexing, which the manifest holds now"
    if kind not in ("manifests", "beside", "lengths", "tokens"):
        return None
    digest = re.split(r"[./]", folders[4])[0]
    if not re.fullmatch("[0-9a-f]{32}", digest) or (name, digest) in references.manifests:
        return None
    is_known = digest in references.versions[name]
    return "of a deleted version that no plan reads" if is_known else "of a version that was never published"


def _plan(references: References, policy: Policy, folders: list[str]) -> Reason:
    plan, key = folders[2], "/".join(folders)
    gone = references.plans - references.used_plans if policy.unused_plans else frozenset[str]()
    users = references.segments.get(key, frozenset())
    if users - gone:
        return None
    if plan in gone:
        return "of a plan that no run, checkpoint or output names"
    if plan not in references.plans:
        return "left of a plan that is gone"
    if folders[3] in ("segments", "pages"):
        return "of a planner that another overtook"
    return None


def _checkpoint(references: References, going: frozenset[str], folders: list[str]) -> Reason:
    checkpoint = "/".join(folders[:4])
    if len(folders) < 5 or not folders[3].isdecimal():
        return None
    if checkpoint not in references.checkpoints:
        return "of a checkpoint that was never published"
    if checkpoint in going and "/".join(folders[4:]) not in KEPT_OF_CHECKPOINTS:
        return "weights of an older checkpoint that nothing names"
    return None


def _weights_that_go(references: References, policy: Policy) -> frozenset[str]:
    """Return the checkpoints beyond the newest of each run, but those that something names."""
    if policy.keep_checkpoints is None:
        return frozenset()
    runs: dict[str, list[tuple[int, str]]] = {}
    for key, step in references.checkpoints.items():
        runs.setdefault(key.split("/")[2], []).append((step, key))
    older = {key for held in runs.values() for _, key in sorted(held, reverse=True)[policy.keep_checkpoints :]}
    return frozenset(older - references.named_checkpoints)
