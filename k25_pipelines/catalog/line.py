"""One line of a manifest: a sample and where its bytes stand; lines in, an Arrow table out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

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
BESIDE = pa.schema([("contents", pa.list_(pa.string())), ("annotations", pa.string())])
"""What is found out while indexing and stands beside the manifest: each part's content id, each line's annotations."""


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
    """Parquet: the column's name, `images[2]` for an item of a list. JSON: the field that holds the text."""
    etag: str = ""
    """Of the object when it was indexed; empty where there was none."""
    shard_bytes: int = 0
    """Size of the whole object [bytes]; the footer of a Parquet file ends there."""
    width: int = 0
    """Pixels across as displayed, after the orientation; 0 for text."""
    height: int = 0
    """Pixels down as displayed, after the orientation; 0 for text."""
    frames: int = 0
    """Frames, of a captioned window those inside it; an image has 1, text 0."""
    fps: float = 0.0
    """Frames a second; an image has 0."""
    orientation: int = 1
    """EXIF orientation of the stored pixels, 1 to 8."""
    content: str = field(default="", compare=False)
    """SHA-256 of a medium's bytes where the indexer read them all, else ""; stands beside the manifest, not in it."""


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
    annotations: str = field(default="", compare=False)
    """Counts of annotations by kind as JSON text, "" if there are none; stands beside the manifest, not in it."""


PLAIN_COLUMNS = tuple(name for name in SCHEMA.names if name != "parts")


def lines_table(lines: Iterable[Line]) -> pa.Table:
    """Return lines as a table of `SCHEMA`."""
    rows = list(lines)
    columns = [pa.array([getattr(row, name) for row in rows], SCHEMA.field(name).type) for name in PLAIN_COLUMNS]
    flat = [part for row in rows for part in row.parts]
    fields = [pa.array([getattr(part, field.name) for part in flat], field.type) for field in PART_TYPE]
    parts = pa.ListArray.from_arrays(_offsets(rows), pa.StructArray.from_arrays(fields, fields=list(PART_TYPE)))
    columns.insert(SCHEMA.get_field_index("parts"), parts)
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def beside_table(lines: Iterable[Line]) -> pa.Table:
    """Return what stands beside lines in the manifest as a table of `BESIDE`: null where nothing is known."""
    rows = list(lines)
    flat = pa.array([part.content or None for row in rows for part in row.parts], pa.string())
    counts = pa.array([row.annotations or None for row in rows], pa.string())
    return pa.Table.from_arrays([pa.ListArray.from_arrays(_offsets(rows), flat), counts], schema=BESIDE)


def _offsets(rows: list[Line]) -> pa.Array:
    return pa.array(np.cumsum([0, *(len(row.parts) for row in rows)]), pa.int32())
