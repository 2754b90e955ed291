"""Which steps saw a sample, which samples a step saw, which checkpoints hold it. Plans, runs and records in, rows out.

The questions are SQL over `lineage_tables`; they stand here to be read, and to be asked otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from k25_pipelines import sql
from k25_pipelines.errors import LineageError
from k25_pipelines.lineage_tables import (
    Known,
    Spans,
    bad_samples_table,
    checkpoint_key,
    checkpoint_records,
    joined,
    plan_rows,
)
from k25_pipelines.planning import open_plan, tombstones
from k25_pipelines.run_log import WITHHELD, consumed
from k25_pipelines.storage.store import Store

__all__ = ["ask", "checkpoint_records", "checkpoints_of_sample", "samples_of_step", "steps_of_sample"]

STEPS_OF_SAMPLE = """
SELECT DISTINCT step FROM plan_rows WHERE dataset = $dataset AND line = $line ORDER BY step
"""
RUNS_OF_SAMPLE = """
SELECT c.run, r.stage, p.plan, p.step, p.pack, p.slot, p.epoch, p.token_start, p.num_tokens, b.reason AS masked
FROM plan_rows p
JOIN consumed c ON c.plan = p.plan AND p.step >= c.first_step AND p.step < c.end_step
LEFT JOIN runs r ON r.run = c.run
LEFT JOIN bad_samples b ON b.run = c.run AND b.dataset = p.dataset AND b.line = p.line AND b.step <= p.step
WHERE p.dataset = $dataset AND p.line = $line
ORDER BY c.run, p.step, p.pack, p.slot
"""
CHECKPOINTS_OF_SAMPLE = """
SELECT d.checkpoint, k.checkpoint AS through, k.run, list(DISTINCT p.step ORDER BY p.step) AS steps
FROM plan_rows p
JOIN checkpoints k ON k.plan = p.plan AND p.step >= k.first_step AND p.step < k.end_step
JOIN descent d ON d.ancestor = k.checkpoint
LEFT JOIN bad_samples b ON b.run = k.run AND b.dataset = p.dataset AND b.line = p.line AND b.step <= p.step
WHERE p.dataset = $dataset AND p.line = $line AND b.reason IS NULL
GROUP BY ALL ORDER BY d.checkpoint, k.checkpoint
"""
DATASETS_OF_CHECKPOINT = """
SELECT k.checkpoint, k.run, k.stage, p.dataset,
       count(DISTINCT p.line) AS samples, count(*) FILTER (p.token_start = 0) AS times,
       count(*) FILTER (b.reason IS NOT NULL) AS masked,
       sum(p.num_tokens)::BIGINT AS tokens, min(p.step) AS first_step, max(p.step) + 1 AS end_step
FROM descent d
JOIN checkpoints k ON k.checkpoint = d.ancestor
JOIN plan_rows p ON p.plan = k.plan AND p.step >= k.first_step AND p.step < k.end_step
LEFT JOIN bad_samples b ON b.run = k.run AND b.dataset = p.dataset AND b.line = p.line AND b.step <= p.step
WHERE d.checkpoint = $checkpoint
GROUP BY k.checkpoint, k.run, k.stage, p.dataset
ORDER BY k.checkpoint <> $checkpoint, k.checkpoint, p.dataset
"""
SAMPLES_OF_STEP = """
SELECT p.step, p.pack, p.slot, p.dataset, p.line, p.epoch, p.token_start, p.num_tokens, b.reason AS masked
FROM checkpoints k
JOIN plan_rows p ON p.plan = k.plan AND p.step >= k.first_step AND p.step < k.end_step
LEFT JOIN bad_samples b ON b.run = k.run AND b.dataset = p.dataset AND b.line = p.line AND b.step <= p.step
WHERE k.checkpoint = $checkpoint AND p.step = $step
ORDER BY p.pack, p.slot
"""


def samples_of_step(lake: Store, plan_id: str, step: int) -> list[dict]:
    """Return the samples of one step: dataset, line, epoch, pack, and planned tokens, in the order of the packs."""
    columns = ["pack", "slot", "dataset", "line", "epoch", "token_start", "num_tokens", "vision_tokens"]
    return open_plan(lake, plan_id).rows(step).select(columns).to_pylist()


def steps_of_sample(lake: Store, plan_id: str, *, dataset: str, line: int) -> list[int]:
    """Return the steps of a plan that hold the sample, ascending."""
    plan = open_plan(lake, plan_id)
    wanted = {"dataset": dataset, "line": line}
    rows = plan_rows([(plan, [(0, plan.num_steps)])], **wanted)
    return [row["step"] for row in _asked({"plan_rows": rows}, STEPS_OF_SAMPLE, wanted)]


def checkpoints_of_sample(lake: Store, *, dataset: str, line: int) -> list[str]:
    """Return the keys of the checkpoints that were trained on the sample, by themselves or through a parent."""
    found = trace_sample(lake, dataset=dataset, line=line)["checkpoints"]
    return sorted({row["checkpoint"] for row in found})


def trace_sample(lake: Store, *, dataset: str, line: int) -> dict[str, list[dict[str, Any]]]:
    """Return which runs consumed a sample, and which checkpoints were trained on it.

    Only steps that were really trained on count. A sample that was masked appears with the reason, and no checkpoint
    holds it because of that.

    Returns:
        `runs`: a row for each place the sample had: run, stage, plan, step, pack, slot, epoch, token_start,
            num_tokens, masked (None, or why).
        `checkpoints`: checkpoint, through (itself, or what it descends from), run, steps.
    """
    wanted = {"dataset": dataset, "line": line}
    known = Known.of(lake, bad=f"/{dataset}-{line}.json")
    tables = {**known.tables, "plan_rows": plan_rows(known.spans(lake), **wanted)}
    if (dataset, line) in tombstones(lake):
        withheld = _withheld_since(lake, _asked(tables, RUNS_OF_SAMPLE, wanted), **wanted)
        tables["bad_samples"] = pa.concat_tables([tables["bad_samples"], bad_samples_table(withheld)])
    return {
        "runs": _asked(tables, RUNS_OF_SAMPLE, wanted),
        "checkpoints": _asked(tables, CHECKPOINTS_OF_SAMPLE, wanted),
    }


def trace_checkpoint(lake: Store, checkpoint: str, *, step: int | None = None) -> list[dict[str, Any]]:
    """Return what a checkpoint was trained on: datasets, itself and through its parents, or the samples of one step.

    Args:
        lake: where records, runs and plans are.
        checkpoint: its key, `k25/checkpoints/<run>/<step>`; the prefix may be left out.
        step: one of its run's steps.

    Raises:
        LineageError: there is no such checkpoint, or it was not trained on the step.
    """
    known = Known.of(lake, bad=".json")
    key = checkpoint_key(checkpoint, known.keys)
    spans = known.spans(lake, checkpoint=key, own_only=step is not None)
    if step is None:
        tables = {**known.tables, "plan_rows": plan_rows(spans)}
        return _asked(tables, DATASETS_OF_CHECKPOINT, {"checkpoint": key})
    cut = [(plan, [(step, step + 1)]) for plan, held in spans if any(f <= step < end for f, end in held)]
    if not cut:
        raise LineageError(f"{key} was not trained on step {step}; its steps are {_steps_of(spans)}")
    tables = {**known.tables, "plan_rows": plan_rows(cut)}
    return _asked(tables, SAMPLES_OF_STEP, {"checkpoint": key, "step": step})


def ask(lake: Store, question: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows that a question in SQL has for an answer; it may name every table of `lineage_tables`.

    `plan_rows` holds all that runs consumed and checkpoints were trained on: about 110 bytes a row in memory.

    Raises:
        LineageError: it is no question that DuckDB understands.
    """
    known = Known.of(lake, bad=".json")
    return _asked({**known.tables, "plan_rows": plan_rows(known.spans(lake))}, question, values or {})


def _asked(tables: Mapping[str, pa.Table], question: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the answer of one question over tables that are named as it names them. Raises LineageError."""
    return sql.answer(tables, question, values).to_pylist()


def _withheld_since(
    lake: Store, places: Sequence[Mapping[str, Any]], *, dataset: str, line: int
) -> list[dict[str, Any]]:
    """Return since which step each run was fed no more of a forgotten sample, by its log."""
    since: dict[str, dict[str, Any]] = {}
    for place in places:
        run, step = place["run"], place["step"]
        if run not in since:
            masked = consumed(lake, run, steps=range(step, step + 1)).to_pylist()[0]["masked"]
            if {"pack": place["pack"], "slot": place["slot"], "reason": WITHHELD} in masked:
                since[run] = {"run": run, "dataset": dataset, "line": line, "step": step, "reason": WITHHELD}
    return list(since.values())


def _steps_of(spans: Spans) -> str:
    held = joined([span for _, steps in spans for span in steps])
    return ", ".join(f"{first} to {end - 1}" for first, end in held) or "none"
