"""The objects of a dataset against those that its newest version was made from: what is new, gone or overwritten."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k25_pipelines.catalog.columns import one_array
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.errors import DatasetError, ManifestError
from k25_pipelines.storage.store import ObjectInfo, Store

BESIDE_FOLDERS = (".nv-meta",)
"""Folders of other tools' indexes, which hold no samples."""


def found_objects(store: Store, registered: Registration, kind) -> dict[str, ObjectInfo]:
    """Return the objects that a kind reads, its media included, in the order of their keys.

    Args:
        store: below the dataset's URI.
        registered: the dataset.
        kind: a module of `catalog/kinds`.

    Raises:
        DatasetError: there is none of the kind's own, or one is compressed.
    """
    refused: tuple[str, ...] = getattr(kind, "REFUSED_SUFFIXES", ())
    wanted = (*kind.SUFFIXES, *getattr(kind, "MEDIA_SUFFIXES", ()))
    found = {}
    for info in store.list():
        name = info.key.lower()
        if any(folder in BESIDE_FOLDERS for folder in name.split("/")[:-1]):
            continue
        if refused and name.endswith(refused):
            raise DatasetError(
                f"{registered.name}: {registered.uri}/{info.key} is compressed: its samples have no byte ranges;"
                " upload it as a plain tar"
            )
        if name.endswith(wanted):
            found[info.key] = info
    if not any(key.lower().endswith(kind.SUFFIXES) for key in found):
        looked = ", ".join(f"*{suffix}" for suffix in kind.SUFFIXES)
        raise DatasetError(
            f"{registered.name}: no objects below {registered.uri}; a {registered.kind} dataset is {looked}"
        )
    return found


def new_objects(
    previous: Manifest | None, objects: Mapping[str, ObjectInfo], suffixes: tuple[str, ...]
) -> Sequence[ObjectInfo]:
    """Return the objects of these suffixes that no line of an earlier version was made from."""
    own = [info for info in objects.values() if info.key.lower().endswith(suffixes)]
    if previous is None:
        return own
    seen = set(_distinct(previous, used_alone=False))
    return [info for info in own if (info.key, info.etag, info.num_bytes) not in seen]


def check_unchanged(previous: Manifest, objects: Mapping[str, ObjectInfo]) -> None:
    """Compare the objects with those that a version was made from; objects of quarantined lines alone may change.

    Raises:
        ManifestError: it names the first object that is gone or was overwritten.
    """
    for shard, etag, num_bytes in _distinct(previous, used_alone=True):
        info = objects.get(shard)
        if info and (info.etag, info.num_bytes) == (etag, num_bytes):
            continue
        change = f"was overwritten (etag {etag}, now {info.etag})" if info else "is gone"
        raise ManifestError(
            f"{previous.dataset}@{previous.digest[:8]}: object {previous.uri}/{shard} {change};"
            " restore it, or register the new state as a new dataset"
        )


def _distinct(manifest: Manifest, *, used_alone: bool) -> list[tuple[str, str, int]]:
    """Return key, etag and size of the objects of a version, in order; perhaps those of lines that are used alone."""
    parts = one_array(manifest.table["parts"])
    flat = parts.flatten()
    objects = pa.table({name: flat.field(name) for name in ("shard", "etag", "shard_bytes")})
    if used_alone:
        used = np.repeat(~manifest.quarantined, np.diff(parts.offsets.to_numpy()))
        objects = objects.filter(pa.array(used)).filter(pc.field("etag") != "")
    return sorted(tuple(row.values()) for row in objects.group_by(objects.column_names).aggregate([]).to_pylist())
