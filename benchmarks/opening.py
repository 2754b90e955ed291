"""How long it takes to open a long plan at any step, and with how much memory; and from a bucket to the first batch.

Run: python -m benchmarks.opening      (no lake needed; writes benchmarks/results/opening.json)

The long plan has 10^9 samples: its index is real and whole, the segment that is opened is real, the others are named
and not there. Each opening is a fresh process; what counts begins after its imports. The unseen images are drawn
into tar shards in a bucket of the embedded S3 server: registered, indexed, planned, loaded, with each part's seconds.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import keep
from infra.s3_server import start, stop
from k25_pipelines.keys import digest
from k25_pipelines.plan.recipe import recipe_dict
from k25_pipelines.planning.index import Index, SegmentInfo, appended, write_index
from k25_pipelines.planning.objects import write_segment
from k25_pipelines.storage.store import open_store
from tests.plan.tables import recipe
from tests.test_plan_index import synthetic_segment

STEPS = (10, 1_000_000, 3_000_000)
SEGMENTS, SEGMENT_STEPS, STEP_ROWS = 6_400, 500, 320
OPENING = """
import json, resource, sys, time
from k25_pipelines.loader import PlanLoader
from k25_pipelines.planning import open_plan
from k25_pipelines.storage.store import open_store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = time.perf_counter()
plan = open_plan(open_store(sys.argv[1]), sys.argv[2])
rows = plan.rows(int(sys.argv[3]))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "rows": len(rows), "peak_mib": peak, "imports_mib": before}))
"""
FIRST_BATCH = """
import json, sys, time
from k25_pipelines.catalog import registry
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import open_store
lake, told = open_store(sys.argv[1]), {}
def timed(name, work):
    start = time.perf_counter()
    found = work()
    told[name] = time.perf_counter() - start
    return found
entry = registry.Registration(name="unseen", uri=lake.url + "/raw/unseen", kind="webdataset", annotations=None,
                              licence="CC0-1.0", source="drawn")
registry.register(lake, entry)
timed("index", lambda: registry.index_dataset(lake, "unseen", threads=8))
recipe = parse_recipe({"name": "unseen", "seed": 1, "pack_tokens": 4096, "packs_per_step": 8, "steps": 4,
                       "sources": {"unseen": {"weight": 1}}})
plan = timed("lengths and plan", lambda: make_plan(lake, recipe))
loader = timed("open", lambda: PlanLoader(plan, lake))
timed("first batch", lambda: loader.batch(0))
loader.close()
told["in all"] = sum(told.values())
print(json.dumps(told))
"""


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = {
            "a step of a plan of 10^9 samples": opened(Path(folder) / "long", options.rounds),
            f"bucket to first batch of {options.images} unseen images": first_batch(Path(folder), options),
        }
    print(json.dumps(told, indent=1))
    print(keep("opening", told, command="python -m benchmarks.opening"))


def opened(folder: Path, rounds: int) -> dict:
    """Return the seconds and memory of opening a plan of 10^9 samples and reading one step, by step."""
    plan = write_long_plan(folder)
    found: dict = {"samples": SEGMENTS * SEGMENT_STEPS * STEP_ROWS, "segments": SEGMENTS}
    for step in STEPS:
        runs = [child(OPENING, str(folder), plan, step) for _ in range(rounds)]
        found[str(step)] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return found


def write_long_plan(folder: Path) -> str:
    """Write the index of a plan whose segments at STEPS are real, and return its id."""
    lake, plan = open_store(str(folder)), "b" * 32
    facts = {
        "plan": plan,
        "recipe": recipe_dict(recipe(), steps=False),
        "datasets": {name: {"digest": name} for name in ("captions", "code", "wiki")},
        "tokenizer": "t" * 32,
        "profile": "kimi_k25",
        "parent": None,
    }
    lake.put_new(f"k25/plans/{plan}/plan.json", json.dumps(facts).encode())
    index = Index()
    for number in range(SEGMENTS):
        first = number * SEGMENT_STEPS
        info = SegmentInfo(digest=digest("segment", number), first_step=first, num_steps=SEGMENT_STEPS, plan=plan)
        if any(first <= step < first + SEGMENT_STEPS for step in STEPS):
            info = write_segment(lake, plan, synthetic_segment(first, steps=SEGMENT_STEPS, rows=STEP_ROWS))
        index = appended(lake, plan, index, info)
    write_index(lake, plan, index)
    return plan


def first_batch(folder: Path, options: argparse.Namespace) -> dict:
    """Return the seconds of each part of the way from objects in a bucket to a batch."""
    (folder / "state").mkdir()
    info = start(folder / "state")
    try:
        runs = []
        for number in range(min(3, options.rounds)):
            lake = f"{info.environment['K25_LAKE']}/first-{number}"
            fill(lake, options.images, info.environment)
            runs.append(child(FIRST_BATCH, lake, environment=info.environment))
    finally:
        stop(folder / "state")
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def fill(lake: str, num_images: int, environment: dict[str, str]) -> None:
    """Write tars of drawn pictures with captions below raw/unseen."""
    os.environ.update(environment)
    store, rng = open_store(lake), np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((384, 288), Image.BICUBIC)
        coarse.save(buffer, "JPEG", quality=85)
        pictures.append(buffer.getvalue())
    for shard in range(20):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for number in range(shard * num_images // 20, (shard + 1) * num_images // 20):
                for suffix, data in (("jpg", pictures[number % 64]), ("txt", f"drawn picture {number}".encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        store.put(f"raw/unseen/{shard:03d}.tar", buffer.getvalue())


def child(program: str, *words: object, environment: dict[str, str] | None = None) -> dict:
    """Return what a fresh process printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
