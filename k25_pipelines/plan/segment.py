"""A segment of a plan: its rows as an Arrow table, its header as plain data, and the digests that name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.keys import digest
from k25_pipelines.plan.draws import DRAW_DTYPES

PLAN_VERSION = "plan-1"
"""Changes whenever the same inputs would give another plan."""

NO_TOMBSTONES = digest("tombstones")

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
    """Plain data: what the plan is made from, the lanes' state before the first step, the digest of the rows."""
    table: pa.Table
    """The rows."""
    digest: str
    """Name of the header, and through it of the rows."""

    @property
    def first_step(self) -> int:
        """The first step it holds."""
        return self.header["first_step"]

    @property
    def num_steps(self) -> int:
        """How many steps it holds."""
        return self.header["num_steps"]


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


def table_digest(table: pa.Table) -> str:
    """Return the name of a segment's rows: of their values, not of how a file stores them."""
    columns = {}
    for name in SCHEMA.names:
        if name == "dataset":
            encoded = table.column(name).combine_chunks()
            names = encoded.dictionary.to_pylist()
            codes = encoded.indices.to_numpy()
            used = sorted({names[code] for code in np.unique(codes).tolist()})
            place = np.array([used.index(other) if other in used else -1 for other in names], dtype=np.int32)
            columns[name] = {"names": used, "codes": place[codes]}
        else:
            columns[name] = table.column(name).to_numpy()
    return digest("segment rows", columns)


def make_segment(start: Mapping[str, Any], table: pa.Table, *, num_steps: int, report: Mapping[str, Any]) -> Segment:
    """Return a segment of a start (what stands before its first step), its rows and what is to be reported."""
    header = {**start, "num_steps": num_steps, "body": table_digest(table), "report": dict(report)}
    return Segment(header=header, table=table, digest=segment_digest(header))


def segment_digest(header: Mapping[str, Any]) -> str:
    """Return the name of a segment, which covers its rows through `body`."""
    return digest("segment", header)


def plan_id(start: Mapping[str, Any]) -> str:
    """Return the name of a plan: of the planner's version and the first header without the step count."""
    fixed = {name: value for name, value in start.items() if name not in ("num_steps", "body", "report")}
    return digest(PLAN_VERSION, fixed)
