"""Find garbage and delete it: a lake in, what may go and why out; killed at any moment it is simply started again."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from k25_pipelines.catalog.manifest import part_columns, read_manifest
from k25_pipelines.errors import K25Error
from k25_pipelines.gc.references import References, read_references
from k25_pipelines.gc.rules import Garbage, Policy, Stored, garbage, naming_rank
from k25_pipelines.storage.store import Store, open_store
from k25_pipelines.sync.access import read_access
from k25_pipelines.sync.rclone import Place, Upload, abort_upload, dated_objects, pending_uploads

RECEIPTS = "k25/gc/"
THREADS = 16
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What may go."""

    objects: tuple[Garbage, ...]
    """Below the lake."""
    data: Mapping[str, tuple[Garbage, ...]]
    """Objects of deleted dataset versions, by the URL that they lie below."""
    uploads: tuple[Upload, ...]
    """Begun long ago below the lake and never ended."""
    num_stored: int
    """Objects that were looked at."""
    num_bytes: int
    """Of these [bytes]."""

    @property
    def all_objects(self) -> list[Garbage]:
        """Every object that may go."""
        return [*self.objects, *(each for found in self.data.values() for each in found)]


def find(lake: Store, policy: Policy, *, now: datetime | None = None) -> Findings:
    """Return what may go under a policy.

    Raises:
        K25Error: the lake lives in memory, or the engine that tells the dates of objects is missing.
    """
    now = now or datetime.now(UTC)
    place, border = _place(lake.url), now - timedelta(days=policy.older_than_days)
    stored = [Stored(key=key, num_bytes=size, written=at) for key, size, at in dated_objects(place, "k25")]
    references = read_references(lake)  # after the listing: what has been named since is not garbage
    uploads = [upload for upload in pending_uploads(place) if upload.begun <= border]
    return Findings(
        objects=tuple(garbage(stored, references, policy, now=now)),
        data=_data(lake, references, border) if policy.data else {},
        uploads=tuple(uploads),
        num_stored=len(stored),
        num_bytes=sum(each.num_bytes for each in stored),
    )


def sweep(
    lake: Store, policy: Policy, *, author: str, now: datetime | None = None, progress: Progress | None = None
) -> Findings:
    """Delete what may go, and return it.

    References are read twice: what came to be named between the first look and the last is kept. What names others
    is deleted before them, and data before the manifests that name it.
    """
    first, last = find(lake, policy, now=now), find(lake, policy, now=now)
    found = _both(first, last)
    if not found.all_objects and not found.uploads:
        return found
    _write_receipt(lake, policy, found, author=author)
    for upload in found.uploads:
        abort_upload(_place(lake.url), upload)
    for uri, objects in found.data.items():
        _delete(open_store(uri), objects, progress)
    for rank in sorted({naming_rank(each.key) for each in found.objects}):
        _delete(lake, [each for each in found.objects if naming_rank(each.key) == rank], progress)
    return found


def _both(first: Findings, last: Findings) -> Findings:
    before, pending = set(first.all_objects), set(first.uploads)
    return Findings(
        objects=tuple(each for each in last.objects if each in before),
        data={uri: tuple(each for each in found if each in before) for uri, found in last.data.items()},
        uploads=tuple(each for each in last.uploads if each in pending),
        num_stored=last.num_stored,
        num_bytes=last.num_bytes,
    )


def _delete(store: Store, objects: Sequence[Garbage], progress: Progress | None) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        done = pool.map(partial(_delete_one, store), objects)
        for number, key in enumerate(done, start=1):
            if progress:
                progress(number, len(objects), key)


def _delete_one(store: Store, each: Garbage) -> str:
    store.delete(each.key)
    return each.key


def _data(lake: Store, references: References, border: datetime) -> dict[str, tuple[Garbage, ...]]:
    """Return the objects that deleted versions name, and no version that stays."""
    deleted = {
        (name, digest)
        for name, states in references.versions.items()
        for digest, state in states.items()
        if state == "deleted" and (name, digest) not in references.planned
    }
    kept = set[str]()
    for name, digest in references.manifests - deleted:
        kept |= set(_urls(lake, name, digest))
    gone: dict[str, set[str]] = {}
    for name, digest in sorted(deleted & references.manifests):  # the newest, which holds all lines of earlier ones
        for url, (root, key) in _urls(lake, name, digest).items():
            if url not in kept:
                gone.setdefault(root, set()).add(key)
    return {root: _dated(root, keys, border) for root, keys in gone.items()}


def _urls(lake: Store, name: str, digest: str) -> dict[str, tuple[str, str]]:
    """Return the objects that a manifest names: root and key by URL."""
    manifest = read_manifest(lake, name, digest)
    keys = set(part_columns(manifest)["shard"].tolist()) - {""}
    return {f"{manifest.uri}/{key}": (manifest.uri, key) for key in keys}


def _dated(root: str, keys: set[str], border: datetime) -> tuple[Garbage, ...]:
    why = "data of a deleted version"
    found = [(key, size) for key, size, at in dated_objects(_place(root), "") if key in keys and at <= border]
    return tuple(Garbage(key=key, num_bytes=size, why=why) for key, size in sorted(found))


def _place(url: str) -> Place:
    if url.startswith("memory://"):
        raise K25Error(f"{url} lives as long as this process: nothing of it is worth collecting")
    return Place(url=url, access=read_access(None, os.environ))


def _write_receipt(lake: Store, policy: Policy, found: Findings, *, author: str) -> None:
    told: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "author": author,
        "policy": asdict(policy),
        "objects": [[each.key, each.num_bytes, each.why] for each in found.objects],
        "data": {uri: [[each.key, each.num_bytes] for each in objects] for uri, objects in found.data.items()},
        "uploads": [upload.key for upload in found.uploads],
    }
    number = len(list(lake.list(RECEIPTS))) + 1
    lake.put_new(f"{RECEIPTS}{number:06}.json", json.dumps(told, ensure_ascii=False).encode())
