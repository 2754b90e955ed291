"""Where copies are: what the lake records of syncs, and which of their objects were compared with their sources."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.errors import StoreError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store
from k25_pipelines.sync.access import open_with, read_access
from k25_pipelines.sync.digests import Compared

SYNCS = "k25/syncs/"
VERIFIED = pa.schema(
    [
        ("key", pa.string()),
        ("num_bytes", pa.int64()),
        ("etag", pa.string()),
        ("copied_etag", pa.string()),
        ("md5", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncTarget:
    """Two places, the second of which holds copies of objects of the first under the same keys."""

    source: str
    """URL of the root."""
    destination: str
    source_endpoint: str = ""
    """Which S3; "" for AWS's own, and for folders."""
    destination_endpoint: str = ""
    destination_access: str | None = None
    """The file or profile that it was used with; None: the environment."""
    dataset: str | None = None
    """Whose objects are copied; None: all that stand below the source."""

    @property
    def id(self) -> str:
        """Its name: of the places, however they are used."""
        return digest("sync", self.source, self.source_endpoint, self.destination, self.destination_endpoint)

    def copy_of(self, url: str) -> str | None:
        """Return the key at the destination of the copy of an object; None where it does not stand below the source."""
        return url.removeprefix(f"{self.source}/") if url.startswith(f"{self.source}/") else None


def sync_targets(lake: Store) -> list[SyncTarget]:
    """Return every target that the lake records, finished or not, in the order of their ids."""
    keys = [info.key for info in lake.list(SYNCS) if info.key.endswith("/target.json")]
    return [SyncTarget(**json.loads(lake.get(key))) for key in keys]


def copies_of(lake: Store, url: str) -> list[tuple[SyncTarget, str]]:
    """Return where an object may have been copied: targets, each with the copy's key below its destination."""
    found = [(target, target.copy_of(url)) for target in sync_targets(lake)]
    return [(target, key) for target, key in found if key is not None]


def open_target(target: SyncTarget, environment: Mapping[str, str] = os.environ) -> Store:
    """Return the store that holds copies.

    Raises:
        StoreError: the access it was used with is not here, or leads to another S3.
    """
    access = read_access(target.destination_access, environment)
    if target.destination.startswith("s3://") and access.endpoint != target.destination_endpoint:
        raise StoreError(
            f"copies at {target.destination} are held by {target.destination_endpoint or 'AWS'}, and this access leads "
            f"to {access.endpoint or 'AWS'}; sync once with --dst-access, which is recorded"
        )
    return open_with(target.destination, access)


def write_target(lake: Store, target: SyncTarget) -> None:
    """Record a target, or how it is used now."""
    lake.put(f"{SYNCS}{target.id}/target.json", _json(asdict(target)))


def write_verified(lake: Store, target: SyncTarget, found: Sequence[Compared]) -> None:
    """Record copies that hold what their sources do."""
    if not found:
        return
    rows = [{name: getattr(each, name) for name in VERIFIED.names} for each in found]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=VERIFIED), sink, compression="zstd")
    lake.put_new(f"{SYNCS}{target.id}/verified/{digest('verified', rows)}.parquet", sink.getvalue())


def read_verified(lake: Store, target: SyncTarget) -> dict[str, set[tuple[str, str]]]:
    """Return, by key, the etags of sources and copies that were compared."""
    known: dict[str, set[tuple[str, str]]] = {}
    for info in lake.list(f"{SYNCS}{target.id}/verified/"):
        table = pq.read_table(io.BytesIO(lake.get(info.key)), use_threads=False)
        columns = (table[name].to_pylist() for name in ("key", "etag", "copied_etag"))
        for key, etag, copied in zip(*columns, strict=True):
            known.setdefault(key, set()).add((etag, copied))
    return known


def write_run(lake: Store, target: SyncTarget, report: Mapping[str, object]) -> None:
    """Record what a run moved."""
    prefix = f"{SYNCS}{target.id}/runs/"
    number = len(list(lake.list(prefix))) + 1
    lake.put_new(f"{prefix}{number:06}.json", _json(report))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()
