"""What a receipt of a takedown tells: who holds the samples, what was removed, and what stays where it is."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from k25_pipelines.catalog.about import read_about
from k25_pipelines.catalog.registry import dataset_names
from k25_pipelines.governance.exposed import Exposure
from k25_pipelines.governance.finding import Catalogue
from k25_pipelines.governance.takedown import Takedown
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

EFFECT = {
    "loaders": "those opened from now on leave the samples' spans empty, open ones from their next segment on; "
    "trainers when they are started again",
    "plans": "from the next segment on they are drawn and charged, but never packed: the order of all others stays",
    "index": "what holds them is quarantined when it is indexed again",
    "past runs": "k25 replay leaves out these samples alone and verifies the rest; k25 trace tells where they were",
}


def receipt_facts(
    lake: Store, catalogue: Catalogue, takedown: Takedown, exposure: Exposure, *, removed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the body of a receipt, as plain data.

    Args:
        lake: where datasets are.
        catalogue: the datasets, opened.
        takedown: what was asked.
        exposure: where its samples were trained on.
        removed: what was done about copies.
    """
    seen = exposure.steps.filter(pc.is_null(exposure.steps["masked"]))
    return {
        "at": takedown.at,
        "author": takedown.author,
        "reason": takedown.reason,
        "selectors": list(takedown.selectors),
        "num_samples": len(takedown.samples),
        "samples": [_sample(catalogue, word, why) for word, why in takedown.samples.items()],
        "datasets": {name: len(lines) for name, lines in takedown.lines.items()},
        "runs": _runs(seen),
        "num_steps": len(_distinct(seen, "plan", "step")),
        "stages": sorted({stage for stage in seen["stage"].to_pylist() if stage}),
        "checkpoints": list(exposure.checkpoints),
        "derived_datasets": derived(lake, takedown.lines, exposure.checkpoints),
        "blocked": {name: len(getattr(takedown.blocked, name)) for name in ("media", "words", "perceptual")},
        "removed": dict(removed),
        "effect": EFFECT,
    }


def steps_bytes(exposure: Exposure) -> bytes:
    """Return every place that the samples had in every run, as Parquet."""
    sink = io.BytesIO()
    pq.write_table(exposure.steps, sink, compression="zstd")
    return sink.getvalue()


def derived(lake: Store, lines: Mapping[str, Any], checkpoints: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the datasets that say they were made from what holds the samples, also by way of others."""
    reached = set(lines) | {str(each["checkpoint"]) for each in checkpoints}
    made_from = {name: read_about(lake, name).derived_from for name in dataset_names(lake)}
    found: dict[str, list[str]] = {}
    while new := {name for name, parents in made_from.items() if name not in found and _from(parents, reached)}:
        for name in sorted(new):
            found[name] = _from(made_from[name], reached)
        reached |= new
    return [{"dataset": name, "derived_from": parents} for name, parents in found.items()]


def _from(parents: Sequence[str], reached: set[str]) -> list[str]:
    """Return those of a dataset's parents that are reached; a checkpoint may be told without its prefix."""
    return [each for each in parents if {each, f"k25/checkpoints/{each}"} & reached]


def _sample(catalogue: Catalogue, word: str, why: str) -> dict[str, Any]:
    """Return what stands where: key, and the ranges of the objects of a sample, which stay until their owner acts."""
    name, _, line = word.rpartition(":")
    manifest = catalogue.manifest(name)
    known = manifest.line(int(line))
    objects = [
        {"uri": f"{manifest.uri}/{part.shard}", "offset": part.offset, "num_bytes": part.num_bytes, "row": part.row}
        for part in known.parts
    ]
    return {"sample": word, "key": known.key, "why": why, "version": manifest.digest, "objects": objects}


def _runs(seen) -> list[dict[str, Any]]:
    """Return a row for each run and plan that was trained on the samples."""
    rows: dict[tuple, dict[str, Any]] = {}
    for row in seen.select(["run", "stage", "plan", "step", "dataset", "line"]).to_pylist():
        told = rows.setdefault(
            (row["run"], row["plan"]), {"stage": row["stage"], "steps": set(), "samples": set(), "places": []}
        )
        told["steps"].add(row["step"])
        told["samples"].add((row["dataset"], row["line"]))
        told["places"].append([row["step"], row["dataset"], row["line"]])
    return [
        {
            "run": run,
            "stage": told["stage"],
            "plan": plan,
            "num_steps": len(told["steps"]),
            "num_samples": len(told["samples"]),
            "first_step": min(told["steps"]),
            "last_step": max(told["steps"]),
            "places_digest": digest("places", told["places"]),
        }
        for (run, plan), told in sorted(rows.items())
    ]


def _distinct(table, *names: str) -> set[tuple]:
    return set(zip(*(table[name].to_pylist() for name in names), strict=True))
