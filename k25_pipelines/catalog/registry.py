"""Names to versions: registrations and manifests in the lake; a dataset version exists when its number is written."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import islice

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.manifest import (
    SCHEMA,
    Line,
    Manifest,
    chunk_lines,
    lines_table,
    make_manifest,
    part_columns,
    read_manifest,
    write_manifest,
)
from k25_pipelines.catalog.registration import Registration, checked_registration, nearest
from k25_pipelines.catalog.scan import Progress, ScanJob
from k25_pipelines.errors import DatasetError, ManifestError, ObjectExistsError, ObjectNotFoundError
from k25_pipelines.storage.store import ObjectInfo, Store, open_store

KINDS = ("webdataset", "images", "parquet", "jsonl", "text", "video")
DATASETS = "k25/datasets/"
BATCH_LINES = 8192


def register(lake: Store, registration: Registration) -> Registration:
    """Write a registration once and return it.

    Raises:
        DatasetError: a field is wrong, or the name stands for another dataset.
    """
    checked = checked_registration(registration, KINDS)
    try:
        lake.put_new(_registration_key(checked.name), _json(asdict(checked)))
    except ObjectExistsError as error:
        old, new = asdict(_read_registration(lake, checked.name)), asdict(checked)
        changed = "; ".join(
            f"{field} is {old[field]!r}, not {new[field]!r}" for field in old if old[field] != new[field]
        )
        raise DatasetError(f"{checked.name} is registered already: {changed}; choose another name") from error
    return checked


def registration(lake: Store, name: str) -> Registration:
    """Return what was registered under a name. Raises DatasetError: nothing was."""
    try:
        return _read_registration(lake, name)
    except ObjectNotFoundError as error:
        known = dataset_names(lake)
        raise DatasetError(f"unknown dataset {name!r} in {lake.url}{nearest(name, known)}") from error


def dataset_names(lake: Store) -> list[str]:
    """Return the names of all registered datasets, in order."""
    keys = (info.key for info in lake.list(DATASETS))
    return [key.split("/")[2] for key in keys if key.count("/") == 3 and key.endswith("/registration.json")]


def dataset_versions(lake: Store, name: str) -> list[dict]:
    """Return the versions of a dataset, oldest first: number, digest, parent, num_lines and so on."""
    prefix = f"{DATASETS}{registration(lake, name).name}/versions/"
    return [json.loads(lake.get(info.key)) for info in lake.list(prefix)]


def load_manifest(lake: Store, name: str, digest: str | None = None) -> Manifest:
    """Return a version of a dataset: the newest, or the one of that digest.

    Raises:
        DatasetError: there is no such dataset.
        ManifestError: there is no such version, or it was never indexed.
    """
    registration(lake, name)
    manifest = _current(lake, name) if digest is None else read_manifest(lake, name, digest)
    if manifest is None:
        raise ManifestError(f"{name} is registered in {lake.url} but not indexed yet; run: k25 index {name}")
    return manifest


def index_dataset(lake: Store, name: str, *, threads: int = 4, progress: Progress | None = None) -> Manifest:
    """Scan a dataset where it lies and return its manifest; a new version only if there are new lines.

    Lines of earlier versions stay, with their numbers. Nothing is published before the end, so an
    indexer that was killed is simply started again.

    Args:
        lake: where registrations and manifests are.
        name: of a registered dataset.
        threads: requests under way at once; they change no line.
        progress: called with objects done, of how many, and a word.

    Raises:
        DatasetError: unknown, empty, or of objects that cannot be indexed.
        ManifestError: an object that an earlier version was made from is gone or was overwritten.
    """
    registered = registration(lake, name)
    kind = import_module(f"k25_pipelines.catalog.kinds.{registered.kind}")
    store, previous = open_store(registered.uri), _current(lake, name)
    objects = _objects(store, registered, kind)
    if previous:
        check_unchanged(previous, objects)
    job = ScanJob(
        registration=registered,
        store=store,
        objects=objects,
        new=_new_objects(previous, objects),
        previous=previous,
        threads=threads,
        progress=progress,
    )
    table = _appended(previous, kind.scan(job), name=name)
    if not table.num_rows:
        raise DatasetError(f"{name}: the objects below {registered.uri} hold no samples; check the URI and the kind")
    size = previous.chunk_lines if previous else chunk_lines(table)
    manifest = make_manifest(name, table, uri=registered.uri, kind=registered.kind, chunk_lines=size)
    if not previous or manifest.digest != previous.digest:
        _publish(lake, registered, manifest, parent=previous)
    return manifest


def check_unchanged(previous: Manifest, objects: dict[str, ObjectInfo]) -> None:
    """Compare the objects with those that a version was made from; objects of quarantined lines alone may change.

    Raises:
        ManifestError: it names the first object that is gone or was overwritten.
    """
    parts = part_columns(previous)
    used = ~previous.quarantined[parts["line"]] & (parts["etag"] != "")
    for shard, etag, num_bytes in _distinct(parts, used):
        info = objects.get(shard)
        if info and (info.etag, info.num_bytes) == (etag, num_bytes):
            continue
        change = f"was overwritten (etag {etag}, now {info.etag})" if info else "is gone"
        raise ManifestError(
            f"{previous.dataset}@{previous.digest[:8]}: object {previous.uri}/{shard} {change};"
            " restore it, or register the new state as a new dataset"
        )


def _new_objects(previous: Manifest | None, objects: dict[str, ObjectInfo]) -> Sequence[ObjectInfo]:
    if previous is None:
        return list(objects.values())
    parts = part_columns(previous)
    seen = set(_distinct(parts, np.ones(len(parts["line"]), bool)))
    return [info for info in objects.values() if (info.key, info.etag, info.num_bytes) not in seen]


def _distinct(parts: dict[str, np.ndarray], chosen: np.ndarray) -> list[tuple[str, str, int]]:
    rows = zip(*(parts[name][chosen].tolist() for name in ("shard", "etag", "shard_bytes")), strict=True)
    return sorted(set(rows))


def _objects(store: Store, registered: Registration, kind) -> dict[str, ObjectInfo]:
    refused: tuple[str, ...] = getattr(kind, "REFUSED_SUFFIXES", ())
    found = {}
    for info in store.list():
        name = info.key.lower()
        if refused and name.endswith(refused):
            raise DatasetError(
                f"{registered.name}: {registered.uri}/{info.key} is compressed: its samples have no byte ranges;"
                " upload it as a plain tar"
            )
        if name.endswith(kind.SUFFIXES):
            found[info.key] = info
    if not found:
        looked = ", ".join(f"*{suffix}" for suffix in kind.SUFFIXES)
        raise DatasetError(
            f"{registered.name}: no objects below {registered.uri}; a {registered.kind} dataset is {looked}"
        )
    return found


def _appended(previous: Manifest | None, lines: Iterator[Line], *, name: str) -> pa.Table:
    tables = [previous.table if previous else SCHEMA.empty_table()]
    try:
        while batch := list(islice(lines, BATCH_LINES)):
            tables.append(lines_table(batch))
    except UnicodeEncodeError as error:
        raise DatasetError(f"{name}: {error.object!a} is not Unicode; write whole characters") from error
    return pa.concat_tables(tables)


def _publish(lake: Store, registered: Registration, manifest: Manifest, *, parent: Manifest | None) -> None:
    write_manifest(lake, manifest)
    number = len(list(lake.list(f"{DATASETS}{manifest.dataset}/versions/"))) + 1
    version = {
        "number": number,
        "digest": manifest.digest,
        "parent": parent.digest if parent else None,
        "num_lines": manifest.num_lines,
        "num_quarantined": int(manifest.quarantined.sum()),
        "chunk_lines": manifest.chunk_lines,
        **{field: getattr(registered, field) for field in ("uri", "kind", "licence", "source")},
    }
    try:
        lake.put_new(f"{DATASETS}{manifest.dataset}/versions/{number:06}.json", _json(version))
    except ObjectExistsError as error:
        raise DatasetError(
            f"{manifest.dataset}: another indexer published version {number} first; index again"
        ) from error


def _current(lake: Store, name: str) -> Manifest | None:
    newest = max((info.key for info in lake.list(f"{DATASETS}{name}/versions/")), default=None)
    return read_manifest(lake, name, json.loads(lake.get(newest))["digest"]) if newest else None


def _read_registration(lake: Store, name: str) -> Registration:
    return Registration(**json.loads(lake.get(_registration_key(name))))


def _registration_key(name: str) -> str:
    return f"{DATASETS}{name}/registration.json"


def _json(value: dict) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()
