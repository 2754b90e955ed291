"""How fast plans are made, on synthetic lengths, and what the whole of K2.5's joint run would take.

Run: python -m benchmarks.planner      (no lake needed; writes benchmarks/results/planner.json)

The tables are drawn: text of log-normal length, pictures of clipped-normal sides. One process, one core; the first
stretch, in which the kernels are compiled or loaded, is not counted. To begin, the columns of the tables are hashed
(they name the plan), which takes the longer the more lines there are, and is told apart. K2.5's joint stage is about
15T tokens; with the drawn mean of about 1,000 tokens a sample that is 1.5e10 samples.
"""

import argparse
import json
import resource
import statistics
import time

import numpy as np

from benchmarks.report import keep
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.source import SourceTable

WHOLE_TOKENS = 15e12
SOURCES = {"web": (0, 6), "books": (0, 2), "captions": (1, 3), "documents": (1, 1)}
"""Name -> whether it has pictures, weight."""


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000, help="of each source")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    tables = [drawn_table(name, options.lines, pictures) for name, (pictures, _) in SOURCES.items()]
    shapes = {
        "lanes 8, 64 packs a step": {"lanes": 8, "packs_per_step": 64},
        "lanes 64, 1024 packs a step": {"lanes": 64, "packs_per_step": 1024},
    }
    told = {}
    for name, shape in shapes.items():
        steps = options.steps if shape["lanes"] == 8 else options.steps // 16
        told[name] = measured(tables, shape, steps=steps, rounds=options.rounds)
        print(name, json.dumps(told[name]))
    best = told["lanes 64, 1024 packs a step"]
    num_samples = WHOLE_TOKENS / best["tokens_per_sample"]
    table_bytes = sum(bytes_of(table) for table in tables) / sum(table.num_lines for table in tables)
    whole = {
        "tokens": WHOLE_TOKENS,
        "samples": num_samples,
        "hours_on_one_core": num_samples / best["samples_per_cpu_s_once_begun"] / 3600,
        "table_bytes_per_line": table_bytes,
        "table_gib_if_every_sample_is_another_line": num_samples * table_bytes / 2**30,
        "peak_mib_of_this_stretch": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print("whole run", json.dumps(whole))
    print(keep("planner", {**told, "whole_run": whole}, command="python -m benchmarks.planner"))


def measured(tables: list[SourceTable], shape: dict, *, steps: int, rounds: int) -> dict:
    """Return samples a CPU second over `steps` steps, and how the plan came out."""
    fields = {
        "name": "synthetic",
        "seed": 3,
        "pack_tokens": 4096,
        "vision_share": 0.10,
        "steps": steps,
        "sources": {name: {"weight": weight} for name, (_, weight) in SOURCES.items()},
        **shape,
    }
    recipe = parse_recipe(fields)
    list(plan_segments(tables, recipe, steps=max(1, 512 // shape["packs_per_step"])))
    rates, steady, begin, segments = [], [], [], []
    for _ in range(rounds):
        started = time.process_time()
        list(plan_segments(tables, recipe, steps=1))
        begun = time.process_time()
        segments = list(plan_segments(tables, recipe, steps=steps))
        seconds = time.process_time() - begun
        num_rows = sum(len(segment.table) for segment in segments)
        rates.append(num_rows / seconds)
        steady.append(num_rows / (seconds - (begun - started)))
        begin.append(begun - started)
    tokens = np.concatenate([segment.table["num_tokens"].to_numpy() for segment in segments])
    vision = np.concatenate([segment.table["vision_tokens"].to_numpy() for segment in segments])
    step = np.concatenate([segment.table["step"].to_numpy() for segment in segments])
    per_step = np.bincount(step, weights=vision) / np.bincount(step, weights=tokens)
    return {
        "samples_per_cpu_s": statistics.median(rates),
        "rounds": rates,
        "samples_per_cpu_s_once_begun": statistics.median(steady),
        "rounds_once_begun": steady,
        "cpu_s_to_begin": statistics.median(begin),
        "samples": len(tokens),
        "tokens_per_sample": float(tokens.mean()),
        "fill": float(tokens.sum() / (steps * shape["packs_per_step"] * 4096)),
        "vision_share": float(vision.sum() / tokens.sum()),
        "share_spread_points": float(per_step.std() * 100),
        "worst_debt_tokens": max(segment.header["report"]["worst_debt_tokens"] for segment in segments),
        "longest_sample_tokens": int(tokens.max()),
    }


def drawn_table(name: str, num_lines: int, pictures: int) -> SourceTable:
    """Return a synthetic dataset version of that many lines."""
    rng = np.random.default_rng(len(name))
    if not pictures:
        text = np.clip(rng.lognormal(6.5, 1.0, num_lines), 16, 16_384).astype(np.int64)
        return SourceTable(name=name, text_tokens=text, chunk_lines=256)
    sides = [np.clip(rng.normal(700, 250, num_lines), 56, 2000).astype(np.int64) for _ in range(2)]
    ones = np.ones(num_lines, dtype=np.int64)
    text = np.clip(rng.lognormal(4.0, 0.7, num_lines), 8, 1024).astype(np.int64)
    return SourceTable(
        name=name,
        text_tokens=text,
        chunk_lines=64,
        width=sides[0],
        height=sides[1],
        frames=ones,
        fps=np.zeros(num_lines),
    )


def bytes_of(table: SourceTable) -> int:
    """Return what the columns of a table take in memory."""
    columns = (table.text_tokens, table.width, table.height, table.frames, table.fps)
    return sum(column.nbytes for column in columns if column is not None)


if __name__ == "__main__":
    main()
