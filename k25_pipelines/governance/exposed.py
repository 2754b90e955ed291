"""Which steps of which runs saw some samples, and which checkpoints hold them: samples in, a table and rows out."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k25_pipelines.governance.filters import Lines, places
from k25_pipelines.lineage_tables import Known
from k25_pipelines.planning import Plan, SegmentInfo
from k25_pipelines.planning.exclusions import Tombstones
from k25_pipelines.run_log import WITHHELD, consumed
from k25_pipelines.storage.store import Store

Progress = Callable[[int, int, str], None]
STEPS = pa.schema(
    [
        *((name, pa.string()) for name in ("run", "stage", "plan")),
        *((name, pa.int64()) for name in ("step", "pack", "slot")),
        ("dataset", pa.string()),
        ("line", pa.int64()),
        ("masked", pa.string()),
    ]
)
"""A row is a place that a sample had in a run; `masked` says why the model did not see it there, else null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """Where some samples were trained on."""

    steps: pa.Table
    """Of STEPS, sorted by run, step, pack and slot."""
    checkpoints: Sequence[Mapping[str, Any]]
    """checkpoint, run, stage, through (itself, or those that it descends from), samples and steps (counts of its own
    and theirs)."""


def exposure(
    lake: Store, lines: Lines, *, withheld: Tombstones | None = None, progress: Progress | None = None
) -> Exposure:
    """Return which steps really saw some samples, by what runs logged, and which checkpoints were trained on them.

    Args:
        lake: where plans, runs and checkpoints are.
        lines: the samples.
        withheld: samples that were forgotten before: their runs' logs are asked whether they were given out.
        progress: told segments done, segments in all, and what.
    """
    known = Known.of(lake, bad=".json")
    found = _planned(lake, known, lines, progress)
    steps = _steps(known, found, known.tables["consumed"].to_pylist())
    steps = _masked(steps, known.tables["bad_samples"])
    if withheld is not None and len(withheld):
        steps = _withheld(lake, steps, withheld)
    return Exposure(steps=steps, checkpoints=_checkpoints(known, found, steps))


def _planned(lake: Store, known: Known, lines: Lines, progress: Progress | None) -> dict[str, pa.Table]:
    """Return the places that plans give the samples, by plan, ascending steps; of plans that were trained on alone."""
    wanted = dict[SegmentInfo, list[str]]()
    for plan, spans in known.spans(lake):
        for info in _segments(plan, spans):
            wanted.setdefault(info, []).append(plan.id)
    found: dict[str, list[pa.Table]] = {}
    for done, (info, table) in enumerate(places(lake, wanted, lines), start=1):
        if table.num_rows:
            for plan in wanted[info]:
                found.setdefault(plan, []).append(table)
        if progress:
            progress(done, len(wanted), f"segments; {sum(map(len, found.values())):,} of them hold some")
    return {plan: pa.concat_tables(tables).sort_by("step").combine_chunks() for plan, tables in found.items()}


def _segments(plan: Plan, spans: Iterable[tuple[int, int]]) -> Iterable[SegmentInfo]:
    for first, end in spans:
        step = first
        while step < end:
            info = plan.segment_of(step)
            yield info
            step = info.end_step


def _between(table: pa.Table, first: int, end: int) -> pa.Table:
    begin, stop = np.searchsorted(table["step"].to_numpy(), [first, end]).tolist()
    return table.slice(begin, stop - begin)


def _steps(known: Known, found: Mapping[str, pa.Table], ranges: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the places that runs consumed, as STEPS, nothing masked yet."""
    stages = {row["run"]: row["stage"] for row in known.tables["runs"].to_pylist()}
    parts = [STEPS.empty_table()]
    for row in ranges:
        if row["plan"] in found:
            held = _between(found[row["plan"]], row["first_step"], row["end_step"])
            told = {"run": row["run"], "stage": stages.get(row["run"]), "plan": row["plan"], "masked": None}
            columns = {name: pa.array([value] * len(held), pa.string()) for name, value in told.items()}
            columns |= {name: held[name] for name in held.column_names}
            parts.append(pa.table({name: columns[name] for name in STEPS.names}).cast(STEPS))
    order = [(name, "ascending") for name in ("run", "step", "pack", "slot")]
    return pa.concat_tables(parts).sort_by(order).combine_chunks()


def _masked(steps: pa.Table, bad: pa.Table) -> pa.Table:
    """Say why places were masked: from the step on at which the run found the sample unreadable."""
    since = {(row["run"], row["dataset"], row["line"]): (row["step"], row["reason"]) for row in bad.to_pylist()}
    if not since:
        return steps
    names = zip(*(steps[name].to_pylist() for name in ("run", "dataset", "line", "step")), strict=True)
    reasons = [
        since[name][1] if (name := (r, d, n)) in since and since[name][0] <= step else None for r, d, n, step in names
    ]
    return _with_reasons(steps, reasons)


def _withheld(lake: Store, steps: pa.Table, gone: Tombstones) -> pa.Table:
    """Say which places were withheld because the sample was forgotten before the run came there, by the runs' logs."""
    rows, reasons = steps.to_pylist(), steps["masked"].to_pylist()
    asked: dict[str, dict[int, list[int]]] = {}
    for place, row in enumerate(rows):
        if (row["dataset"], row["line"]) in gone:
            asked.setdefault(row["run"], {}).setdefault(row["step"], []).append(place)
    for run, by_step in asked.items():
        for logged in _logged(lake, run, sorted(by_step)):
            said = {(each["pack"], each["slot"]) for each in logged["masked"] if each["reason"] == WITHHELD}
            for place in by_step[logged["step"]]:
                if (rows[place]["pack"], rows[place]["slot"]) in said:
                    reasons[place] = WITHHELD
    return _with_reasons(steps, reasons)


def _logged(lake: Store, run: str, steps: Sequence[int]) -> Iterable[Mapping[str, Any]]:
    """Yield what the log says of some steps, ascending; its objects are read once each where steps are near."""
    at = 0
    while at < len(steps):
        end = at + 1
        while end < len(steps) and steps[end] - steps[at] < 200 and steps[end] - steps[end - 1] < 32:
            end += 1
        wanted = set(steps[at:end])
        table = consumed(lake, run, steps=range(steps[at], steps[end - 1] + 1)).select(["step", "masked"])
        yield from (row for row in table.to_pylist() if row["step"] in wanted)
        at = end


def _with_reasons(steps: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    return steps.set_column(STEPS.get_field_index("masked"), "masked", pa.array(reasons, pa.string()))


def _checkpoints(known: Known, found: Mapping[str, pa.Table], steps: pa.Table) -> list[dict[str, Any]]:
    """Return the checkpoints that were trained on the samples, by themselves or through what they descend from."""
    masked = steps.filter(pc.is_valid(steps["masked"])).to_pylist()
    hidden = {(row["run"], row["plan"], row["step"], row["pack"], row["slot"]) for row in masked}
    own: dict[str, set[tuple]] = {}
    rows = known.tables["checkpoints"].to_pylist()
    for row in rows:
        if row["plan"] in found:
            for place in _between(found[row["plan"]], row["first_step"], row["end_step"]).to_pylist():
                name = row["run"], row["plan"], place["step"], place["pack"], place["slot"]
                if name not in hidden:
                    own.setdefault(row["checkpoint"], set()).add((*name[:3], place["dataset"], place["line"]))
    through: dict[str, list[str]] = {}
    for row in known.tables["descent"].to_pylist():
        if row["ancestor"] in own:
            through.setdefault(row["checkpoint"], []).append(row["ancestor"])
    told = {row["checkpoint"]: {name: row[name] for name in ("checkpoint", "run", "stage")} for row in rows}
    return [{**told[name], **_counted(ancestors, own)} for name, ancestors in sorted(through.items())]


def _counted(ancestors: Sequence[str], own: Mapping[str, set[tuple]]) -> dict[str, Any]:
    held = set().union(*(own[name] for name in ancestors))
    return {
        "through": sorted(ancestors),
        "samples": len({place[3:] for place in held}),
        "steps": len({place[:3] for place in held}),
    }
