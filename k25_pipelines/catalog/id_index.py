"""The samples of a dataset version in the order of their ids, for datasets too large to be read whole.

k25/datasets/<name>/ids/<digest>.root     names of the partitions and how many samples each has; the terms
k25/datasets/<name>/ids/<name>.ids        samples whose ids begin alike: records sorted by id, the first id of
                                          each page, and a sketch, from which partitions are compared

Ids are hashes, so partitions are about equally long, and their number is a power of two. A look-up reads a partition's
first ids, once, and a page. Partitions are named by their content, so that two versions share those they agree in.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.contents import content_ids
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.pages import page_rows
from k25_pipelines.catalog.sketch import CELL, RECORD, num_cells, sketch_of
from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.keys import digest, mix64
from k25_pipelines.storage.store import Store

IDS_VERSION = "ids-1"
PAGE_RECORDS = 512
PARTITION_RECORDS = 2**20
"""Samples of a partition, about."""
MOST_BITS = 16
TERM_BITS = 20
"""Of a record's place: the number of its licence and source among the dataset's; the rest is its line."""
THREADS = 64
"""Look-ups under way at once: they wait for the store, not for this machine."""
KEPT_PARTITIONS = 1024
"""Partitions whose first ids are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Where the parts of a partition's object lie."""

    name: str
    num_records: int
    cells: int
    """Of its sketch."""

    @property
    def num_pages(self) -> int:
        """Pages of records, the ragged last one included."""
        return -(-self.num_records // PAGE_RECORDS)

    @property
    def firsts(self) -> tuple[int, int]:
        """Offset and size of the first ids [bytes]."""
        return self.num_records * RECORD.itemsize, self.num_pages * 8

    @property
    def sketch(self) -> tuple[int, int]:
        """Offset and size of the sketch [bytes]."""
        return sum(self.firsts), self.cells * CELL.itemsize

    @property
    def num_bytes(self) -> int:
        """Size of the object [bytes]."""
        return sum(self.sketch)


@dataclass(frozen=True, kw_only=True, slots=True)
class IdIndex:
    """An open index: its root alone is in memory."""

    lake: Store
    dataset: str
    digest: str
    bits: int
    """Leading bits of an id that choose its partition."""
    cells: int
    """Of the sketch of a partition."""
    terms: tuple[tuple[str, str], ...]
    """Licences and sources, by the number that records give them."""
    partitions: tuple[Partition, ...]
    root_bytes: int
    _firsts: dict[int, np.ndarray] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        """Return the records of these ids as RECORD, sorted by id; ids that are not there have none.

        Raises:
            StoreError: the store failed.
        """
        wanted = np.unique(np.asarray(ids, dtype=np.uint64))
        number = wanted >> np.uint64(64 - self.bits) if self.bits else np.zeros_like(wanted)
        _, starts = np.unique(number, return_index=True)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="ids") as pool:
            numbers, runs = number[starts].tolist(), np.split(wanted, starts[1:])
            found = [part for parts in pool.map(self._found, numbers, runs) for part in parts]
        return np.concatenate([np.empty(0, RECORD), *found])

    def line_of(self, records: np.ndarray) -> np.ndarray:
        """Return the lines of records, int64."""
        return (records["place"] >> np.uint64(TERM_BITS)).astype(np.int64)

    def terms_of(self, records: np.ndarray) -> np.ndarray:
        """Return the numbers of the terms of records, int64."""
        return (records["place"] & np.uint64(2**TERM_BITS - 1)).astype(np.int64)

    def records(self, number: int) -> np.ndarray:
        """Return all records of a partition."""
        part = self.partitions[number]
        return np.frombuffer(self._read(part, 0, part.num_records * RECORD.itemsize), RECORD)

    def sketch(self, number: int) -> np.ndarray:
        """Return the sketch of a partition, as CELL."""
        part = self.partitions[number]
        return np.frombuffer(self._read(part, *part.sketch), CELL)

    def _found(self, number: int, wanted: np.ndarray) -> list[np.ndarray]:
        """Return the records of ids that all lie in one partition."""
        part, firsts = self.partitions[number], self._first_ids(number)
        found = []
        for one in wanted:
            begin = max(int(np.searchsorted(firsts, one, side="left")) - 1, 0)  # equal ids may begin a page early
            end = int(np.searchsorted(firsts, one, side="right"))
            first, last = begin * PAGE_RECORDS, min(end * PAGE_RECORDS, part.num_records)
            size = RECORD.itemsize
            page = np.frombuffer(self._read(part, first * size, max(last - first, 0) * size), RECORD)
            found.append(page[page["id"] == one])
        return found

    def _first_ids(self, number: int) -> np.ndarray:
        with self._lock:
            known = self._firsts.get(number)
        if known is None:
            part = self.partitions[number]
            known = np.frombuffer(self._read(part, *part.firsts), np.uint64)
            with self._lock:
                if len(self._firsts) >= KEPT_PARTITIONS:
                    self._firsts.pop(next(iter(self._firsts)))
                self._firsts[number] = known
        return known

    def _read(self, part: Partition, offset: int, num_bytes: int) -> bytes:
        return self.lake.get_range(ids_key(self.dataset, part.name), offset, num_bytes) if num_bytes else b""


def without_lines(records: np.ndarray) -> np.ndarray:
    """Return records that say nothing of where a sample stands in its version, as versions are compared."""
    records = records.copy()
    records["place"] &= np.uint64(2**TERM_BITS - 1)
    return records


def sample_id(key: str) -> int:
    """Return the id of a sample: 64 bits of a hash of its key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def ids_key(dataset: str, name: str) -> str:
    """Return the lake's key of a partition."""
    return f"k25/datasets/{dataset}/ids/{name}.ids"


def index_ids(lake: Store, manifest: Manifest, *, like: IdIndex | None = None) -> IdIndex:
    """Write the index of a version and return it; partitions that stand there already are not written again.

    Args:
        lake: where the manifest is.
        manifest: the version; lines that are quarantined have no record.
        like: the index of an earlier version, so that the two are cut alike and can be compared.
    """
    table = manifest.table.select(["key"]).append_column("line", pa.array(np.arange(manifest.num_lines)))
    table = table.filter(pa.array(~manifest.quarantined)).sort_by([("key", "ascending"), ("line", "ascending")])
    rows = page_rows(manifest, content_ids(lake, manifest))  # in the same order
    said = list(zip(rows["licence"].to_pylist(), rows["source"].to_pylist(), strict=True))
    terms = list(like.terms) if like else []
    terms += sorted(set(said) - set(terms))
    number = {pair: place for place, pair in enumerate(terms)}
    records = np.empty(table.num_rows, RECORD)
    records["id"] = [sample_id(key) for key in table["key"].to_pylist()]
    line = table["line"].to_numpy().astype(np.uint64)
    records["place"] = line << np.uint64(TERM_BITS) | np.array([number[pair] for pair in said], np.uint64)
    records["facts"] = mix64(rows["facts"].to_numpy() ^ mix64(rows["place"].to_numpy()))
    records = np.sort(records, order=["id", "place"])
    bits = like.bits if like else partition_bits(len(records))
    cells = like.cells if like else num_cells(len(records) >> bits)
    edges = np.searchsorted(records["id"], np.arange(1, 2**bits, dtype=np.uint64) << np.uint64(64 - bits))
    parts = [write_partition(lake, manifest.dataset, part, cells) for part in np.split(records, edges)]
    return write_root(lake, manifest.dataset, manifest.digest, bits=bits, cells=cells, terms=terms, partitions=parts)


def partition_bits(num_records: int) -> int:
    """Return how many leading bits choose a partition."""
    return min(MOST_BITS, max(0, (num_records // PARTITION_RECORDS).bit_length()))


def write_partition(lake: Store, dataset: str, records: np.ndarray, cells: int) -> Partition:
    """Write the records of a partition, RECORD sorted by id, under a name made from them."""
    part = Partition(name=digest(IDS_VERSION, cells, records.view(np.uint64)), num_records=len(records), cells=cells)
    try:
        lake.head(ids_key(dataset, part.name))
    except ObjectNotFoundError:
        sketch = sketch_of(without_lines(records), cells)
        firsts = np.ascontiguousarray(records["id"][::PAGE_RECORDS])
        lake.put(ids_key(dataset, part.name), records.tobytes() + firsts.tobytes() + sketch.tobytes())
    return part


def write_root(
    lake: Store,
    dataset: str,
    version: str,
    *,
    bits: int,
    cells: int,
    terms: Sequence[tuple[str, str]],
    partitions: Sequence[Partition],
) -> IdIndex:
    """Write what names the partitions of a version, and return the index."""
    said = {"version": IDS_VERSION, "bits": bits, "cells": cells, "terms": list(terms)}
    columns = {"names": [part.name for part in partitions], "records": [part.num_records for part in partitions]}
    lake.put(_root_key(dataset, version), json.dumps({**said, **columns}).encode())
    return open_ids(lake, dataset, version)


def open_ids(lake: Store, dataset: str, version: str) -> IdIndex:
    """Return the index of a version: one GET. Raises ManifestError: it has none, or one of another format."""
    try:
        data = lake.get(_root_key(dataset, version))
    except ObjectNotFoundError as error:
        raise ManifestError(f"{dataset}@{version} has no index of ids in {lake.url}; write it: index_ids") from error
    root = json.loads(data)
    if root["version"] != IDS_VERSION:
        raise ManifestError(f"{lake.url}/{_root_key(dataset, version)} is {root['version']}, not {IDS_VERSION}")
    cells, named = root["cells"], zip(root["names"], root["records"], strict=True)
    return IdIndex(
        lake=lake,
        dataset=dataset,
        digest=version,
        bits=root["bits"],
        cells=cells,
        terms=tuple((licence, source) for licence, source in root["terms"]),
        partitions=tuple(Partition(name=name, num_records=num, cells=cells) for name, num in named),
        root_bytes=len(data),
    )


def _root_key(dataset: str, version: str) -> str:
    return f"k25/datasets/{dataset}/ids/{version}.root"
