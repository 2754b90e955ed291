"""The table of a dataset version: lines in, one Parquet object out, named by the digest of the lines; and back."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k25_pipelines.catalog.columns import Columns, one_array, table_columns
from k25_pipelines.catalog.line import MEDIA_KINDS as MEDIA_KINDS
from k25_pipelines.catalog.line import PART_TYPE, PLAIN_COLUMNS, Line, lines_table
from k25_pipelines.catalog.line import SCHEMA as SCHEMA
from k25_pipelines.catalog.line import Part as Part
from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

CHUNK_BYTES = 8 * 2**20
MIN_CHUNKS = 256
BLOCK_LINES = 256
"""Lines made from the table together, fewer where chunks are smaller: a chunk is asked for as a whole."""
KEPT_LINES = 2**13
"""Lines that are kept once they are made."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A dataset version. Lines are numbered from 0 and keep their number in every later version."""

    dataset: str
    digest: str
    uri: str
    """Root of the shards' keys."""
    kind: str
    chunk_lines: int
    """Consecutive lines that are shuffled, fetched and cached together; fixed at the first version."""
    table: pa.Table
    """A row a line, of `SCHEMA`."""

    @property
    def num_lines(self) -> int:
        """Number of lines, quarantined ones included."""
        return self.table.num_rows

    @property
    def num_chunks(self) -> int:
        """Number of chunks, the ragged last one included."""
        return -(-self.num_lines // self.chunk_lines)

    def line(self, number: int) -> Line:
        """Return a line. Raises ManifestError: there is none of that number."""
        if not 0 <= number < self.num_lines:
            raise ManifestError(f"{self.dataset}@{self.digest[:8]} has lines 0 to {self.num_lines - 1}, not {number}")
        size = min(self.chunk_lines, BLOCK_LINES)
        block = self._blocks.get(number // size)
        if block is None:
            first = number // size * size
            if len(self._blocks) * size >= KEPT_LINES:
                self._blocks.clear()
            block = self.columns.lines_between(first, min(first + size, self.num_lines))
            self._blocks[number // size] = block
        return block[number % size]

    @cached_property
    def _blocks(self) -> dict[int, list[Line]]:
        return {}

    @cached_property
    def columns(self) -> Columns:
        """Every value by its number, for hot paths: no Arrow object is made for a value."""
        return table_columns(self.table)

    @cached_property
    def quarantined(self) -> np.ndarray:
        """Bool [lines], True where a line is never used."""
        return pc.not_equal(self.table["quarantine"], "").to_numpy()

    def media_table(self) -> dict[str, Any]:
        """Return, per line, what the planner asks of media.

        Returns:
            int64 `num_media`, `width`, `height`, `frames`, float64 `fps` (of the first image or
            video, 0 where there is none) and bool `quarantined`, each [lines]; and `more`, the
            media after the first: int64 `line`, `width`, `height`, `frames`, float64 `fps`, each
            [media], in the order of the lines and of the media in them.
        """
        parts = one_array(self.table["parts"])
        flat = parts.flatten()
        is_media = pc.is_in(flat.field("kind"), value_set=pa.array(MEDIA_KINDS)).to_numpy(zero_copy_only=False)
        line = np.repeat(np.arange(len(parts), dtype=np.int64), np.diff(parts.offsets.to_numpy()))[is_media]
        lines, first = np.unique(line, return_index=True)
        later = np.ones(len(line), bool)
        later[first] = False
        table: dict[str, Any] = {"num_media": np.bincount(line, minlength=self.num_lines).astype(np.int64)}
        more: dict[str, np.ndarray] = {"line": line[later]}
        for name in ("width", "height", "frames", "fps"):
            values = flat.field(name).to_numpy()[is_media]
            table[name] = np.zeros(self.num_lines, values.dtype)
            table[name][lines] = values[first]
            more[name] = values[later]
        return {**table, "quarantined": self.quarantined, "more": more}


def part_columns(manifest: Manifest) -> dict[str, np.ndarray]:
    """Return every field of every part, in order, as arrays [parts], and `line`, the number of the part's line."""
    parts = one_array(manifest.table["parts"])
    flat = parts.flatten()
    columns = {field.name: flat.field(field.name).to_numpy(zero_copy_only=False) for field in PART_TYPE}
    counts = np.diff(parts.offsets.to_numpy())
    return {**columns, "line": np.repeat(np.arange(len(parts), dtype=np.int64), counts)}


def chunk_lines(table: pa.Table) -> int:
    """Return how many lines make a chunk: about 8 MiB, fewer where 256 chunks need it, at least 1."""
    if not table.num_rows:
        return 1
    parts = one_array(table["parts"]).flatten()
    shard, offset, size = (parts.field(name) for name in ("shard", "offset", "num_bytes"))
    extents = pa.table({"shard": shard, "offset": offset, "num_bytes": size}).group_by(["shard", "offset"])
    total = pc.sum(extents.aggregate([("num_bytes", "max")])["num_bytes_max"]).as_py() or 0
    lines_of_chunk_bytes = CHUNK_BYTES * table.num_rows // max(total, 1)
    return max(1, min(lines_of_chunk_bytes, table.num_rows // MIN_CHUNKS))


def manifest_digest(lines: pa.Table | Iterable[Line], *, kind: str = "", chunk_lines: int = 1) -> str:
    """Return the name of a version: a digest of the content of its lines, not of the file that holds them.

    Args:
        lines: a table of `SCHEMA`, or lines.
        kind: dataset kind, which decides how the parts are read.
        chunk_lines: lines of a chunk, which decide the order in which they are visited.
    """
    table: pa.Table = lines if isinstance(lines, pa.Table) else lines_table(lines)
    hashed = hashlib.sha256()
    for name, array in _flat_arrays(table):
        hashed.update(name.encode() + b"\0" + str(len(array)).encode() + b"\0")
        for buffer in _content(array):
            hashed.update(buffer)
    return digest("manifest", kind, chunk_lines, table.num_rows, hashed.digest())


def make_manifest(dataset: str, table: pa.Table, *, uri: str, kind: str, chunk_lines: int) -> Manifest:
    """Return a manifest of `table`, with its digest."""
    name = manifest_digest(table, kind=kind, chunk_lines=chunk_lines)
    return Manifest(dataset=dataset, digest=name, uri=uri, kind=kind, chunk_lines=chunk_lines, table=table)


def manifest_key(dataset: str, name: str) -> str:
    """Return the key of a manifest in the lake."""
    return f"k25/datasets/{dataset}/manifests/{name}.parquet"


def write_manifest(lake: Store, manifest: Manifest) -> None:
    """Write a manifest once; the same lines that already stand there are left as they are."""
    key = manifest_key(manifest.dataset, manifest.digest)
    try:
        lake.head(key)
    except ObjectNotFoundError:
        lake.put_new(key, _parquet_bytes(manifest))


def read_manifest(lake: Store, dataset: str, digest: str) -> Manifest:
    """Return a manifest whose lines have been compared with its name.

    Raises:
        ManifestError: there is no such version, or its object holds other lines.
    """
    key = manifest_key(dataset, digest)
    try:
        table = pq.read_table(io.BytesIO(lake.get(key)), use_threads=False)
    except ObjectNotFoundError as error:
        raise ManifestError(f"{dataset}@{digest}: no such version in {lake.url}; index the dataset") from error
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{lake.url}/{key} is not a manifest ({error}); restore the object") from error
    named: Mapping[bytes, bytes] = table.schema.metadata or {}
    fields = {name: named.get(name.encode(), b"").decode() for name in ("uri", "kind", "chunk_lines")}
    manifest = make_manifest(
        dataset,
        table.replace_schema_metadata(None),
        uri=fields["uri"],
        kind=fields["kind"],
        chunk_lines=int(fields["chunk_lines"] or 0),
    )
    if manifest.digest != digest:
        raise ManifestError(f"{lake.url}/{key} holds lines of digest {manifest.digest}, not its name's; restore it")
    return manifest


def _parquet_bytes(manifest: Manifest) -> bytes:
    metadata = {"uri": manifest.uri, "kind": manifest.kind, "chunk_lines": str(manifest.chunk_lines)}
    sink = io.BytesIO()
    pq.write_table(manifest.table.replace_schema_metadata(metadata), sink, compression="zstd", row_group_size=2**17)
    return sink.getvalue()


def _flat_arrays(table: pa.Table) -> Sequence[tuple[str, pa.Array]]:
    plain = [(name, one_array(table[name])) for name in PLAIN_COLUMNS]
    parts = one_array(table["parts"])
    counts = pc.list_value_length(parts).cast(pa.int64())
    flat = parts.flatten()
    return [*plain, ("parts", counts), *((f"parts.{f.name}", flat.field(f.name)) for f in PART_TYPE)]


def _content(array: pa.Array) -> Iterable[bytes | memoryview]:
    """Yield the values of an array as bytes that no encoding, slicing or chunking of it changes."""
    if not len(array):
        return
    if not pa.types.is_string(array.type):
        values = array.to_numpy(zero_copy_only=False)
        yield np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data.cast("B")
        return
    _, offset_buffer, characters = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    yield np.diff(offsets).astype("<i8").data.cast("B")
    yield memoryview(characters or b"")[offsets[0] : offsets[-1]]
