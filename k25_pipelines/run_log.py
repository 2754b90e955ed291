"""The log of a run: the steps it was really trained on, by the digests of what it was fed.

k25/runs/<run>/steps/<first>-<end>-<plan>.parquet   a row a step: digests of it, its packs and samples; what was masked

A step counts as consumed when it stands here. A run that was killed does its last steps again, and they must then be
what the log says.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.errors import RunError
from k25_pipelines.keys import canonical_bytes
from k25_pipelines.sample.batch import Batch
from k25_pipelines.storage.store import Store

RUNS = "k25/runs/"
WITHHELD = "withheld"
"""In place of the digest of a sample that may not be read any more."""
LOG_STEPS = 200
"""Steps logged in one object, at most."""

LOG_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("plan", pa.string()),
        ("segment", pa.string()),
        ("digest", pa.string()),
        ("packs", pa.list_(pa.string())),
        ("samples", pa.list_(pa.string())),
        ("masked", pa.list_(pa.struct([("pack", pa.int32()), ("slot", pa.int32()), ("reason", pa.string())]))),
    ]
)
"""A row is a step; `packs` holds the digests of its packs in order, `samples` those of its samples by pack and slot."""


def log_steps(lake: Store, run: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write steps that were trained on to the run's log; those that stand there already must agree with it.

    Args:
        lake: where runs are.
        run: its name.
        rows: a mapping of LOG_SCHEMA's names for each step, steps ascending.

    Raises:
        RunError: a step that was done again is not what it was; it names step and pack.
    """
    known = [range(first, end) for first, end, _ in logged(lake, run)]
    done = [row for row in rows if any(row["step"] in steps for steps in known)]
    if done:
        before = _read(lake, run, steps=range(done[0]["step"], done[-1]["step"] + 1)).to_pylist()
        _check_agreement(run, {row["step"]: row for row in before}, done)
    fresh = [(place, row) for place, row in enumerate(rows) if not any(row["step"] in steps for steps in known)]
    for (plan, _), group in groupby(fresh, key=lambda entry: (entry[1]["plan"], entry[1]["step"] - entry[0])):
        chunk = [row for _, row in group]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(chunk, schema=LOG_SCHEMA), sink, compression="zstd")
        name = f"{chunk[0]['step']:012}-{chunk[-1]['step'] + 1:012}-{plan}"
        lake.put_new(f"{RUNS}{run}/steps/{name}.parquet", sink.getvalue())


def consumed(lake: Store, run: str, *, steps: range | None = None) -> pa.Table:
    """Return the log of a run (LOG_SCHEMA), or of some of its steps, in the order of the steps.

    Raises:
        RunError: a step that is asked for was never trained on.
    """
    table = _read(lake, run, steps=steps)
    if steps is not None and len(table) < len(steps):
        missing = min(set(steps) - set(table["step"].to_pylist()))
        raise RunError(f"run {run} has no step {missing} in its log; {_extent(lake, run)}")
    return table


def consumed_ranges(lake: Store) -> list[dict[str, Any]]:
    """Return what all runs consumed: run, plan, first_step, end_step; by the names of the log's objects alone."""
    found = []
    for info in lake.list(RUNS):
        parts = info.key.split("/")
        if len(parts) == 5 and parts[3] == "steps":
            first, end, plan = parts[4].removesuffix(".parquet").split("-", 2)
            found.append({"run": parts[2], "plan": plan, "first_step": int(first), "end_step": int(end)})
    return found


def sample_digests(batch: Batch) -> list[str]:
    """Return 16 hexadecimal characters for each sample of a batch, in the order of its provenance.

    Hashed are ids, labels, patches, grids and media places counted from the sample's start: what stands in its
    span, wherever the span stands. With them the rest of a pack is verified when one sample is withheld; that one's
    is the word WITHHELD.
    """
    tokens = batch.input_ids.shape[1]
    row_of = {pack: row for row, pack in enumerate(sorted({place.pack for place in batch.provenance}))}
    patches = np.concatenate([[0], np.cumsum(batch.grid_thw.prod(axis=1))])
    levels = batch.normalised_patches
    media = batch.media_slots[:, 0] * tokens + batch.media_slots[:, 1]
    digests = []
    for place in batch.provenance:
        if place.masked == WITHHELD:
            digests.append(WITHHELD)
            continue
        row, columns = row_of[place.pack], slice(place.start, place.start + place.num_tokens)
        first, last = np.searchsorted(media, row * tokens + np.array([columns.start, columns.stop])).tolist()
        hashed = hashlib.sha256()
        for array in (
            batch.input_ids[row, columns],
            batch.labels[row, columns],
            levels[patches[first] : patches[last]],
            batch.grid_thw[first:last],
            batch.media_slots[first:last, 1:] - np.array([place.start, 0]),
        ):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            hashed.update(canonical_bytes([little.dtype.str, list(little.shape)]))
            hashed.update(little.data if little.size else b"")
        digests.append(hashed.hexdigest()[:16])
    return digests


def _read(lake: Store, run: str, *, steps: range | None) -> pa.Table:
    """Return what the log holds of some steps, in their order."""
    parts = []
    for first, end, key in logged(lake, run):
        if steps is None or (first < steps.stop and steps.start < end):
            parts.append(pq.read_table(io.BytesIO(lake.get(key)), use_threads=False))
    table = pa.concat_tables([LOG_SCHEMA.empty_table(), *parts])
    if steps is None:
        return table
    found = table["step"].to_numpy()
    return table.filter(pa.array((found >= steps.start) & (found < steps.stop)))


def logged(lake: Store, run: str) -> list[tuple[int, int, str]]:
    """Return (first step, end, key) of each object of the log, in the order of the steps."""
    keys = [info.key for info in lake.list(f"{RUNS}{run}/steps/")]
    spans = [key.rpartition("/")[2].split("-", 2)[:2] for key in keys]
    return [(int(first), int(end), key) for (first, end), key in zip(spans, keys, strict=True)]


def _extent(lake: Store, run: str) -> str:
    spans = logged(lake, run)
    return f"it holds steps {spans[0][0]} to {spans[-1][1] - 1}" if spans else "it is empty"


def _check_agreement(run: str, before: Mapping[int, Mapping], again: Sequence[Mapping]) -> None:
    for row in again:
        known = before[row["step"]]
        spared = WITHHELD in row["samples"] or WITHHELD in known["samples"]
        if known["digest"] == row["digest"] or (spared and _same_but_withheld(known["samples"], row["samples"])):
            continue
        pairs = list(zip(known["packs"], row["packs"], strict=False))
        pack = next((place for place, (old, new) in enumerate(pairs) if old != new), len(pairs))
        raise RunError(
            f"run {run}: step {row['step']} was done again and pack {pack} is not what the log says: its data or the "
            "packages that decode it have changed; k25 replay names the samples"
        )


def _same_but_withheld(before: Sequence[str], again: Sequence[str]) -> bool:
    pairs = zip(before, again, strict=True)
    return all(old == new or WITHHELD in (old, new) for old, new in pairs)
