"""A takedown: samples that may not be learnt from any more. What is asked in; tombstones, blocks and a receipt out.

k25/takedowns/<id>/request.json            who asked for what, when and why; the samples, and the ids they are known by
k25/takedowns/<id>/receipts/<digest>.json  what contains them, and what was done; a later one where more is known
k25/takedowns/<id>/receipts/<digest>.parquet    every place they had in every run

The request is written first and says everything; the lists that planners, loaders and indexers read are the union of
all requests, so whoever is killed in between, or works at the same time, is caught up with by the next one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from k25_pipelines.catalog.blocked import Blocked, read_blocked, write_blocked
from k25_pipelines.errors import LineageError, ObjectExistsError
from k25_pipelines.governance.finding import Found
from k25_pipelines.keys import digest
from k25_pipelines.planning.exclusions import lines_by_dataset, put_tombstones, tombstones
from k25_pipelines.storage.store import Store

TAKEDOWNS = "k25/takedowns/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Takedown:
    """A request to forget, as it stands in the lake."""

    id: str
    at: str
    author: str
    reason: str
    selectors: tuple[str, ...]
    samples: Mapping[str, str]
    """`dataset:line` -> why it is meant."""
    blocked: Blocked

    @property
    def lines(self) -> dict[str, Any]:
        """The samples' line numbers by dataset."""
        return lines_by_dataset(self.samples)


def request(lake: Store, found: Found, selectors: Sequence[str], *, reason: str, author: str) -> Takedown:
    """Write a request down and return it; the same request again is the one that was written first.

    Raises:
        LineageError: no reason, no author, or nothing to forget.
    """
    if not reason.strip() or not author.strip():
        raise LineageError("a takedown keeps why it was made and by whom; give --reason and --author")
    samples = {f"{name}:{line}": why for (name, line), why in sorted(found.why.items())}
    plain = found.blocked("")
    if not samples and not plain:
        raise LineageError("no sample is named, so there is nothing to forget")
    known_by = {name: sorted(getattr(plain, name)) for name in Blocked.__slots__}
    told = [sorted(samples), known_by, reason, author, sorted(set(selectors))]
    name = digest("takedown", *told)
    entry = {
        "id": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "author": author,
        "reason": reason,
        "selectors": sorted(set(selectors)),
        "samples": samples,
        "blocked": _plain(found.blocked(name)),
    }
    try:
        lake.put_new(f"{TAKEDOWNS}{name}/request.json", json.dumps(entry, ensure_ascii=False, indent=1).encode())
    except ObjectExistsError:
        return _read(lake, name)
    return _parsed(entry)


def read_takedown(lake: Store, name: str) -> Takedown:
    """Return a takedown by its id, which may be cut short. Raises LineageError: there is none."""
    names = takedown_names(lake)
    found = [each for each in names if each.startswith(name)] if len(name) >= 4 else []
    if len(found) != 1:
        raise LineageError(
            f"{name!r} names {len(found)} of the {len(names)} takedowns of {lake.url}; k25 forget --list"
        )
    return _read(lake, found[0])


def takedown_names(lake: Store) -> list[str]:
    """Return the ids of all takedowns, in order."""
    keys = [info.key for info in lake.list(TAKEDOWNS)]
    return [key.split("/")[2] for key in keys if key.endswith("/request.json")]


def enforce(lake: Store) -> str:
    """Put every takedown of the lake in force, and return the name of the list of tombstones.

    Blocks come before tombstones. Where another request is written meanwhile, it is put in force, too.
    """
    names: list[str] = []
    while (now := takedown_names(lake)) != names:
        names = now
        takedowns = [_read(lake, name) for name in names]
        if (union := _union([each.blocked for each in takedowns])) != read_blocked(lake):
            write_blocked(lake, union)
        before = [f"{name}:{line}" for name, line in tombstones(lake)]  # of lists that others put there
        samples = sorted({*before, *(sample for each in takedowns for sample in each.samples)})
        put_tombstones(lake, samples)
    return tombstones(lake).digest


def write_receipt(lake: Store, takedown: Takedown, facts: Mapping[str, Any], steps: bytes) -> dict[str, Any]:
    """Write a receipt with its digest, and return it."""
    receipt = {"takedown": takedown.id, **facts, "steps_digest": digest("steps", steps)}
    receipt["digest"] = digest("receipt", receipt)
    prefix = f"{TAKEDOWNS}{takedown.id}/receipts/{receipt['digest']}"
    lake.put_new(f"{prefix}.parquet", steps)
    lake.put_new(f"{prefix}.json", json.dumps(receipt, indent=1, ensure_ascii=False).encode())
    return receipt


def read_receipts(lake: Store, name: str) -> list[dict[str, Any]]:
    """Return the receipts of a takedown, each compared with its digest.

    Raises:
        LineageError: there is no such takedown, or a receipt is not what was printed.
    """
    prefix = f"{TAKEDOWNS}{read_takedown(lake, name).id}/receipts/"
    receipts = []
    for info in lake.list(prefix):
        if info.key.endswith(".json"):
            told = json.loads(lake.get(info.key))
            check_receipt(told, where=f"{lake.url}/{info.key}")
            receipts.append(told)
    return receipts


def check_receipt(told: Mapping[str, Any], *, where: str) -> None:
    """Compare a receipt with the digest it ends with. Raises LineageError: it was changed."""
    body = {name: value for name, value in told.items() if name != "digest"}
    if digest("receipt", body) != told.get("digest"):
        raise LineageError(f"{where} is not the receipt it says it is: its digest is another; ask the lake again")


def forgotten_by(lake: Store, dataset: str, line: int) -> Takedown | None:
    """Return the takedown that names a sample, None where none does."""
    word = f"{dataset}:{line}"
    takedowns = (_read(lake, name) for name in takedown_names(lake))
    return next((takedown for takedown in takedowns if word in takedown.samples), None)


def _union(lists: Sequence[Blocked]) -> Blocked:
    parts: dict[str, dict[str, Any]] = {name: {} for name in Blocked.__slots__}
    for each in lists:
        for name, entries in parts.items():
            entries.update(getattr(each, name))
    return Blocked(**parts)


def _read(lake: Store, name: str) -> Takedown:
    return _parsed(json.loads(lake.get(f"{TAKEDOWNS}{name}/request.json")))


def _parsed(told: Mapping[str, Any]) -> Takedown:
    fields = {name: told[name] for name in ("id", "at", "author", "reason", "samples")}
    return Takedown(**fields, selectors=tuple(told["selectors"]), blocked=Blocked(**told["blocked"]))


def _plain(blocked: Blocked) -> dict[str, dict[str, Any]]:
    return {name: {key: dict(value) for key, value in getattr(blocked, name).items()} for name in Blocked.__slots__}
