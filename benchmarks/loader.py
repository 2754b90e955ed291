"""What the loader costs against a naive map-style loop over the same samples, in pairs, in one run.

Run: make bench     (needs a lake, as after `k25 demo` and `k25 up --background`; writes benchmarks/results/loader.json)

The peer reads each sample's bytes by ranged GETs from the same store, decodes and resizes with Pillow to the planned
size and tokenizes the words: no packing, no patches, no labels, no provenance, no verification. Both run on one
thread; the figure is CPU seconds of the whole process for the same steps, and its ratio, peer over loader, a round.
"""

import argparse
import importlib.metadata
import io
import json
import os
import platform
import statistics
import time
from pathlib import Path

from PIL import Image

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import Plan, make_plan, open_plan
from k25_pipelines.sample.read import read_line
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store

RESULTS = Path(__file__).parent / "results" / "loader.json"
RECIPE = {
    "name": "bench-loader",
    "seed": 7,
    "pack_tokens": 4096,
    "packs_per_step": 4,
    "steps": 12,
    "max_image_tokens": 1024,
    "sources": {"captions": {"weight": 1}, "grounding": {"weight": 3}},
}


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lake = open_store(os.environ["K25_LAKE"])
    plan = open_plan(lake, make_plan(lake, parse_recipe(RECIPE)))
    rounds = []
    for _ in range(options.rounds):
        loader_seconds, peer_seconds = (
            cpu_seconds(lambda: load_all(lake, plan)),
            cpu_seconds(lambda: naive_loop(lake, plan)),
        )
        rounds.append(
            {"loader_cpu_s": loader_seconds, "peer_cpu_s": peer_seconds, "ratio": peer_seconds / loader_seconds}
        )
        print(json.dumps(rounds[-1]))
    images = sum(len(plan.rows(step)) for step in range(plan.num_steps))
    told = {
        "command": "make bench",
        "images": images,
        "loader_images_per_cpu_s": images / statistics.median(r["loader_cpu_s"] for r in rounds),
        "peer_images_per_cpu_s": images / statistics.median(r["peer_cpu_s"] for r in rounds),
        "ratio_median": statistics.median(r["ratio"] for r in rounds),
        "rounds": rounds,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "packages": {
            name: importlib.metadata.version(name) for name in ("numpy", "pillow", "simplejpeg", "tokenizers")
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(
        f"{told['loader_images_per_cpu_s']:.1f} images a CPU second, naive loop {told['peer_images_per_cpu_s']:.1f}: "
        f"ratio {told['ratio_median']:.2f}; {RESULTS}"
    )


def load_all(lake: Store, plan: Plan) -> None:
    """Load every step of the plan on one thread, from the bytes in the bucket to batches."""
    with PlanLoader(plan, lake, threads=1) as loader:
        for step in range(plan.num_steps):
            loader.batch(step)


def naive_loop(lake: Store, plan: Plan) -> None:
    """Read, decode, resize and tokenize the same samples, one after the other."""
    tokenizer = load_tokenizer("default")
    manifests = {name: load_manifest(lake, name, digest) for name, digest in plan.datasets.items()}
    stores = {name: open_store(manifest.uri) for name, manifest in manifests.items()}
    for step in range(plan.num_steps):
        for row in plan.rows(step).to_pylist():
            get, name = stores[row["dataset"]].get_range, row["dataset"]
            raw = read_line(manifests[name], row["line"], lambda shard, at, num, _, get=get: get(shard, at, num))
            image = Image.open(io.BytesIO(raw.media[0])).convert("RGB")
            image.resize((row["out_w"], row["out_h"]), Image.Resampling.BICUBIC)
            tokenizer.encode(raw.text or json.dumps(raw.inline["annotations"]))


def cpu_seconds(work) -> float:
    """Return CPU seconds of this process, all threads, for one call."""
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
