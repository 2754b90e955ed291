"""What arrived on which day: cards of new datasets in, registrations out; new lines in, records by day out.

<inbox>/_datasets/<name>.json              a card: kind, licence, source; its data lies complete below <inbox>/<name>
k25/ingestion/days/<day>/<dataset>/<n>.json    what version n of a dataset gained on that day; written once
k25/ingestion/versions/<dataset>/<n>.json      version n is told to its days; written once, after them

A line belongs to the day that its object's key names (`2026-11-24`, `2026/11/24`, `20261124`), else to the day on
which it was taken in. So a day that was missed still gets its own lines when it is made up for later.
"""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from datetime import date
from typing import Any

import numpy as np

from k25_pipelines.catalog.manifest import part_columns
from k25_pipelines.catalog.registration import Registration, absolute
from k25_pipelines.catalog.registry import dataset_names, dataset_versions, load_manifest, register
from k25_pipelines.errors import DatasetError, K25Error
from k25_pipelines.storage.store import Store, open_store

CARDS = "_datasets/"
DAYS = "k25/ingestion/days/"
TOLD = "k25/ingestion/versions/"
CARD_FIELDS = {"kind", "licence", "source"}
DAY_IN_KEY = re.compile(r"(?<!\d)(20\d\d)([-/]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")

Index = Callable[[str], Any]
"""Indexes the dataset of a name, incrementally."""


def take_in(lake: Store, inbox: str) -> tuple[list[str], dict[str, str]]:
    """Register the datasets whose cards lie below a bucket prefix.

    Only the cards are listed, never the data. A card that is wrong keeps back no other.

    Args:
        lake: where registrations are.
        inbox: URL of the prefix, such as `s3://bucket/incoming`.

    Returns:
        names that are registered now, those that were before included; name -> what is wrong with its card.
    """
    store = open_store(absolute(inbox))
    taken, wrong = [], {}
    for info in store.list(CARDS):
        name = info.key.removeprefix(CARDS).removesuffix(".json")
        try:
            register(lake, _card(store, name, store.get(info.key)))
            taken.append(name)
        except K25Error as error:
            wrong[name] = str(error)
    return taken, wrong


def _card(store: Store, name: str, text: bytes) -> Registration:
    where = f"{store.url}/{CARDS}{name}.json"
    try:
        card = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON: {error}; write it anew") from error
    known = {field.name for field in fields(Registration)} - {"name"}
    if not isinstance(card, dict) or CARD_FIELDS - set(card) or set(card) - known:
        raise DatasetError(f"{where} has to name {', '.join(sorted(CARD_FIELDS))}, and may name uri and annotations")
    return Registration(name=name, **{"uri": f"{store.url}/{name}", **card})


def ingest(lake: Store, day: str, *, index: Index, progress: Callable[[int, int, str], None] | None = None) -> None:
    """Index what is new in every registered dataset, and tell every version that no day knows of to its days.

    Killed at any moment, the same call goes on where this one stopped.

    Args:
        lake: of the datasets.
        day: such as `2026-11-24`: where lines go whose keys name none.
        index: called with each dataset's name.
        progress: called with datasets done, of how many, and the name at hand.
    """
    names = dataset_names(lake)
    for done, name in enumerate(names):
        if progress:
            progress(done, len(names), name)
        index(name)
        tell_versions(lake, name, day)


def tell_versions(lake: Store, name: str, day: str) -> None:
    """Write down, by day, what those versions of a dataset gained of which that is not written yet."""
    told = {info.key for info in lake.list(f"{TOLD}{name}/")}
    first = 0
    for version in dataset_versions(lake, name):
        number, end = version["number"], version["num_lines"]
        done = f"{TOLD}{name}/{number:06}.json"
        if done not in told:
            for each, gained in _gained(lake, name, version["digest"], first=first, end=end, day=day).items():
                lake.put(f"{DAYS}{each}/{name}/{number:06}.json", _json({"version": version["digest"], **gained}))
            lake.put_new(done, _json({"version": version["digest"], "day": day}))
        first = end


def _gained(lake: Store, name: str, version: str, *, first: int, end: int, day: str) -> dict[str, dict[str, int]]:
    """Return day -> what the lines [first, end) of a version amount to."""
    manifest = load_manifest(lake, name, version)
    parts = part_columns(manifest)
    new = (parts["line"] >= first) & (parts["line"] < end)
    shards, which = np.unique(parts["shard"][new].astype(str), return_inverse=True)
    days = np.array([day_of_key(shard) or day for shard in shards.tolist()])[which]
    lines, sizes = parts["line"][new], parts["num_bytes"][new]
    found = {}
    for each in np.unique(days).tolist():
        own = days == each
        numbers = np.unique(lines[own])
        bad = int(manifest.quarantined[numbers].sum())
        counts = {"lines": len(numbers), "bytes": int(sizes[own].sum()), "quarantined": bad}
        found[each] = {**counts, "objects": len(np.unique(which[own]))}
    return found


def day_of_key(key: str) -> str | None:
    """Return the day that an object's key names, such as `2026-11-24`; None if it names none."""
    for year, _, month, number in DAY_IN_KEY.findall(key):
        try:
            return date(int(year), int(month), int(number)).isoformat()
        except ValueError:
            continue
    return None


def day_rows(lake: Store, day: str) -> list[dict[str, Any]]:
    """Return what each dataset gained on a day: a row a dataset and version, in order."""
    rows = []
    for info in lake.list(f"{DAYS}{day}/"):
        dataset, number = info.key.removeprefix(f"{DAYS}{day}/").removesuffix(".json").split("/")
        rows.append({"dataset": dataset, "number": int(number), **json.loads(lake.get(info.key))})
    return rows


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
