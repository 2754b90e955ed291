"""How long a takedown takes: 1,000 images, over plans of 22,400, 67,200 and 224,000 steps of about 64 samples each.

Run: python -m benchmarks.takedown      (starts an S3 server of its own; writes benchmarks/results/takedown.json)

Manifests, plans, runs and checkpoints are written by the code that writes them anyway; the samples' lengths are drawn,
and nothing is trained: a run's log consists of its objects' names. Each size is asked three times: with no filter of
any segment there yet (they are made from the plan's rows), with all of them, and as a whole `forget`, from content ids
to the receipt. Wall and CPU time of one process, the server beside it.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import keep
from k25_pipelines.catalog.contents import write_beside
from k25_pipelines.catalog.line import BESIDE, PART_TYPE, SCHEMA
from k25_pipelines.catalog.manifest import Manifest, make_manifest, write_manifest
from k25_pipelines.catalog.registry import Registration, register
from k25_pipelines.governance import exposure, forget
from k25_pipelines.governance.filters import FILTERS
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.recipe import Recipe, parse_recipe, recipe_dict
from k25_pipelines.plan.source import SourceTable
from k25_pipelines.planning.index import PLANS, Index, appended, write_index
from k25_pipelines.planning.objects import write_segment
from k25_pipelines.runs import RUNS, start_run
from k25_pipelines.storage.store import Store, open_store

DATASETS = ("captions", "grounding", "shop", "web")
PACK_TOKENS, PACKS_PER_STEP, SAMPLE_TOKENS = 4096, 16, 1000
NUM_CHECKPOINTS, LOG_STEPS = 10, 200


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[22_400, 67_200, 224_000])
    parser.add_argument("--lines", type=int, default=250_000, help="of each of the four datasets")
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    from infra.s3_server import start, stop

    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        os.environ.update(server.environment)
        try:
            sizes = {}
            for steps in options.steps:
                lake = open_store(f"{server.environment['K25_LAKE']}/{steps}")
                sizes[f"{steps:,} steps"] = measured(lake, steps, options)
                print(steps, json.dumps(sizes[f"{steps:,} steps"]), flush=True)
        finally:
            stop(Path(folder))
    print(keep("takedown", sizes, command="python -m benchmarks.takedown"))


def measured(lake: Store, steps: int, options: argparse.Namespace) -> dict:
    """Return seconds of each question over a lake of that many steps."""
    manifests = [written_manifest(lake, name, options.lines) for name in DATASETS]
    plan, num_rows = written_plan(lake, manifests, steps)
    write_run(lake, plan, steps)
    rng = np.random.default_rng(5)
    chosen = {m.dataset: np.sort(rng.choice(m.num_lines, options.images // 4, replace=False)) for m in manifests}
    told = {"rows": num_rows, "images": options.images}
    for name in ("first_question", "next_question"):
        started, busy = time.perf_counter(), time.process_time()
        found = exposure(lake, chosen)
        told |= {f"{name}_s": time.perf_counter() - started, f"{name}_cpu_s": time.process_time() - busy}
    filters = [info.num_bytes for info in lake.list(FILTERS)]
    rows = [info.num_bytes for info in lake.list(f"{PLANS}{plan}/segments/") if info.key.endswith(".parquet")]
    told |= {"segments": len(rows), "filter_bytes": sum(filters), "row_bytes": sum(rows)}
    ids = [content_of(name, line) for name, lines in chosen.items() for line in lines.tolist()]
    started, busy = time.perf_counter(), time.process_time()
    receipt = forget(lake, ids, reason="measured", author="benchmark")
    told |= {"forget_s": time.perf_counter() - started, "forget_cpu_s": time.process_time() - busy}
    assert receipt["num_samples"] == options.images
    assert found.steps.num_rows >= receipt["num_steps"] > 0
    return {**told, "places": found.steps.num_rows, "steps_hit": receipt["num_steps"]}


def written_manifest(lake: Store, name: str, num_lines: int) -> Manifest:
    """Write a dataset of single images with content ids, none of which stands anywhere."""
    register(
        lake, Registration(name=name, uri=f"{lake.url}/raw/{name}", kind="images", licence="CC0-1.0", source="none")
    )
    keys = [f"{number:09}.jpg" for number in range(num_lines)]
    plain = {"kind": "image", "shard": None, "num_bytes": 90_000, "row": -1, "etag": "e", "width": 640, "height": 480}
    values = {**plain, "shard_bytes": 90_000, "frames": 1, "orientation": 1}
    fields = []
    for field in PART_TYPE:
        value = values.get(field.name, 0.0 if field.name == "fps" else 0 if field.type == pa.int64() else "")
        fields.append(pa.array(keys if field.name == "shard" else [value] * num_lines, field.type))
    offsets = pa.array(np.arange(num_lines + 1), pa.int32())
    parts = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(fields, fields=list(PART_TYPE)))
    said = {"key": keys, "parts": parts, "text_length": [30] * num_lines, "licence": ["CC0-1.0"] * num_lines}
    columns = {**said, "source": ["none"] * num_lines, "inline": ["{}"] * num_lines, "quarantine": [""] * num_lines}
    table = pa.table({entry.name: pa.array(columns[entry.name], entry.type) for entry in SCHEMA}, schema=SCHEMA)
    manifest = make_manifest(name, table, uri=f"{lake.url}/raw/{name}", kind="images", chunk_lines=64)
    write_manifest(lake, manifest)
    ids = pa.array([content_of(name, line) for line in range(num_lines)], pa.string())
    lists = pa.ListArray.from_arrays(offsets, ids)
    write_beside(lake, manifest, pa.Table.from_arrays([lists, pa.nulls(num_lines, pa.string())], schema=BESIDE))
    version = {"number": 1, "digest": manifest.digest, "parent": None, "num_lines": num_lines, "num_quarantined": 0}
    lake.put(f"k25/datasets/{name}/versions/000001.json", json.dumps(version).encode())
    return manifest


def content_of(name: str, line: int) -> str:
    """Return a content id of 64 hexadecimal characters."""
    return f"{DATASETS.index(name):08x}{line:056x}"


def written_plan(lake: Store, manifests: list[Manifest], steps: int) -> tuple[str, int]:
    """Plan samples of drawn lengths, and return the plan's id and how many rows it has."""
    recipe: Recipe = parse_recipe(
        {
            **{"name": "takedown", "seed": 3, "pack_tokens": PACK_TOKENS, "packs_per_step": PACKS_PER_STEP},
            **{"steps": steps, "sources": {name: {"weight": 1} for name in DATASETS}},
        }
    )
    rng = np.random.default_rng(1)
    tables = [
        SourceTable(
            name=manifest.dataset,
            digest=manifest.digest,
            chunk_lines=manifest.chunk_lines,
            text_tokens=rng.integers(SAMPLE_TOKENS // 2, SAMPLE_TOKENS * 3 // 2, manifest.num_lines),
        )
        for manifest in manifests
    ]
    plan, index, num_rows = f"{steps:032x}", Index(), 0
    for segment in plan_segments(tables, recipe, steps=steps):
        index = appended(lake, plan, index, write_segment(lake, plan, segment))
        num_rows += segment.table.num_rows
    write_index(lake, plan, index)
    facts = {"plan": plan, "recipe": recipe_dict(recipe, steps=False), "tokenizer": "none", "profile": recipe.profile}
    datasets = {manifest.dataset: {"digest": manifest.digest} for manifest in manifests}
    lake.put(f"{PLANS}{plan}/plan.json", json.dumps({**facts, "datasets": datasets, "parent": None}).encode())
    return plan, num_rows


def write_run(lake: Store, plan: str, steps: int) -> None:
    """Write a run's pointer, the names of its log's objects, and its checkpoints, each holding all steps before it."""
    start_run(lake, "joint", plan, steps=steps, stage="joint")
    for first in range(0, steps, LOG_STEPS):
        lake.put(f"{RUNS}joint/steps/{first:012}-{min(first + LOG_STEPS, steps):012}-{plan}.parquet", b"")
    for end in np.linspace(0, steps, NUM_CHECKPOINTS + 1).astype(int)[1:].tolist():
        record = {"run": "joint", "stage": "joint", "plan": plan, "step": end, "step_range": [0, end], "parent": None}
        lake.put(f"k25/checkpoints/joint/{end:08}/record.json", json.dumps(record).encode())


if __name__ == "__main__":
    main()
