"""Two dataset versions -> what was added, removed and changed, by licence and source; reads differing pages alone."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from k25_pipelines.catalog.pages import PAGE, Pages, open_pages, read_page, stored_pages
from k25_pipelines.catalog.registration import nearest
from k25_pipelines.catalog.registry import dataset_names, dataset_versions, load_manifest
from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.storage.store import Store

PAGES_AT_ONCE = 16
"""Of each side, fetched together."""
KEYS_TOLD = 8
"""Samples of each change that a report names."""
Progress = Callable[[int, int, str], None]
Row = tuple[str, str, int, int, int]
"""Licence, source and the three digests of a sample."""


@dataclass(kw_only=True, slots=True)
class Change:
    """Samples that were added, or removed, or that are others under their key."""

    count: int = 0
    by_licence: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    keys: list[str] = field(default_factory=list)
    """Some of them."""

    def note(self, key: str, was: Row | None, now: Row | None) -> None:
        """Count a sample; where licence or source changed, as `old -> new`."""
        self.count += 1
        for place, counts in enumerate((self.by_licence, self.by_source)):
            words = dict.fromkeys(str(row[place]) for row in (was, now) if row is not None)
            counts[" -> ".join(words)] += 1
        if len(self.keys) < KEYS_TOLD:
            self.keys.append(key)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDiff:
    """What is different between two versions, of samples that are used."""

    versions: tuple[str, str]
    """`name@digest` of each."""
    num_lines: tuple[int, int]
    added: Change
    removed: Change
    changed: Change
    read_bytes: int
    """Of roots and pages [bytes]."""
    total_bytes: int
    """Of all roots and pages of both [bytes]."""


def named_version(lake: Store, told: str) -> tuple[str, str]:
    """Return name and digest of a version told as NAME (the newest), NAME@NUMBER or NAME@DIGEST, cut short or not.

    Raises:
        DatasetError: there is no such dataset.
        ManifestError: it has no such version, or several.
    """
    name, _, which = told.partition("@")
    versions = dataset_versions(lake, name)
    if not versions:
        raise ManifestError(f"{name} is registered in {lake.url} but not indexed yet; run: k25 index {name}")
    if not which:
        return name, versions[-1]["digest"]
    found = [
        v["digest"]
        for v in versions
        if str(v["number"]) == which or (len(which) >= 4 and v["digest"].startswith(which))
    ]
    if len(set(found)) != 1:
        known = [f"{version['number']} ({version['digest'][:12]})" for version in versions]
        raise ManifestError(f"{told!r} names {len(set(found))} versions of {name}; known: {', '.join(known)}")
    return name, found[0]


def diff_versions(
    lake: Store, a: tuple[str, str], b: tuple[str, str], *, progress: Progress | None = None
) -> DatasetDiff:
    """Compare two versions, of one dataset or of two, by the keys of their samples.

    Pages that both have are not read. Where keys repeat, samples are told apart by their order.

    Args:
        lake: where both are.
        a: name and digest of the version before.
        b: name and digest of the version after.
        progress: told pages done, pages in all, and what.

    Raises:
        ManifestError: there is no such version, or a page is damaged.
    """
    pages = _pages(lake, a), _pages(lake, b)
    common = set(pages[0].root["page"].to_pylist()) & set(pages[1].root["page"].to_pylist())
    differing = [[row for row in side.root.to_pylist() if row["page"] not in common] for side in pages]
    total, done = sum(map(len, differing)), 0

    def note(_page: object) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, "pages that differ")

    tables = [
        _read(lake, side.dataset, [row["page"] for row in rows], note)
        for side, rows in zip(pages, differing, strict=True)
    ]
    added, removed, changed = _compared(*tables)
    roots = sum(side.root_bytes for side in pages)
    return DatasetDiff(
        versions=(f"{a[0]}@{a[1]}", f"{b[0]}@{b[1]}"),
        num_lines=(sum(pages[0].root["num_lines"].to_pylist()), sum(pages[1].root["num_lines"].to_pylist())),
        added=added,
        removed=removed,
        changed=changed,
        read_bytes=roots + sum(row["num_bytes"] for rows in differing for row in rows),
        total_bytes=roots + sum(sum(side.root["num_bytes"].to_pylist()) for side in pages),
    )


def diff_dict(diff: DatasetDiff) -> dict:
    """Return a diff as plain data."""
    plain = {name: getattr(diff, name) for name in ("versions", "num_lines", "read_bytes", "total_bytes")}
    changes = {name: getattr(diff, name) for name in ("added", "removed", "changed")}
    told = {name: {part: getattr(change, part) for part in Change.__slots__} for name, change in changes.items()}
    return {**plain, **told}


def _pages(lake: Store, version: tuple[str, str]) -> Pages:
    with suppress(ObjectNotFoundError):
        return stored_pages(lake, *version)
    if version[0] not in dataset_names(lake):
        raise ManifestError(f"no dataset {version[0]!r} in {lake.url}{nearest(version[0], dataset_names(lake))}")
    return open_pages(lake, load_manifest(lake, *version))


def _read(lake: Store, dataset: str, names: Iterable[str], note: Callable) -> pa.Table:
    tables = [PAGE.empty_table()]
    with ThreadPoolExecutor(PAGES_AT_ONCE, thread_name_prefix="pages") as pool:
        for table in pool.map(lambda name: read_page(lake, dataset, name), names):
            tables.append(table)
            note(table)
    return pa.concat_tables(tables)


def _compared(before: pa.Table, after: pa.Table) -> tuple[Change, Change, Change]:
    """Return what was added, removed and changed between the rows of pages, which may hold equal rows, too."""
    was, now = _by_key(before), _by_key(after)
    added, removed, changed = Change(), Change(), Change()
    for name in sorted(was.keys() | now.keys()):
        old, new = was.get(name), now.get(name)
        if old is not None and new is not None and _is_same(old, new):
            continue
        change = added if old is None else removed if new is None else changed
        change.note(name[0], old, new)
    return added, removed, changed


def _is_same(old: Row, new: Row) -> bool:
    """Whether samples are one: all that is said of them, and either where their bytes stand or what these are."""
    return old[:3] == new[:3] and (old[3] == new[3] or (old[4] == new[4] != 0))


def _by_key(table: pa.Table) -> dict[tuple[str, int], Row]:
    """Return rows by key and how many of that key came before."""
    seen: Counter[str] = Counter()
    found = dict[tuple[str, int], Row]()
    for key, *row in zip(*(table[name].to_pylist() for name in PAGE.names), strict=True):
        found[key, seen[key]] = tuple(row)
        seen[key] += 1
    return found
