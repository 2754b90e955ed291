"""A segment of a plan: its rows as an Arrow table, its header as plain data, and the digests that name them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.keys import DIGEST_BYTES, canonical_bytes, digest
from k25_pipelines.plan.draws import DRAW_DTYPES

PLAN_VERSION = "plan-2"
"""Changes whenever the same inputs would give another plan."""

NO_TOMBSTONES = digest("tombstones")

GROUP_ROWS = 8192
"""Rows after which a group of whole steps ends: what is read at once to look at one step; part of PLAN_VERSION."""

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("pack", pa.int32()),
        ("slot", pa.int32()),
        ("dataset", pa.dictionary(pa.int32(), pa.string())),
        ("line", pa.int64()),
        ("epoch", pa.int32()),
        ("token_start", pa.int64()),
        ("num_tokens", pa.int64()),
        ("vision_tokens", pa.int64()),
        ("patches", pa.int64()),
        ("media", pa.int32()),
        *((name, pa.from_numpy_dtype(dtype)) for name, dtype in DRAW_DTYPES.items()),
    ]
)
"""A row is one sample, or one piece of a long text, of one pack; sorted by step, pack, slot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Some consecutive steps of a plan."""

    header: Mapping[str, Any]
    """Plain data: what the plan is made from, digests of the lanes' state before the first step and of the rows."""
    state: bytes
    """The lanes' state before the first step, compact."""
    table: pa.Table
    """The rows."""
    digest: str
    """Name of the header, and through it of state and rows."""

    @property
    def first_step(self) -> int:
        """The first step it holds."""
        return self.header["first_step"]

    @property
    def num_steps(self) -> int:
        """How many steps it holds."""
        return self.header["num_steps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows of a segment that are read and compared with their digest together: some whole steps."""

    first_step: int
    num_steps: int
    first_row: int
    num_rows: int
    digest: str = ""


def segment_table(columns: Mapping[str, np.ndarray], names: tuple[str, ...]) -> pa.Table:
    """Return the rows as an Arrow table; the column `dataset` holds numbers of `names`."""
    arrays = []
    for entry in SCHEMA:
        if entry.name == "dataset":
            codes = pa.array(columns["dataset"].astype(np.int32))
            arrays.append(pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())))
        else:
            arrays.append(pa.array(columns[entry.name], type=entry.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def row_groups(table: pa.Table) -> list[RowGroup]:
    """Return the groups that a segment's rows are stored in: whole steps, GROUP_ROWS rows or more, but the last."""
    steps = table["step"].to_numpy()
    starts = np.flatnonzero(np.diff(steps, prepend=-1)).tolist()
    groups: list[RowGroup] = []
    first = 0
    for place, start in enumerate([*starts[1:], len(steps)], start=1):
        if start - starts[first] >= GROUP_ROWS or place == len(starts):
            rows = table.slice(starts[first], start - starts[first])
            groups.append(
                RowGroup(
                    first_step=int(steps[starts[first]]),
                    num_steps=place - first,
                    first_row=starts[first],
                    num_rows=rows.num_rows,
                    digest=table_digest(rows),
                )
            )
            first = place
    return groups


def header_groups(header: Mapping[str, Any]) -> list[RowGroup]:
    """Return the row groups that a header tells of."""
    groups, row = [], 0
    for first_step, num_steps, num_rows, name in header["body"]:
        group = RowGroup(first_step=first_step, num_steps=num_steps, first_row=row, num_rows=num_rows, digest=name)
        groups.append(group)
        row += num_rows
    return groups


def table_digest(table: pa.Table) -> str:
    """Return the name of some rows: of their values, not of how a file stores them. A constant column is told once."""
    hashed = hashlib.sha256(b"segment rows")
    for name in SCHEMA.names:
        column = _codes(table.column(name)) if name == "dataset" else ([], _values(table.column(name)))
        for words in _column_bytes(name, *column):
            hashed.update(words)
    return hashed.hexdigest()[: 2 * DIGEST_BYTES]


def make_segment(
    start: Mapping[str, Any], state: bytes, table: pa.Table, *, num_steps: int, report: Mapping[str, Any]
) -> Segment:
    """Return a segment of a start (what stands before its first step), its rows and what is to be reported."""
    body = [[group.first_step, group.num_steps, group.num_rows, group.digest] for group in row_groups(table)]
    header = {**start, "state": state_name(state), "num_steps": num_steps, "body": body, "report": dict(report)}
    return Segment(header=header, state=state, table=table, digest=segment_digest(header))


def state_name(state: bytes) -> dict[str, Any]:
    """Return what a header says of the state beside it."""
    return {"digest": digest("state", state), "num_bytes": len(state)}


def segment_digest(header: Mapping[str, Any]) -> str:
    """Return the name of a segment, which covers its state and its rows."""
    return digest("segment", header)


def plan_id(start: Mapping[str, Any]) -> str:
    """Return the name of a plan: of the planner's version and the first header without the step count."""
    fixed = {name: value for name, value in start.items() if name not in ("num_steps", "body", "report")}
    return digest(PLAN_VERSION, fixed)


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Return the names that a column of words uses, in order, and the number of each row's."""
    encoded = column.combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    used = sorted({names[code] for code in np.flatnonzero(np.bincount(codes, minlength=len(names))).tolist()})
    place = np.array([used.index(other) if other in used else -1 for other in names], dtype=np.int32)
    return used, place[codes]


def _values(column: pa.ChunkedArray) -> np.ndarray:
    return column.chunk(0).to_numpy(zero_copy_only=False) if column.num_chunks == 1 else column.to_numpy()


def _column_bytes(name: str, names: list[str], values: np.ndarray) -> Iterable[bytes | memoryview]:
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    words = little.view(f"u{little.dtype.itemsize}")  # bits: what is constant is so to the sign of a zero
    is_constant = bool(words.size) and bool((words == words[0]).all())
    yield canonical_bytes([name, names, little.dtype.str[1:], len(little), is_constant])
    yield (little[:1] if is_constant else little).data.cast("B")
