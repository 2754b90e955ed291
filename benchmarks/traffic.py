"""What the store is asked: bytes fetched by 1, 2, 8 and 64 nodes of a plan, and what caches of several sizes fetch.

Run: python -m benchmarks.traffic      (no lake needed; writes benchmarks/results/traffic.json)

The plan is made by the real planner over drawn lengths; nothing is read. A chunk counts once for each node and epoch of
its source that uses it, as a cache that holds a lane's window makes it. Beside it stands the same plan with its packs
dealt to the nodes freely, as a shuffled stream of packs would be. Eviction is simulated for one node's order of chunks,
by least recent use and by next use (Belady), at parts of the bytes it touches within one epoch.
"""

import argparse
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.planner import drawn_table
from benchmarks.report import keep
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.traffic import chunk_uses, fetched_bytes, node_bytes_ratio

NODES = (2, 8, 64)
CACHES = (0.1, 0.3, 0.6)
SOURCES = {"web": (0, 6), "captions": (1, 4)}


def main() -> None:
    """Simulate, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=400_000, help="of each source")
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    tables = [drawn_table(name, options.lines, pictures) for name, (pictures, _) in SOURCES.items()]
    recipe = parse_recipe(
        {
            "name": "traffic",
            "seed": 5,
            "pack_tokens": 4096,
            "packs_per_step": 1024,
            "lanes": 64,
            "vision_share": 0.10,
            "steps": options.steps,
            "sources": {name: {"weight": weight} for name, (_, weight) in SOURCES.items()},
        }
    )
    rows = pa.concat_tables([segment.table for segment in plan_segments(tables, recipe)]).unify_dictionaries()
    uses = chunk_uses(rows, {table.name: table.chunk_lines for table in tables})
    told = {
        "rows": len(rows),
        "epochs": {table.name: epochs_of(rows, table.name) for table in tables},
        "bytes_of_nodes_over_one_nodes": nodes(uses),
        "bytes_fetched_over_bytes_touched": caches(uses),
    }
    print(json.dumps(told, indent=1))
    print(keep("traffic", told, command="python -m benchmarks.traffic"))


def nodes(uses: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return, for each number of nodes, the ratio by lanes and freely dealt, a chunk counted once an epoch and once."""
    whole = {**uses, "visit": uses["chunk"]}
    return {
        str(number): {
            "by lanes, once an epoch": node_bytes_ratio(uses, num_nodes=number),
            "by lanes, once for the whole plan": node_bytes_ratio(whole, num_nodes=number),
            "freely dealt, once an epoch": node_bytes_ratio(uses, num_nodes=number, free=True),
            "freely dealt, once for the whole plan": node_bytes_ratio(whole, num_nodes=number, free=True),
        }
        for number in NODES
    }


def caches(uses: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return what one of 8 nodes fetches through caches of parts of what it touches, by both rules."""
    packs = int(uses["pack"].max()) + 1
    chunk = uses["chunk"][uses["pack"] < packs // 8]
    known, chunk = np.unique(chunk, return_inverse=True)
    size = np.ones(len(known), dtype=np.int64)
    found = {}
    for part in CACHES:
        by_rule = {
            name: fetched_bytes(chunk, size, int(part * len(known)), next_use=next_use) / len(known)
            for name, next_use in (("Belady", True), ("LRU", False))
        }
        found[str(part)] = {**by_rule, "LRU over Belady": by_rule["LRU"] / by_rule["Belady"]}
    return found


def epochs_of(rows: pa.Table, name: str) -> float:
    """Return how far into its epochs a source was read."""
    mine = rows.filter(pc.equal(rows["dataset"].cast(pa.string()), name))
    return float(pc.max(mine["epoch"]).as_py() + 1)


if __name__ == "__main__":
    main()
