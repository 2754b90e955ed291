"""Lines found in some objects, kept in the lake, so that an indexer that was killed goes on where it was.

A partial is named by what its lines depend on: the objects with their etags, the registration and
SCAN_VERSION. The same name always stands for the same lines, so it is written without a look.
"""

import io
from collections.abc import Iterable

import pyarrow as pa

from k25_pipelines.catalog.line import BESIDE, SCHEMA, Line, beside_table, lines_table
from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

SCAN_VERSION = "scan-2"
"""Another version finds other lines in the same objects."""
PARTIAL_SCHEMA = pa.schema([*SCHEMA, *BESIDE])


def partials_prefix(dataset: str) -> str:
    """Return where the partials of a dataset stand in the lake."""
    return f"k25/datasets/{dataset}/scans/"


def partial_key(dataset: str, *depends: object) -> str:
    """Return the key of the lines that depend on `depends`, which is plain data."""
    return f"{partials_prefix(dataset)}{digest(SCAN_VERSION, *depends)}.arrow"


def partial_table(lines: Iterable[Line]) -> pa.Table:
    """Return lines and what stands beside them as a table of `PARTIAL_SCHEMA`."""
    rows = list(lines)
    return pa.Table.from_arrays([*lines_table(rows).columns, *beside_table(rows).columns], schema=PARTIAL_SCHEMA)


def write_partial(lake: Store, key: str, table: pa.Table) -> None:
    """Write a partial, whole or not at all."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    lake.put(key, sink.getvalue())


def read_partial(lake: Store, key: str) -> pa.Table | None:
    """Return a partial; None if it is gone or unreadable, and its objects are to be scanned."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(lake.get(key))).read_all()
    except (ObjectNotFoundError, pa.ArrowInvalid, OSError):
        return None
    return table if table.schema.equals(PARTIAL_SCHEMA) else None
