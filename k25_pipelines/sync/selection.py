"""What is to be copied: a dataset version's own objects, or all below a URL; nothing that is forgotten.

In an order in which nothing is named before it is there: what publishes other objects comes last.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from k25_pipelines.catalog.manifest import Manifest, part_columns
from k25_pipelines.catalog.registry import load_manifest, registration
from k25_pipelines.errors import ManifestError, ObjectChangedError
from k25_pipelines.planning import tombstones
from k25_pipelines.storage.store import ObjectInfo, Store
from k25_pipelines.sync.rclone import SyncError

PUBLISHING = re.compile(r"(^|/)(registration|plan|index|current|record|target)\.json$|/(versions|chain)/")
"""Keys of the lake's objects that name others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Objects of one store."""

    objects: tuple[ObjectInfo, ...]
    """In the order in which they are copied."""
    withheld: int = 0
    """Objects left out because all that is in them is forgotten."""

    @property
    def num_bytes(self) -> int:
        """Of all objects [bytes]."""
        return sum(info.num_bytes for info in self.objects)


def selected_below(lake: Store, source: Store) -> Selection:
    """Return all objects of a store. Raises SyncError: there is none, or a name that cannot be listed for rclone."""
    found = list(source.list())
    if not found:
        raise SyncError(f"{source.url} holds no objects; check the URL and whose access is used")
    return _selection(lake, source, found)


def selected_of_dataset(lake: Store, source: Store, manifest: Manifest) -> Selection:
    """Return the objects that a manifest names, and the annotations beside them.

    Raises:
        ManifestError: an object is gone.
        ObjectChangedError: an object is not the one that was indexed.
    """
    parts = part_columns(manifest)
    named = dict(zip(parts["shard"].tolist(), parts["etag"].tolist(), strict=True))
    named.pop("", None)
    annotations = registration(lake, manifest.dataset).annotations or ""
    beside = annotations.removeprefix(f"{source.url}/")
    found = {info.key: info for info in source.list() if info.key in named or info.key == beside}
    for key, etag in named.items():
        where = f"{manifest.dataset}@{manifest.digest[:8]}: {source.url}/{key}"
        if key not in found:
            raise ManifestError(f"{where} is gone; restore it before it is copied")
        if etag and found[key].etag != etag:
            raise ObjectChangedError(
                f"{where} was overwritten: its etag is {found[key].etag}, expected {etag}; restore it before it is "
                "copied, or register the new state as a new dataset"
            )
    return _selection(lake, source, list(found.values()))


def forgotten_urls(lake: Store) -> set[str]:
    """Return the URLs of objects that hold forgotten samples and nothing else."""
    found = set[str]()
    for name, lines in tombstones(lake).lines.items():
        manifest = load_manifest(lake, name)
        parts = part_columns(manifest)
        is_gone = np.isin(parts["line"], lines)
        shards = np.asarray(parts["shard"], dtype=object)
        found |= {f"{manifest.uri}/{key}" for key in set(shards[is_gone]) - set(shards[~is_gone]) if key}
    return found


def _selection(lake: Store, source: Store, found: Sequence[ObjectInfo]) -> Selection:
    gone = forgotten_urls(lake)
    kept = [info for info in found if f"{source.url}/{info.key}" not in gone]
    for info in kept:
        if "\n" in info.key or "\r" in info.key:
            raise SyncError(f"{source.url}/{info.key!a}: a line's end in a key cannot be told to rclone; rename it")
    kept.sort(key=lambda info: (bool(PUBLISHING.search(info.key)), info.key))
    return Selection(objects=tuple(kept), withheld=len(found) - len(kept))
