"""What checks found, kept beside the data, so that a trainer refuses what a check refused, whoever starts it.

k25/verdicts/<subject>/<check>.json             passed or not, with its figures; a later look replaces it
k25/verdicts/<subject>/<check>.accepted.json    somebody takes it as it is: author, reason, when; written once

A subject is the digest of a dataset's version, or a plan's id. Dagster's blocking checks stop what follows in the same
run; this stops every other run, too.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from k25_pipelines.errors import K25Error, ObjectExistsError, ObjectNotFoundError
from k25_pipelines.storage.store import Store

VERDICTS = "k25/verdicts/"


class VerdictError(K25Error):
    """A blocking check failed of what was to be used, and nobody has accepted it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one check found."""

    subject: str
    """Digest of a dataset's version, or a plan's id."""
    check: str
    passed: bool
    blocking: bool
    """Whether a failure keeps plans and trainers from using the subject."""
    figures: Mapping[str, Any]
    """Numbers and words that say why."""


def write_verdict(lake: Store, verdict: Verdict) -> None:
    """Keep what a check found."""
    text = json.dumps(asdict(verdict), indent=1, sort_keys=True)
    lake.put(f"{VERDICTS}{verdict.subject}/{verdict.check}.json", text.encode())


def verdicts(lake: Store, subject: str) -> list[Verdict]:
    """Return what each check of a subject found, by name; a subject that was never checked has none."""
    keys = [info.key for info in lake.list(f"{VERDICTS}{subject}/") if not info.key.endswith(".accepted.json")]
    return [Verdict(**json.loads(lake.get(key))) for key in keys]


def accept(lake: Store, subject: str, check: str, *, author: str, reason: str) -> None:
    """Take a subject as it is, though a check of it failed.

    Raises:
        VerdictError: nobody says why, there is no such failure, or it was accepted before.
    """
    if not reason.strip() or not author.strip():
        raise VerdictError(f"{check} of {subject}: who accepts it, and why? Give --reason TEXT")
    failed = [verdict.check for verdict in verdicts(lake, subject) if not verdict.passed]
    if check not in failed:
        raise VerdictError(f"{check} of {subject} has not failed; failed: {', '.join(failed) or 'none'}")
    told = {"author": author, "reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        lake.put_new(_accepted_key(subject, check), json.dumps(told, indent=1, sort_keys=True).encode())
    except ObjectExistsError as error:
        raise VerdictError(f"{check} of {subject} was accepted before: {acceptance(lake, subject, check)}") from error


def acceptance(lake: Store, subject: str, check: str) -> dict[str, str] | None:
    """Return who accepted a failure, why and when; None if nobody did."""
    try:
        return json.loads(lake.get(_accepted_key(subject, check)))
    except ObjectNotFoundError:
        return None


def require_passed(lake: Store, subjects: Mapping[str, str]) -> None:
    """Refuse subjects of which a blocking check failed.

    Args:
        lake: of the verdicts.
        subjects: what each is called, in words -> its digest or id.

    Raises:
        VerdictError: it names every check that failed, its figures and the way out.
    """
    refused = [
        f"{words} failed {verdict.check} ({_words(verdict.figures)}); see it with: k25 checks {subject}"
        for words, subject in sorted(subjects.items())
        for verdict in verdicts(lake, subject)
        if verdict.blocking and not verdict.passed and acceptance(lake, subject, verdict.check) is None
    ]
    if refused:
        way_out = "mend it and check again, or accept it: k25 checks SUBJECT --accept CHECK --reason TEXT"
        raise VerdictError(f"{'; '.join(refused)}. {way_out}")


def plan_subjects(plan: Any) -> dict[str, str]:
    """Return what a plan stands on, for `require_passed`: the plan, and each dataset's version.

    Args:
        plan: a `planning.Plan`: `id`, and `datasets`, digests by name.
    """
    return {f"plan {plan.id}": plan.id, **{f"dataset {name}": digest for name, digest in plan.datasets.items()}}


def _accepted_key(subject: str, check: str) -> str:
    return f"{VERDICTS}{subject}/{check}.accepted.json"


def _words(figures: Mapping[str, Any]) -> str:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
