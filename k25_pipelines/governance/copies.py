"""Copies of samples that were taken down: chunks on this machine's disk, pages, objects synced elsewhere."""

import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from k25_pipelines.errors import K25Error
from k25_pipelines.governance.finding import Catalogue
from k25_pipelines.storage.cache import clear_cache
from k25_pipelines.storage.store import Store
from k25_pipelines.sync import open_target, sync_targets

PAGES = "k25/pages/"
"""Where the lake keeps pages that show samples."""


def clear_caches(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Clear caches of chunks, and return what was removed from each that there is.

    A file of a cache is named by a hash and holds many samples, so all of them go; loaders fetch anew what they need.
    """
    found = []
    for folder in folders:
        if (folder / "locks").is_dir():
            found.append({"machine": socket.gethostname(), **clear_cache(folder)})
    return found


def remove_pages(folder: Path) -> int:
    """Remove the pages in a folder, which show samples, and return how many there were; they are written anew."""
    pages = sorted(folder.rglob("*.html")) if folder.is_dir() else []
    for page in pages:
        page.unlink(missing_ok=True)
    return len(pages)


def remove_kept_pages(lake: Store) -> tuple[int, list[dict[str, Any]]]:
    """Remove the pages that the lake keeps, and those that were copied along with it to other stores.

    Returns:
        How many there were, and what became of the copies of each store that holds some.
    """
    keys, told = [info.key for info in lake.list(PAGES)], []
    for key in keys:
        lake.delete(key)
    for target in sync_targets(lake):
        if (below := target.copy_of(f"{lake.url}/{PAGES}")) is None:
            continue
        entry = {"url": f"{target.destination}/{below}", "outcome": "pages deleted"}
        try:
            store = open_target(target)
            copies = [info.key for info in store.list(below)]
            for key in copies:
                store.delete(key)
        except K25Error as error:
            copies, entry["outcome"] = [""], f"not reached: {error}"
        told += [entry] if copies else []
    return len(keys), told


def synced(lake: Store, catalogue: Catalogue, lines: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return where synced copies of the samples' objects may stand: url, target, key and whether others share them."""
    found, targets = [], sync_targets(lake)
    for name, numbers in lines.items() if targets else ():
        manifest = catalogue.manifest(name)
        touched, alone = objects_of(catalogue.parts(name), numbers)
        for shard in sorted(touched):
            for target in targets:
                if (key := target.copy_of(f"{manifest.uri}/{shard}")) is None:
                    continue
                found.append(
                    {"target": target, "key": key, "url": f"{target.destination}/{key}", "alone": shard in alone}
                )
    return found


def remove_synced(copies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Delete copies that hold nothing but forgotten samples; tell what became of each.

    An object that other samples share stays, as do copies that cannot be reached: the receipt names them.
    """
    told = []
    for copy in copies:
        entry = {"url": copy["url"], "outcome": "kept: other samples share it; write it anew without them"}
        if copy["alone"]:
            try:
                open_target(copy["target"]).delete(copy["key"])
                entry["outcome"] = "deleted"
            except K25Error as error:
                entry["outcome"] = f"not reached: {error}"
        told.append(entry)
    return told


def objects_of(parts: Mapping[str, np.ndarray], lines: np.ndarray) -> tuple[set[str], set[str]]:
    """Return the objects in which some lines have parts, and those of them in which no other line has one.

    Args:
        parts: as `part_columns` gives them.
        lines: int64.
    """
    theirs = np.isin(parts["line"], lines)
    touched = set(parts["shard"][theirs].tolist())
    return touched, touched - set(parts["shard"][~theirs].tolist())
