"""The life of a dataset version: draft, active, deprecated, archived, deleted. What changes it is written down.

k25/lifecycle/<dataset>/<version's digest>/<number>.json    a change: from, to, author, reason, when; written once

A version of which nothing is written is active. The manifest and its name never change: this says what the version
may be used for, not what it is.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from k25_pipelines.catalog.registry import dataset_versions
from k25_pipelines.errors import DatasetError, ObjectExistsError
from k25_pipelines.storage.store import Store

LIFECYCLE = "k25/lifecycle/"
TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "draft": ("active", "deleted"),
    "active": ("deprecated", "archived"),
    "deprecated": ("active", "archived"),
    "archived": ("active", "deprecated", "deleted"),
    "deleted": (),
}
"""What may follow what. A version is deleted only from where nothing new is planned from it."""
STATES = tuple(TRANSITIONS)
MEANING: Mapping[str, str] = {
    "draft": "may be planned, with a warning: it may still be deleted",
    "active": "may be planned",
    "deprecated": "may be planned, with a warning that gives the reason",
    "archived": "no new plan; plans that there are go on",
    "deleted": "no plan reads on; k25 gc may remove what nothing references",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A version's state, and how it came about."""

    state: str
    previous: str
    author: str
    reason: str
    at: str
    """ISO 8601, with its zone."""


ACTIVE = Change(state="active", previous="active", author="", reason="", at="")
"""Where nothing is written."""


def checked_transition(previous: str, state: str, *, where: str) -> str:
    """Return `state` if it may follow `previous`. Raises DatasetError: no such state, or it may not."""
    if state not in TRANSITIONS:
        raise DatasetError(f"{where}: no state {state!r}; write one of {', '.join(STATES)}")
    if state not in TRANSITIONS[previous]:
        after = " or ".join(TRANSITIONS[previous]) or "nothing: it is the last"
        raise DatasetError(f"{where} is {previous} and cannot become {state}; after {previous} comes {after}")
    return state


def planning_words(states: Mapping[str, Change], *, is_new: bool = True) -> tuple[list[str], list[str]]:
    """Return why a plan may not be made, and what is to be said where it may.

    Args:
        states: of each dataset's version that the plan reads.
        is_new: whether it is a new plan (or a fork), rather than more steps of one that there is.

    Returns:
        refusals, warnings: in words, in the order of the datasets' names; a plan may be made where there is no refusal.
    """
    refusals, warnings = [], []
    for name, change in sorted(states.items()):
        why = f" ({change.reason}, {change.author})" if change.reason else ""
        if change.state == "deleted" or (change.state == "archived" and is_new):
            way_out = "plan another version, or leave the source out"
            if change.state == "archived":
                way_out += f", or: k25 lifecycle {name} active --reason TEXT"
            refusals.append(f"dataset {name} is {change.state}{why}; {way_out}")
        elif change.state == "draft":
            warnings.append(f"dataset {name} is a draft{why}: it may still be deleted")
        elif change.state == "deprecated":
            warnings.append(f"dataset {name} is deprecated{why}")
    return refusals, warnings


def check_plannable(lake: Store, datasets: Mapping[str, str], *, is_new: bool = True) -> list[str]:
    """Return what is to be said of the dataset versions of a plan: digests by name.

    Raises:
        DatasetError: one of them may not be planned.
    """
    states = {name: state_of(lake, name, digest) for name, digest in datasets.items()}
    refusals, warnings = planning_words(states, is_new=is_new)
    if refusals:
        raise DatasetError("; ".join(refusals))
    return warnings


def state_of(lake: Store, dataset: str, digest: str) -> Change:
    """Return the state of a dataset version."""
    newest = max((info.key for info in lake.list(_prefix(dataset, digest))), default=None)
    return Change(**json.loads(lake.get(newest))) if newest else ACTIVE


def history(lake: Store, dataset: str, digest: str) -> list[Change]:
    """Return every change of a dataset version's state, oldest first."""
    return [Change(**json.loads(lake.get(info.key))) for info in lake.list(_prefix(dataset, digest))]


def set_state(lake: Store, dataset: str, digest: str, state: str, *, reason: str, author: str) -> Change:
    """Change the state of a dataset version, and return the change.

    Raises:
        DatasetError: no such version, the state may not follow, nobody says why or who, or somebody else changed it
            at the same time.
    """
    known = [version["digest"] for version in dataset_versions(lake, dataset)]
    if digest not in known:
        raise DatasetError(f"{dataset} has no version {digest}; its newest is {known[-1] if known else 'not indexed'}")
    if not reason.strip() or not author.strip():
        raise DatasetError(f"{dataset}: a change of state wants a reason and an author; give --reason TEXT")
    changes = history(lake, dataset, digest)
    previous = changes[-1].state if changes else "active"
    is_first_draft = state == "draft" and not changes  # a version that was just indexed
    if not is_first_draft:
        checked_transition(previous, state, where=f"{dataset}@{digest[:12]}")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    change = Change(state=state, previous=previous, author=author, reason=reason, at=at)
    try:
        told = json.dumps(asdict(change), indent=1, sort_keys=True, ensure_ascii=False)
        lake.put_new(f"{_prefix(dataset, digest)}{len(changes) + 1:06}.json", told.encode())
    except ObjectExistsError as error:
        raise DatasetError(f"{dataset}@{digest[:12]}: somebody else changed its state just now; look again") from error
    return change


def _prefix(dataset: str, digest: str) -> str:
    return f"{LIFECYCLE}{dataset}/{digest}/"
