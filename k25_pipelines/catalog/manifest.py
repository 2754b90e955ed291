"""The table of a dataset version: lines in, one Parquet object out, named by the digest of the lines; and back."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

CHUNK_BYTES = 8 * 2**20
MIN_CHUNKS = 256
MEDIA_KINDS = ("image", "video")

PART_TYPE = pa.struct(
    [
        ("kind", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("etag", pa.string()),
        ("shard_bytes", pa.int64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("orientation", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("parts", pa.list_(PART_TYPE)),
        ("text_length", pa.int64()),
        ("licence", pa.string()),
        ("source", pa.string()),
        ("inline", pa.string()),
        ("quarantine", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Where some bytes of a sample stand, and what their header says."""

    kind: str
    """`text`, `image`, `video`, or `json` (an object; `column` names the field that is the text, "" if none)."""
    shard: str
    """Key of the object, below the dataset's URI."""
    offset: int = 0
    """First byte in the object; of Parquet, of the row group."""
    num_bytes: int = 0
    """Length [bytes]; of Parquet, of the row group."""
    row: int = -1
    """Parquet: the row inside its row group; elsewhere -1."""
    column: str = ""
    """Parquet: the column's name. JSON: the field that holds the text."""
    etag: str = ""
    """Of the object when it was indexed; empty where there was none."""
    shard_bytes: int = 0
    """Size of the whole object [bytes]; the footer of a Parquet file ends there."""
    width: int = 0
    """Pixels across as displayed, after the orientation; 0 for text."""
    height: int = 0
    """Pixels down as displayed, after the orientation; 0 for text."""
    frames: int = 0
    """Frames; an image has 1, text 0."""
    fps: float = 0.0
    """Frames a second; an image has 0."""
    orientation: int = 1
    """EXIF orientation of the stored pixels, 1 to 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One sample, as the manifest knows it."""

    key: str
    """What the dataset itself calls the sample."""
    parts: tuple[Part, ...]
    """In the order in which they are learnt from."""
    text_length: int = 0
    """Text, captions and labels together [characters]."""
    licence: str
    """SPDX name or what the dataset says."""
    source: str
    """Where the sample came from."""
    inline: str = ""
    """JSON text that lies in no part of its own: caption, or COCO annotations; "" if none."""
    quarantine: str = ""
    """Why the sample is never used; "" if it is fine."""


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
        columns = self._line_columns
        start, end = columns["first_part"][number], columns["first_part"][number + 1]
        parts = tuple(Part(**part) for part in columns["parts"].slice(start, end - start).to_pylist())
        return Line(parts=parts, **{name: columns[name][number].as_py() for name in _PLAIN_COLUMNS})

    @cached_property
    def quarantined(self) -> np.ndarray:
        """Bool [lines], True where a line is never used."""
        return pc.not_equal(self.table["quarantine"], "").to_numpy()

    def media_table(self) -> dict[str, np.ndarray]:
        """Return, per line, what the planner asks of media.

        Returns:
            int64 `num_media`, `width`, `height`, `frames`, float64 `fps` (of the first image or
            video, 0 where there is none) and bool `quarantined`, each [lines].
        """
        parts = part_columns(self)
        is_media = np.isin(parts["kind"], MEDIA_KINDS)
        lines, first = np.unique(parts["line"][is_media], return_index=True)
        columns = {"num_media": np.bincount(parts["line"][is_media], minlength=self.num_lines).astype(np.int64)}
        for name in ("width", "height", "frames", "fps"):
            values = parts[name][is_media]
            columns[name] = np.zeros(self.num_lines, values.dtype)
            columns[name][lines] = values[first]
        return {**columns, "quarantined": self.quarantined}

    @cached_property
    def _line_columns(self) -> dict:
        table = self.table.combine_chunks()
        arrays = {name: _one_array(table[name]) for name in table.column_names}
        return {**arrays, "parts": arrays["parts"].values, "first_part": arrays["parts"].offsets.to_numpy().tolist()}


_PLAIN_COLUMNS = tuple(name for name in SCHEMA.names if name != "parts")


def part_columns(manifest: Manifest) -> dict[str, np.ndarray]:
    """Return every field of every part, in order, as arrays [parts], and `line`, the number of the part's line."""
    parts = _one_array(manifest.table["parts"])
    flat = parts.flatten()
    columns = {field.name: flat.field(field.name).to_numpy(zero_copy_only=False) for field in PART_TYPE}
    counts = np.diff(parts.offsets.to_numpy())
    return {**columns, "line": np.repeat(np.arange(len(parts), dtype=np.int64), counts)}


def lines_table(lines: Iterable[Line]) -> pa.Table:
    """Return lines as a table of `SCHEMA`."""
    rows = list(lines)
    columns = [pa.array([getattr(row, name) for row in rows], SCHEMA.field(name).type) for name in _PLAIN_COLUMNS]
    flat = [part for row in rows for part in row.parts]
    fields = [pa.array([getattr(part, field.name) for part in flat], field.type) for field in PART_TYPE]
    offsets = pa.array(np.cumsum([0, *(len(row.parts) for row in rows)]), pa.int32())
    parts = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(fields, fields=list(PART_TYPE)))
    columns.insert(SCHEMA.get_field_index("parts"), parts)
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def chunk_lines(table: pa.Table) -> int:
    """Return how many lines make a chunk: about 8 MiB, fewer where 256 chunks need it, at least 1."""
    if not table.num_rows:
        return 1
    parts = _one_array(table["parts"]).flatten()
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


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)


def _flat_arrays(table: pa.Table) -> Sequence[tuple[str, pa.Array]]:
    plain = [(name, _one_array(table[name])) for name in _PLAIN_COLUMNS]
    parts = _one_array(table["parts"])
    counts = pc.list_value_length(parts).cast(pa.int64())
    flat = parts.flatten()
    return [*plain, ("parts", counts), *((f"parts.{f.name}", flat.field(f.name)) for f in PART_TYPE)]


def _content(array: pa.Array) -> Iterable[bytes | memoryview]:
    """Yield the values of an array as bytes that no encoding, slicing or chunking of it changes."""
    if not len(array):
        return
    if not pa.types.is_string(array.type):
        values = array.to_numpy(zero_copy_only=False)
        yield values.astype(values.dtype.newbyteorder("<")).tobytes()
        return
    _, offset_buffer, characters = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    yield np.diff(offsets).astype("<i8").tobytes()
    yield memoryview(characters or b"")[offsets[0] : offsets[-1]]
