"""256 nodes that train on 44,000 images a second, from a store that is slow, refuses and fails: on a virtual clock.

Run: python -m benchmarks.store_sim      (no lake needed; writes benchmarks/results/store_sim.json)

Real, the same code as in a training: the planner's rows, `Prefetcher` (what is fetched when), `ChunkCache` with its
folder, horizon file and eviction (a node each, real files), `Traffic` with budget, cuts and retries (a node each).
Simulated: time, the store's answers (`benchmarks/virtual.py`), the nodes' threads (8 requests at once a node, where a
real node has 8 for each of its processes), and decoding, which takes no time. Bytes are counted as they are and kept on
disk as a 2,048th of them, under limits as small. A step begins on all nodes together, when the last of them has its
bytes; what a node lacked then is waited for by all. Left out: hedging, which is for small reads, and the nodes' network
cards (17 MB/s each).
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.planner import drawn_table
from benchmarks.report import keep
from benchmarks.virtual import Signal, StoreModel, VirtualClock
from benchmarks.virtual_node import IMAGE_BYTES, Node
from k25_pipelines.loader.prefetch import Chunk
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.source import SourceTable

NODES, PACKS_OF_NODE, IMAGES_PER_SECOND = 256, 8, 44_000
WAITED_SECONDS = 1e-3
"""What a step that begins later than this was waited for."""
SHAPES = {
    "8 MB chunks, a lane a node": (80, 256, 500),
    "1 MB chunks, a lane a node": (10, 256, 80),
    "8 MB chunks, a lane four nodes": (80, 64, 20),
}
"""Images of a chunk, lanes of the plan, steps."""


class Rows:
    """A plan's rows, by node and step."""

    def __init__(self, table: pa.Table, sources: Mapping[str, SourceTable]) -> None:
        """Sort the rows of a plan."""
        self.num_steps = int(table["step"][-1].as_py()) + 1
        self._chunk_lines = {name: source.chunk_lines for name, source in sources.items()}
        self._names = sorted(sources)
        coded = table["dataset"].combine_chunks().dictionary_decode().to_numpy(zero_copy_only=False).astype(str)
        self._code = np.searchsorted(self._names, coded)
        lines = np.array([self._chunk_lines[name] for name in self._names])
        self._chunk, self._epoch = table["line"].to_numpy() // lines[self._code], table["epoch"].to_numpy()
        place = table["step"].to_numpy() * NODES + table["pack"].to_numpy() // PACKS_OF_NODE
        self._order = np.argsort(place, kind="stable")
        self._starts = np.searchsorted(place[self._order], np.arange(self.num_steps * NODES + 1))

    def samples(self, node: int, step: int) -> list[Chunk]:
        """Return the chunk of each of a node's samples of a step."""
        first, end = self._starts[step * NODES + node], self._starts[step * NODES + node + 1]
        places = self._order[first:end]
        return [
            (self._names[code], chunk)
            for code, chunk in zip(self._code[places], self._chunk[places].tolist(), strict=True)
        ]

    def chunks(self, node: int, step: int) -> list[Chunk]:
        """Return the chunks of a node's samples of a step, once each."""
        return list(dict.fromkeys(self.samples(node, step)))

    def bytes_of(self, chunk: Chunk) -> int:
        """Return the size of a chunk [bytes]."""
        return self._chunk_lines[chunk[0]] * IMAGE_BYTES

    def visited_bytes(self) -> int:
        """Return the bytes of the chunks that any node uses, once for each epoch."""
        visits = np.unique(np.stack([self._code, self._chunk, self._epoch]), axis=1)
        lines = np.array([self._chunk_lines[name] for name in self._names])
        return int(lines[visits[0]].sum()) * IMAGE_BYTES


def main() -> None:
    """Simulate, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_500_000, help="of the larger source; the other has a half")
    parser.add_argument("--part", type=float, default=1.0, help="of the steps")
    parser.add_argument("--only", choices=list(SHAPES))
    options = parser.parse_args()
    told = {}
    for name, (chunk_lines, lanes, steps) in SHAPES.items():
        if options.only in (None, name):
            random.seed(7)  # the throttle's and the retries' draws
            told[name] = simulated(chunk_lines, lanes, max(4, int(steps * options.part)), options.lines)
            print(name, json.dumps(told[name], indent=1), flush=True)
    print(keep("store_sim", told, command="python -m benchmarks.store_sim"))


def simulated(chunk_lines: int, lanes: int, steps: int, num_lines: int) -> dict:
    """Return how a training of so many steps went."""
    started, clock = time.process_time(), VirtualClock()
    rows = planned(chunk_lines, lanes, steps, num_lines)
    planned_at, model = time.process_time(), StoreModel(clock=clock)
    step_seconds = len(rows._order) / steps / IMAGES_PER_SECOND
    with tempfile.TemporaryDirectory(prefix="k25-sim") as folder:
        ready = clock.waiter()
        nodes = [Node(Path(folder) / str(number), clock, model, rows, number, ready) for number in range(NODES)]
        waits: list[float] = []
        clock.start(partial(train, nodes, rows.num_steps, clock, ready, step_seconds, waits))
        clock.run()
        counts = sum((Counter(node.cache.statistics()) for node in nodes), Counter())
        sent = sum((Counter(node.traffic.statistics()) for node in nodes), Counter())
    told = {"steps": steps, "images": len(rows._order), "step_s": step_seconds, "virtual_s": clock.now - 1000}
    told |= waited(waits) | traffic_facts(model, int(sum(waits[:1]) + 1001))
    return told | {
        "bytes_over_bytes_of_chunks_visited": model.served_bytes / rows.visited_bytes(),
        "bytes_over_bytes_of_images": model.served_bytes / (len(rows._order) * IMAGE_BYTES),
        "cache": dict(counts),
        "traffic": dict(sent),
        "plan_cpu_s": planned_at - started,
        "simulation_cpu_s": time.process_time() - planned_at,
    }


def planned(chunk_lines: int, lanes: int, steps: int, num_lines: int) -> Rows:
    """Return the rows of a plan over two sources of drawn pictures, in so many lanes."""
    sizes = {"captions": (num_lines, 3), "documents": (num_lines // 2, 1)}
    fields = {"name": "sim", "seed": 5, "pack_tokens": 4096, "packs_per_step": NODES * PACKS_OF_NODE, "lanes": lanes}
    weights = {name: {"weight": weight} for name, (_, weight) in sizes.items()}
    recipe = parse_recipe({**fields, "steps": steps, "sources": weights})
    tables = {}
    for name, (lines, _) in sizes.items():
        drawn = drawn_table(name, lines, 1)
        columns = {column: getattr(drawn, column) for column in ("text_tokens", "width", "height", "frames", "fps")}
        tables[name] = SourceTable(name=name, chunk_lines=chunk_lines, **columns)
    wanted = ["step", "pack", "dataset", "line", "epoch"]
    segments = [segment.table.select(wanted) for segment in plan_segments(list(tables.values()), recipe)]
    return Rows(pa.concat_tables(segments).unify_dictionaries(), tables)


def train(
    nodes: list[Node], num_steps: int, clock: VirtualClock, ready: Signal, step_seconds: float, waits: list[float]
) -> None:
    """Take step after step, on all nodes together."""
    for step in range(num_steps):
        asked = clock.now
        for node in nodes:
            node.ask(step)
        while any(node.loaded < step for node in nodes):
            ready.wait()
        waits.append(clock.now - asked)
        clock.sleep(step_seconds)
    for node in nodes:
        node.close()


def waited(waits: Iterable[float]) -> dict:
    """Return how many steps were not waited for, the first included, and for how long the others were."""
    late = {step: seconds for step, seconds in enumerate(waits) if seconds > WAITED_SECONDS}
    return {
        "share_of_steps_without_waiting": 1 - len(late) / len(list(waits)),
        "seconds_waited_by_step": {str(step): round(seconds, 3) for step, seconds in late.items()},
    }


def traffic_facts(model: StoreModel, begun: int) -> dict:
    """Return requests and refusals, in all and after the first step had begun."""
    seconds = sorted(model.by_second)
    total = sum(model.by_second.values(), Counter())
    later = sum((model.by_second[second] for second in seconds if second > begun), Counter())
    refused = [second - 1000 for second in seconds if model.by_second[second]["refused"]]
    runs = np.split(np.array(refused), np.flatnonzero(np.diff(refused) != 1) + 1) if refused else []
    return {
        **{name: total[name] for name in ("requests", "refused", "faults")},
        "requests_of_busiest_second": max(said["requests"] for said in model.by_second.values()),
        "refused_share_after_first_step": later["refused"] / max(1, later["requests"]),
        "seconds_with_refusals": refused,
        "longest_run_of_them_s": max(map(len, runs), default=0),
    }


if __name__ == "__main__":
    main()
