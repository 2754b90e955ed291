"""Names to versions: registrations and manifests in the lake; a dataset version exists when its number is written."""

import json
from dataclasses import asdict
from importlib import import_module

import pyarrow as pa

from k25_pipelines.catalog.blocked import Screen, read_blocked
from k25_pipelines.catalog.changes import check_unchanged, found_objects, new_objects
from k25_pipelines.catalog.contents import read_beside, write_beside
from k25_pipelines.catalog.line import BESIDE, SCHEMA
from k25_pipelines.catalog.manifest import Manifest, chunk_lines, make_manifest, read_manifest, write_manifest
from k25_pipelines.catalog.pages import write_pages
from k25_pipelines.catalog.partial import PARTIAL_SCHEMA
from k25_pipelines.catalog.registration import Registration, checked_registration, nearest
from k25_pipelines.catalog.scan import Progress, ScanJob
from k25_pipelines.errors import DatasetError, ManifestError, ObjectExistsError, ObjectNotFoundError
from k25_pipelines.storage.store import Store, open_store

KINDS = ("webdataset", "images", "parquet", "jsonl", "text", "chat", "interleaved", "video")
DATASETS = "k25/datasets/"


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


def index_dataset(
    lake: Store,
    name: str,
    *,
    threads: int = 4,
    processes: int = 1,
    progress: Progress | None = None,
    screen: Screen | None = None,
) -> Manifest:
    """Scan a dataset where it lies and return its manifest; a new version only if there are new lines.

    Lines of earlier versions stay, with their numbers, and their objects are not read again. What
    is found is kept in the lake shard by shard, so an indexer that was killed goes on where it was.

    Args:
        lake: where registrations and manifests are.
        name: of a registered dataset.
        threads: requests under way at once; they change no line.
        processes: of several, each scans shards of its own, one at a time; they change no line.
        progress: called with objects done, of how many, and samples found.
        screen: quarantines lines that hold what was taken down; `governance.index_dataset` gives it.

    Raises:
        DatasetError: unknown, empty, of objects that cannot be indexed, or there is a list of what was taken down and
            nothing to screen new lines with.
        ManifestError: an object that an earlier version was made from is gone or was overwritten.
    """
    registered, previous = registration(lake, name), _current(lake, name)
    found = _scanned(lake, registered, previous, threads=threads, processes=processes, progress=progress)
    found = _screened(lake, registered, found, screen)
    table = pa.concat_tables([previous.table if previous else SCHEMA.empty_table(), found.select(SCHEMA.names)])
    if not table.num_rows:
        raise DatasetError(f"{name}: the objects below {registered.uri} hold no samples; check the URI and the kind")
    size = previous.chunk_lines if previous else chunk_lines(table)
    manifest = make_manifest(name, table, uri=registered.uri, kind=registered.kind, chunk_lines=size)
    if not previous or manifest.digest != previous.digest:
        before = read_beside(lake, previous) if previous else BESIDE.empty_table()
        write_beside(lake, manifest, pa.concat_tables([before, found.select(BESIDE.names)]))
        write_pages(lake, manifest)
        _publish(lake, registered, manifest, parent=previous)
    return manifest


def _screened(lake: Store, registered: Registration, found: pa.Table, screen: Screen | None) -> pa.Table:
    """Return new lines with those quarantined that were taken down; without a screen there must be nothing to find."""
    if not found.num_rows or not read_blocked(lake):
        return found
    if screen is None:
        raise DatasetError(
            f"{registered.name}: samples were taken down in {lake.url}, and nothing looks for them in what is new;"
            " index with k25 index, or call governance.index_dataset"
        )
    return screen(registered, found)


def _scanned(lake: Store, registered: Registration, previous: Manifest | None, **how) -> pa.Table:
    """Return the lines of the objects that no earlier version was made from, and what stands beside them."""
    kind = import_module(f"k25_pipelines.catalog.kinds.{registered.kind}")
    store = open_store(registered.uri)
    objects = found_objects(store, registered, kind)
    if previous:
        check_unchanged(previous, objects)
    new = new_objects(previous, objects, kind.SUFFIXES)
    job = ScanJob(registration=registered, store=store, lake=lake, objects=objects, new=new, previous=previous, **how)
    return pa.concat_tables([PARTIAL_SCHEMA.empty_table(), *kind.scan(job)])


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
