"""A dataset version too large for one table: manifests of a million lines each, and a root that says where lines are.

k25/datasets/<name>/partitioned/<digest>.root    names, first lines and sizes of the partitions
k25/datasets/<name>/manifests/<digest>.parquet   a partition: a manifest as any other

Opening reads the root alone; lines are read from the row groups that hold them.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import groupby
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.columns import table_columns
from k25_pipelines.catalog.line import Line
from k25_pipelines.catalog.manifest import Manifest, manifest_key
from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.ranged import RangedFile
from k25_pipelines.storage.store import Store

PARTITIONED_VERSION = "partitioned-1"
BLOCK_BYTES = 2**20
"""Fetched at once of a partition."""
KEPT_FOOTERS = 64
"""Partitions that stay open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionedManifest:
    """A dataset version of which the root alone is in memory. Lines are numbered through all partitions."""

    lake: Store
    dataset: str
    digest: str
    names: tuple[str, ...]
    """Digests of the partitions' manifests, in the order of their lines."""
    first_lines: tuple[int, ...]
    """Of each partition."""
    num_lines: int
    _open: dict[int, pq.ParquetFile] = field(default_factory=dict)

    def line(self, number: int) -> Line:
        """Return a line. Raises ManifestError: there is none of that number."""
        return self.lines([number])[number]

    def lines(self, numbers: Iterable[int]) -> dict[int, Line]:
        """Return lines by their numbers; each row group that holds some is read once.

        Raises:
            ManifestError: there is no line of such a number, or a partition is gone.
        """
        wanted = sorted(set(numbers))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.num_lines:
            wrong = next(number for number in wanted if not 0 <= number < self.num_lines)
            raise ManifestError(f"{self.dataset}@{self.digest[:8]} has lines 0 to {self.num_lines - 1}, not {wrong}")
        found: dict[int, Line] = {}
        for place, run in groupby(wanted, key=lambda number: bisect_right(self.first_lines, number) - 1):
            first = self.first_lines[place]
            told = _lines_of(self._file(place), [number - first for number in run])
            found |= {first + number: line for number, line in told.items()}
        return found

    def _file(self, place: int) -> pq.ParquetFile:
        if place not in self._open:
            key = manifest_key(self.dataset, self.names[place])
            try:
                raw = RangedFile(self.lake, self.lake.head(key), block_bytes=BLOCK_BYTES)
            except ObjectNotFoundError as error:
                raise ManifestError(f"{self.lake.url}/{key} is gone; restore the object") from error
            if len(self._open) >= KEPT_FOOTERS:
                self._open.pop(next(iter(self._open)))
            self._open[place] = pq.ParquetFile(cast(BufferedReader, raw))
        return self._open[place]


def write_partitioned(lake: Store, dataset: str, partitions: Sequence[Manifest | tuple[str, int]]) -> str:
    """Write the root of manifests that stand in the lake, and return its digest.

    Args:
        lake: where the manifests are.
        dataset: whose they are.
        partitions: manifests in the order of their lines, or digest and number of lines of each.
    """
    told = [(each.digest, each.num_lines) if isinstance(each, Manifest) else each for each in partitions]
    names, sizes = [name for name, _ in told], [size for _, size in told]
    version = digest(PARTITIONED_VERSION, names, sizes)
    lake.put(_root_key(dataset, version), json.dumps({"names": names, "lines": sizes}).encode())
    return version


def open_partitioned(lake: Store, dataset: str, version: str) -> PartitionedManifest:
    """Return a version: one GET. Raises ManifestError: there is no such version, or its root is another one."""
    try:
        root = json.loads(lake.get(_root_key(dataset, version)))
    except ObjectNotFoundError as error:
        raise ManifestError(f"{dataset}@{version}: no such partitioned version in {lake.url}") from error
    if digest(PARTITIONED_VERSION, root["names"], root["lines"]) != version:
        raise ManifestError(f"{lake.url}/{_root_key(dataset, version)} is not the root it is named for; restore it")
    first_lines, total = list[int](), 0
    for size in root["lines"]:
        first_lines.append(total)
        total += size
    fixed = {"lake": lake, "dataset": dataset, "digest": version, "num_lines": total}
    return PartitionedManifest(**fixed, names=tuple(root["names"]), first_lines=tuple(first_lines))


def _lines_of(file: pq.ParquetFile, numbers: Sequence[int]) -> dict[int, Line]:
    """Return lines of one partition by their numbers in it, ascending."""
    ends, total = list[int](), 0
    for group in range(file.metadata.num_row_groups):
        total += file.metadata.row_group(group).num_rows
        ends.append(total)
    found: dict[int, Line] = {}
    for group, run in groupby(numbers, key=lambda number: bisect_right(ends, number)):
        table, first = file.read_row_group(group, use_threads=False), ends[group - 1] if group else 0
        places = list(run)
        taken: pa.Table = table.take([number - first for number in places]).combine_chunks()
        found |= dict(zip(places, table_columns(taken).lines_between(0, len(places)), strict=True))
    return found


def _root_key(dataset: str, version: str) -> str:
    return f"k25/datasets/{dataset}/partitioned/{version}.root"
