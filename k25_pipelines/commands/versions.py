"""What `k25 datasets` prints: the list, what is said about one, drift, and the difference of two versions."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from k25_pipelines.commands.parts import progress_bar

if TYPE_CHECKING:
    from k25_pipelines.catalog.diff import Change
    from k25_pipelines.catalog.drift import Drift, ObjectDrift
    from k25_pipelines.storage.store import Store

SHOWN = 8
"""Licences and sources of a change that are printed."""


def datasets(lake: "Store", *, as_json: bool) -> int:
    """Print every dataset with its newest version and who answers for it."""
    from k25_pipelines.catalog.about import is_overdue, read_about
    from k25_pipelines.catalog.registry import dataset_names, dataset_versions

    rows, overdue = [], {}
    for name in dataset_names(lake):
        versions, said = dataset_versions(lake, name), read_about(lake, name)
        overdue[name] = is_overdue(said)
        told = {"owners": list(said.owners), "pii": said.pii, "keep_until": said.keep_until}
        rows.append({"name": name, "versions": len(versions), **(versions[-1] if versions else {}), **told})
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print("no datasets yet; k25 register NAME URI --kind KIND --licence SPDX --source TEXT", file=sys.stderr)
    for row in rows:
        told = f"registered, not indexed: k25 index {row['name']}"
        if row["versions"]:
            told = f"{row['num_lines']:>8,} samples  {row['num_quarantined']:>4} quarantined  {row['digest'][:12]}"
        owners = f"  {', '.join(row['owners'])}" if row["owners"] else ""
        late = f"  to be deleted since {row['keep_until']}" if overdue[row["name"]] else ""
        print(f"{row['name']:<20} {told}{owners}{late}")
    return 0


def about(lake: "Store", name: str, *, as_json: bool) -> int:
    """Print what was said about a dataset, the newest last."""
    from dataclasses import asdict

    from k25_pipelines.catalog.about import about_history, read_about
    from k25_pipelines.catalog.registry import registration

    registered, history = asdict(registration(lake, name)), about_history(lake, name)
    if as_json:
        print(json.dumps({"registration": registered, "about": asdict(read_about(lake, name)), "history": history}))
        return 0
    for field, value in [*registered.items(), *asdict(read_about(lake, name)).items()]:
        print(f"{field:<16} {', '.join(value) if isinstance(value, list | tuple) else value or '-'}")
    for statement in history:
        print(f"said by {statement['author']} at {statement['at']}", file=sys.stderr)
    return 0


def drift(lake: "Store", name: str, *, deep: bool, as_json: bool) -> int:
    """Print what is different behind a dataset's newest version; 1 where something is."""
    from k25_pipelines.catalog.drift import drift_dict, find_drift
    from k25_pipelines.catalog.registry import load_manifest
    from k25_pipelines.governance.hashes import part_reader

    cells = part_reader(load_manifest(lake, name)) if deep else None
    with progress_bar(f"drift of {name}") as progress:
        found = find_drift(lake, name, cells=cells, progress=progress)
    if as_json:
        print(json.dumps(drift_dict(found)))
        return int(found.is_broken)
    for each in found.objects:
        print(_drifted(each))
    print(_drift_line(found))
    return int(found.is_broken)


def _drifted(each: "ObjectDrift") -> str:
    now = "nothing stands there" if each.now is None else f"now {each.now[0]}, {each.now[1]:,} bytes"
    head = f"{each.change}: {each.uri}\n    was {each.was[0]}, {each.was[1]:,} bytes; {now}"
    if each.change == "rewritten":
        return f"{head}; the same media to the byte"
    counted = f"{each.num_lines} samples" if each.num_changed is None else f"{each.num_changed} media changed"
    return f"{head}\n    {counted}: {', '.join(each.keys)}{', ...' if each.num_lines > len(each.keys) else ''}"


def _drift_line(found: "Drift") -> str:
    fine = found.num_objects - len(found.objects)
    told = f"{found.dataset}@{found.digest[:12]}: {fine:,} of {found.num_objects:,} objects are as they were indexed"
    if found.num_compared or found.num_unknown:
        told += f"; {found.num_compared:,} media compared by digest"
    if found.num_unknown:
        told += f", {found.num_unknown:,} have none yet: k25 index {found.dataset} --deep"
    if found.num_new:
        told += f"; {found.num_new:,} are new: k25 index {found.dataset}"
    return told + (
        "; restore what was overwritten, or register the new state as a new dataset" if found.objects else ""
    )


def diff(lake: "Store", a: str, b: str, *, as_json: bool) -> int:
    """Print what a version has more, less and otherwise than another."""
    from k25_pipelines.catalog.diff import diff_dict, diff_versions, named_version

    versions = named_version(lake, a), named_version(lake, b)
    with progress_bar("compare") as progress:
        found = diff_versions(lake, *versions, progress=progress)
    if as_json:
        print(json.dumps(diff_dict(found)))
        return 0
    print(f"{found.versions[0]}  {found.num_lines[0]:,} samples\n{found.versions[1]}  {found.num_lines[1]:,} samples")
    for name in ("added", "removed", "changed"):
        _print_change(name, getattr(found, name))
    share = found.read_bytes / max(1, found.total_bytes)
    print(f"read {found.read_bytes:,} of {found.total_bytes:,} bytes of the index ({share:.1%})", file=sys.stderr)
    return 0


def _print_change(name: str, change: "Change") -> None:
    print(f"{name:<10} {change.count:>12,}")
    for what, counts in (("licence", change.by_licence), ("source", change.by_source)):
        largest = _sorted(counts)
        for words, number in largest[:SHOWN]:
            print(f"    {what:<8} {words[:60]:<60} {number:>10,}")
        if len(largest) > SHOWN:
            more = f"and {len(largest) - SHOWN:,} more: --json"
            print(f"    {what:<8} {more:<60} {sum(number for _, number in largest[SHOWN:]):>10,}")
    if change.keys:
        print(f"    {', '.join(change.keys)}{', ...' if change.count > len(change.keys) else ''}")


def _sorted(counts: Mapping[str, int]) -> list[tuple[str, Any]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
