"""What the lake holds of plans, runs and checkpoints, as tables for SQL.

`plan_rows`: the rows of segments, a sample of a pack each. `consumed`: what runs logged as trained on, by plan.
`bad_samples`: what they masked. `runs`. `checkpoints`: what each was trained on, by plan. `descent`: each with itself
and all it descends from.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.errors import LineageError
from k25_pipelines.planning import Plan, SegmentInfo, open_plan, segment_key
from k25_pipelines.runs import RUNS, consumed_ranges, nearest, read_pointer, run_names
from k25_pipelines.storage.arrow import parquet_tables
from k25_pipelines.storage.store import Store

Spans = Sequence[tuple[Plan, Sequence[tuple[int, int]]]]
"""Plans, each with its steps as (first, end), without overlaps."""

COLUMNS = ("step", "pack", "slot", "dataset", "line", "epoch", "token_start", "num_tokens", "vision_tokens")
"""Of the segments' rows, what the tables hold."""

SEGMENTS_AT_ONCE = 8
"""Fetched together and held in memory."""


def checkpoint_records(lake: Store) -> list[dict]:
    """Return the record of every published checkpoint with its `key`, in the order of their keys."""
    keys = [info.key for info in lake.list("k25/checkpoints/") if info.key.endswith("/record.json")]
    return [{"key": key.removesuffix("/record.json"), **json.loads(lake.get(key))} for key in keys]


def checkpoint_key(told: str, keys: Sequence[str]) -> str:
    """Return the key of a checkpoint that may be told in short. Raises LineageError: there is none."""
    name = told.strip("/").removesuffix("/record.json")
    for key in (name, f"k25/checkpoints/{name}"):
        if key in keys:
            return key
    raise LineageError(f"no checkpoint {told!r}{nearest(f'k25/checkpoints/{name}', keys)}")


def plan_rows(spans: Spans, *, dataset: str | None = None, line: int | None = None) -> pa.Table:
    """Return rows of plans with the plan's id, read segment by segment; of one sample, where it is given.

    Args:
        spans: which steps of which plans.
        dataset: only its rows.
        line: only this line's.
    """
    schema = pa.schema([("plan", pa.string()), *((name, _TYPES.get(name, pa.int64())) for name in COLUMNS)])
    parts = [schema.empty_table()]
    for plan, steps in spans:
        for first, end in steps:
            for table in _segments(plan, first, end):
                if line is not None:
                    table = table.filter(pa.array(table["line"].to_numpy() == line))
                    table = table.filter(
                        pa.array([name == dataset for name in table["dataset"].to_pylist()], pa.bool_())
                    )
                names = pa.repeat(plan.id, len(table))
                parts.append(table.add_column(0, "plan", names).cast(schema))
    return pa.concat_tables(parts)


_TYPES = {"dataset": pa.string()}


def _segments(plan: Plan, first: int, end: int) -> Iterator[pa.Table]:
    """Yield the rows of steps, some segments at a time."""
    step = first
    while step < end:
        infos = list[SegmentInfo]()
        while step < end and len(infos) < SEGMENTS_AT_ONCE:
            infos.append(plan.segment_of(step))
            step = infos[-1].end_step
        keys = [segment_key(info, "parquet") for info in infos]
        table = parquet_tables(plan.store, keys, columns=COLUMNS)
        begin, stop = np.searchsorted(table["step"].to_numpy(), [first, end]).tolist()
        yield table.slice(begin, stop - begin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the lake says of runs and checkpoints, as tables."""

    tables: Mapping[str, pa.Table]

    @classmethod
    def of(cls, lake: Store, *, bad: str) -> "Known":
        """Read all of it, and the journal entries whose keys end with `bad`."""
        records = checkpoint_records(lake)
        parents = {record["key"]: _parents(record) for record in records}
        stages = {record["run"]: record["stage"] for record in records if record.get("run")}
        runs = [{"run": name, "stage": read_pointer(lake, name).stage or stages.get(name)} for name in run_names(lake)]
        journaled = [i.key for i in lake.list(RUNS) if i.key.split("/")[3] == "bad_samples" and i.key.endswith(bad)]
        descent = [{"checkpoint": key, "ancestor": other} for key in parents for other in _ancestors(parents, key)]
        bad_samples = [{"run": key.split("/")[2], **json.loads(lake.get(key))} for key in journaled]
        tables = {
            "runs": _table(runs, _RUNS),
            "consumed": _table(consumed_ranges(lake), _CONSUMED),
            "checkpoints": _table([row for record in records for row in _reads(record)], _CHECKPOINTS),
            "descent": _table(descent, _DESCENT),
            "bad_samples": bad_samples_table(bad_samples),
        }
        return cls(tables=tables)

    @property
    def keys(self) -> list[str]:
        """The checkpoints' keys."""
        return sorted(set(self.tables["checkpoints"]["checkpoint"].to_pylist()))

    def spans(self, lake: Store, *, checkpoint: str | None = None, own_only: bool = False) -> Spans:
        """Return the steps that are asked about: all that is known of, or those behind one checkpoint."""
        held = self.tables["checkpoints"].to_pylist()
        if checkpoint is None:
            held += self.tables["consumed"].to_pylist()
        else:
            descent = self.tables["descent"].to_pylist()
            line = {row["ancestor"] for row in descent if row["checkpoint"] == checkpoint and not own_only}
            held = [row for row in held if row["checkpoint"] in {checkpoint, *line}]
        by_plan: dict[str, list[tuple[int, int]]] = {}
        for row in held:
            if row["plan"] is None:  # imported weights were trained on no plan of this lake
                continue
            by_plan.setdefault(row["plan"], []).append((row["first_step"], row["end_step"]))
        return [(open_plan(lake, plan), joined(steps)) for plan, steps in sorted(by_plan.items())]


_RUNS = {"run": pa.string(), "stage": pa.string()}
_CONSUMED = {"run": pa.string(), "plan": pa.string(), "first_step": pa.int64(), "end_step": pa.int64()}
_CHECKPOINTS = {"checkpoint": pa.string(), "stage": pa.string(), **_CONSUMED}
_DESCENT = {"checkpoint": pa.string(), "ancestor": pa.string()}
_BAD_SAMPLES = {
    "run": pa.string(),
    "dataset": pa.string(),
    "line": pa.int64(),
    "step": pa.int64(),
    "reason": pa.string(),
}


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(list(columns.items())))


def _reads(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a checkpoint's own run read before it, a row for each plan."""
    reads = record.get("reads") or [{"plan": record["plan"], "steps": record["step_range"]}]
    told = {"checkpoint": record["key"], "run": record.get("run"), "stage": record.get("stage")}
    return [{**told, "plan": r["plan"], "first_step": r["steps"][0], "end_step": r["steps"][1]} for r in reads]


def _parents(record: Mapping[str, Any]) -> list[str]:
    """Return what a checkpoint started from; the record tells a key, or a list of keys by module."""
    told = record.get("parent") or []
    return [told] if isinstance(told, str) else list(told)


def _ancestors(parents: Mapping[str, Sequence[str]], key: str) -> list[str]:
    """Return the checkpoint and all it descends from, as far as they are there."""
    reached, ahead = dict[str, None](), [key]
    while ahead:
        if (current := ahead.pop()) not in reached and current in parents:
            reached[current] = None
            ahead += parents[current]
    return sorted(reached)


def bad_samples_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return samples that runs masked as the table `bad_samples`; other names of the rows are left out."""
    return _table(rows, _BAD_SAMPLES)


def joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans without overlaps that cover the same steps."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif first < end:
            joined.append((first, end))
    return joined
