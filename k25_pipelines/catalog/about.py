"""What people keep about a dataset: what it is, who answers for it, whom it shows, until when it may be kept.

k25/datasets/<name>/about/<number>.json    a statement, its author and time; the newest holds, others are history

None of it bears identity: a registration and its versions stay as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime
from typing import Any

from k25_pipelines.errors import DatasetError, ObjectExistsError
from k25_pipelines.storage.store import Store

PII = ("unknown", "none", "present", "removed")
"""Whether a dataset shows persons who can be recognised: nobody looked, no, yes, or not any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """A statement about a dataset."""

    description: str = ""
    owners: tuple[str, ...] = ()
    """Who answers for it: people or teams."""
    pii: str = "unknown"
    """One of PII."""
    keep_until: str = ""
    """Last day on which it may be kept, as 2027-01-31; "" where nothing is said."""
    derived_from: tuple[str, ...] = ()
    """Datasets, or keys of checkpoints, that it was made from: a takedown names it with them."""


def read_about(lake: Store, name: str) -> About:
    """Return the newest statement about a dataset, an empty one where there is none."""
    told = about_history(lake, name)
    return parsed_about(told[-1]["about"]) if told else About()


def about_history(lake: Store, name: str) -> list[dict[str, Any]]:
    """Return all statements about a dataset, oldest first: number, at, author, about."""
    return [json.loads(lake.get(info.key)) for info in lake.list(_prefix(name))]


def state_about(lake: Store, name: str, changes: Mapping[str, Any], *, author: str) -> About:
    """Write a statement that differs from the newest in some fields, and return it; one that says nothing new is none.

    Args:
        lake: where the dataset is registered.
        name: the dataset's.
        changes: fields of `About` with their new values.
        author: who says so.

    Raises:
        DatasetError: a value that cannot be, or another statement came in between.
    """
    history = about_history(lake, name)
    before = parsed_about(history[-1]["about"]) if history else About()
    told = _checked(name, replace(before, **changes))
    if told == before:
        return before
    number = len(history) + 1
    at = datetime.now(UTC).isoformat(timespec="seconds")
    statement = {"number": number, "at": at, "author": author, "about": asdict(told)}
    try:
        lake.put_new(f"{_prefix(name)}{number:06}.json", json.dumps(statement, indent=1, ensure_ascii=False).encode())
    except ObjectExistsError as error:
        raise DatasetError(
            f"{name}: another statement was made at the same time; look at it and say yours again"
        ) from error
    return told


def parsed_about(told: Mapping[str, Any]) -> About:
    """Return a statement as it was written; fields that are not known are left out."""
    known = {field.name for field in fields(About)}
    plain: dict[str, Any] = {key: value for key, value in told.items() if key in known}
    for name in ("owners", "derived_from"):
        plain[name] = tuple(plain.get(name, ()))
    return About(**plain)


def is_overdue(about: About, today: date | None = None) -> bool:
    """Whether a dataset should have been deleted by now."""
    return bool(about.keep_until) and date.fromisoformat(about.keep_until) < (today or datetime.now(UTC).date())


def _checked(name: str, about: About) -> About:
    if about.pii not in PII:
        raise DatasetError(f"{name}: pii is {about.pii!r}; expected one of {', '.join(PII)}")
    if about.keep_until:
        try:
            date.fromisoformat(about.keep_until)
        except ValueError as error:
            raise DatasetError(
                f"{name}: keep_until is {about.keep_until!r}; expected a day such as 2027-01-31"
            ) from error
    if any(not owner.strip() for owner in about.owners):
        raise DatasetError(f"{name}: an owner is empty; name a person or a team")
    return about


def _prefix(name: str) -> str:
    return f"k25/datasets/{name}/about/"
