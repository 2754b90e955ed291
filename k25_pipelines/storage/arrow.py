"""Tables out of a store: Parquet objects as one Arrow table, and a filesystem through which DuckDB reads them.

Any store will do, S3, folder or memory: reads go through its client, under its limits and its AWS_* settings.
"""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from k25_pipelines.errors import ObjectNotFoundError, StoreError
from k25_pipelines.keys import digest
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import ObjectInfo, Store

PROTOCOL = "k25"
BLOCK_BYTES = 2**20
"""Read at once; footers and column chunks of tables are small [bytes]."""
FETCH_THREADS = 8


def parquet_tables(store: Store, keys: Iterable[str], *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the Parquet objects of these keys as one table, in their order.

    Args:
        store: where they stand.
        keys: at least one; each is read whole, by one GET.
        columns: which to decode; all, if not given. A column that some objects lack is null there.

    Raises:
        ObjectNotFoundError: a key holds no object.
        StoreError: an object is no Parquet, or its columns are of other types than another's.
        ValueError: no key is given.
    """
    keys = list(keys)
    if not keys:
        raise ValueError("no key is given, so the table's columns are unknown")

    def read(key: str) -> pa.Table:
        try:
            return pq.read_table(io.BytesIO(store.get(key)), columns=columns and list(columns), use_threads=False)
        except pa.ArrowException as error:
            raise StoreError(f"{store.url}/{key}: no Parquet table ({' '.join(str(error).split())})") from error

    with ThreadPoolExecutor(min(FETCH_THREADS, len(keys))) as pool:
        tables = list(pool.map(read, keys))
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise StoreError(
            f"{store.url}: the tables of {keys[0]} to {keys[-1]} differ in their columns: {error}"
        ) from error


def filesystem(store: Store) -> AbstractFileSystem:
    """Return the store as a read-only filesystem, whose paths are `k25://key`.

    For `duckdb.connect().register_filesystem(filesystem(store))`, after which SQL reads
    `read_parquet('k25://tables/*.parquet')`, and for whatever else takes an fsspec filesystem.
    """
    return _StoreFileSystem(store=store)


class _StoreFileSystem(AbstractFileSystem):
    """A store's objects as files; folders are what keys share up to a slash."""

    protocol = PROTOCOL
    cachable = False  # one for each store, which has no stable name in memory

    def __init__(self, *, store: Store, **kwargs: Any) -> None:
        super().__init__(use_listings_cache=False, **kwargs)
        self._store = store

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        """Return what stands at a path: the objects and folders just below it, or the object itself."""
        path = _key(path)
        below = f"{path}/" if path else ""
        found: dict[str, dict] = {}
        for info in self._store.list(below):
            name, slash, _rest = info.key.removeprefix(below).partition("/")
            found.setdefault(below + name, _folder(below + name) if slash else _file(info))
        if not found:
            found[path] = self.info(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_: Any) -> dict:
        """Return size, etag and type of what stands at a path. Raises FileNotFoundError."""
        path = _key(path)
        if not path:
            return _folder("")
        try:
            return _file(self._store.head(path))
        except ObjectNotFoundError as error:
            if next(iter(self._store.list(f"{path}/")), None) is None:
                raise FileNotFoundError(str(error)) from error
            return _folder(path)

    def modified(self, path: str) -> datetime:
        """Return a time that changes with the object: a store tells etags, and DuckDB's cache compares times."""
        return datetime.fromtimestamp(int(digest(self.info(path).get("etag", ""))[:7], 16), tz=UTC)

    def _open(self, path: str, mode: str = "rb", *_args: Any, **_kwargs: Any) -> Any:
        if mode != "rb":
            raise StoreError(f"{self._store.url}/{path}: mode {mode!r}; tables are only read through a filesystem")
        try:
            info = self._store.head(_key(path))
        except ObjectNotFoundError as error:
            raise FileNotFoundError(str(error)) from error
        return RangedFile(self._store, info, block_bytes=BLOCK_BYTES)


def _key(path: str) -> str:
    return path.removeprefix(f"{PROTOCOL}://").strip("/")


def _file(info: ObjectInfo) -> dict:
    return {"name": info.key, "size": info.num_bytes, "etag": info.etag, "type": "file"}


def _folder(name: str) -> dict:
    return {"name": name, "size": 0, "type": "directory"}
