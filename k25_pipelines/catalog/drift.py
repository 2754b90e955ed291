"""The objects that a dataset version was made from, as they are now: overwritten, gone or new, and what that changes.

An object is compared by etag and size, which costs a listing. With `deep` its media are read and compared by digest:
then an object that was written again with the same bytes is told from one that holds others, and one that changed
behind an unchanged etag is found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from k25_pipelines.catalog.changes import new_objects
from k25_pipelines.catalog.contents import content_ids
from k25_pipelines.catalog.line import Part
from k25_pipelines.catalog.manifest import Manifest, part_columns
from k25_pipelines.catalog.media import content_id
from k25_pipelines.catalog.registry import load_manifest, registration
from k25_pipelines.errors import ObjectNotFoundError, SampleError, StoreError
from k25_pipelines.storage.store import ObjectInfo, Store, open_store

KEYS_TOLD = 8
"""Samples of an object that a report names."""
Progress = Callable[[int, int, str], None]
Cells = Callable[[Part], bytes]
"""Gives the bytes of a part, whatever its etag is by now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectDrift:
    """An object that is not what it was when it was indexed."""

    uri: str
    change: str
    """`overwritten`, `gone`, or `rewritten`: another etag, but the same media to the byte."""
    was: tuple[str, int]
    """Etag and size [bytes]."""
    now: tuple[str, int] | None
    """The same, None where it is gone."""
    num_lines: int
    """Samples that have parts in it and are used."""
    keys: tuple[str, ...]
    """Some of those whose bytes are others by now; where they were not compared, some of all."""
    num_changed: int | None = None
    """Media whose digest is another by now; None where none was compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """What is different behind a manifest."""

    dataset: str
    digest: str
    num_objects: int
    """That the version was made from."""
    num_new: int
    """Objects that no version knows yet: `k25 index` takes them in."""
    objects: tuple[ObjectDrift, ...]
    num_compared: int = 0
    """Media compared by digest."""
    num_unknown: int = 0
    """Media with no digest to compare with: `k25 index NAME --deep` learns them."""

    @property
    def is_broken(self) -> bool:
        """Whether some sample can no longer be read as it was indexed: an etag that changed stops a loader, too."""
        return bool(self.objects)


def find_drift(
    lake: Store, name: str, *, digest: str | None = None, cells: Cells | None = None, progress: Progress | None = None
) -> Drift:
    """Compare a dataset's objects with a version.

    Args:
        lake: where the dataset is registered.
        name: the dataset's.
        digest: of the version; the newest if not given.
        cells: reads a part as it is now, to compare media by digest; None compares etags and sizes alone.
        progress: told objects done, objects in all, and what.

    Raises:
        DatasetError, ManifestError: there is no such dataset or version.
        StoreError: the store cannot be listed.
    """
    manifest, registered = load_manifest(lake, name, digest), registration(lake, name)
    found = {info.key: info for info in open_store(manifest.uri).list()}
    kind = import_module(f"k25_pipelines.catalog.kinds.{registered.kind}")
    objects = _Objects(manifest, content_ids(lake, manifest) if cells else [])
    drifted, num_compared = [], 0
    for place, shard in enumerate(objects.shards):
        was, info = objects.was(shard), found.get(shard)
        is_same = info is not None and (info.etag, info.num_bytes) == was
        changed = None if cells is None or info is None else objects.changed(shard, cells)
        num_compared += objects.num_known(shard) if changed is not None else 0
        if not is_same or changed:
            drifted.append(_told(objects, shard, was, info, changed))
        if progress:
            progress(place + 1, len(objects.shards), shard)
    return Drift(
        dataset=name,
        digest=manifest.digest,
        num_objects=len(objects.shards),
        num_new=sum(info.key not in objects.parts for info in new_objects(manifest, found, kind.SUFFIXES)),
        objects=tuple(drifted),
        num_compared=num_compared,
        num_unknown=objects.num_unknown if cells else 0,
    )


def _told(
    objects: "_Objects", shard: str, was: tuple[str, int], info: ObjectInfo | None, changed: list[str] | None
) -> ObjectDrift:
    keys = objects.keys(shard)
    change = "gone" if info is None else "overwritten"
    if info is not None and changed == [] and objects.is_all_known(shard):
        change = "rewritten"
    return ObjectDrift(
        uri=f"{objects.manifest.uri}/{shard}",
        change=change,
        was=was,
        now=None if info is None else (info.etag, info.num_bytes),
        num_lines=len(keys),
        keys=tuple((changed or keys)[:KEYS_TOLD]),
        num_changed=None if changed is None else len(changed),
    )


class _Objects:
    """The parts of a version that are used, by object."""

    def __init__(self, manifest: Manifest, contents: list[str | None]) -> None:
        self.manifest, self._contents = manifest, contents
        columns = part_columns(manifest)
        self._lines, self._etags, self._sizes = columns["line"], columns["etag"], columns["shard_bytes"]
        used = ~manifest.quarantined[self._lines] & (self._etags != "")
        self.parts: dict[str, list[int]] = {}
        for place in np.flatnonzero(used).tolist():
            self.parts.setdefault(columns["shard"][place], []).append(place)
        self.shards = sorted(self.parts)
        self.num_unknown = 0
        if contents:
            media = np.isin(columns["kind"], ("image", "video")) & used
            self.num_unknown = sum(contents[place] is None for place in np.flatnonzero(media).tolist())

    def was(self, shard: str) -> tuple[str, int]:
        place = self.parts[shard][0]
        return str(self._etags[place]), int(self._sizes[place])

    def keys(self, shard: str) -> list[str]:
        lines = dict.fromkeys(self._lines[self.parts[shard]].tolist())
        return [self.manifest.line(line).key for line in lines]

    def num_known(self, shard: str) -> int:
        return sum(self._contents[place] is not None for place in self.parts[shard])

    def is_all_known(self, shard: str) -> bool:
        return self.num_known(shard) == len(self.parts[shard])

    def changed(self, shard: str, cells: Cells) -> list[str]:
        """Return the keys of samples whose media have another digest by now, or cannot be read."""
        found = list[str]()
        for place in self.parts[shard]:
            if self._contents[place] is None:
                continue
            line = self.manifest.line(int(self._lines[place]))
            part = line.parts[place - self.manifest.columns.first_part[int(self._lines[place])]]
            if _content_now(part, cells) != self._contents[place]:
                found.append(line.key)
        return found


def _content_now(part: Part, cells: Cells) -> str:
    try:
        return content_id(cells(part))
    except ObjectNotFoundError:
        raise
    except (StoreError, SampleError):  # cut short, or a table that is none any more
        return ""


def drift_dict(drift: Drift) -> Mapping[str, object]:
    """Return a drift as plain data."""
    plain = {name: getattr(drift, name) for name in Drift.__slots__ if name != "objects"}
    return {**plain, "objects": [{n: getattr(each, n) for n in ObjectDrift.__slots__} for each in drift.objects]}
