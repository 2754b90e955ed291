"""`k25 doctor`: a plan's steps in; where loading time goes by stage and source, speeds and the remedy out."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm import tqdm

from k25_pipelines.commands.batches import add_loader_arguments, loader_options
from k25_pipelines.commands.parts import command, step_range
from k25_pipelines.environment import open_lake
from k25_pipelines.storage.store import Store

if TYPE_CHECKING:
    from k25_pipelines.planning import Plan

DOCTOR_STEPS = 8
"""Steps that are looked at where none are named."""
IMAGES_PER_GPU = 14.0
"""What one accelerator takes in joint training [images / s]."""
REMEDIES = {
    "store": "the store answers slowly: name a folder on a local disk with --cache, or bring the bucket nearer",
    "disk": "the cache's disk is slow: keep the cache on a local SSD, or give it more memory (ram_bytes)",
    "read": "parsing takes the time: JSON lines or Parquet groups are large; write shards of smaller groups",
    "decode": "decoding takes the time: more cores and --threads, or originals nearer to the size that is trained on",
    "resize": "resampling takes the time: more cores and --threads, or originals nearer to the size that is trained on",
    "augment": "augmentation takes the time: more cores and --threads, or fewer operations in the recipe's augment",
    "patches": "cutting patches takes the time: memory binds it; fewer threads a socket, or a lower max_image_tokens",
    "tokenize": "tokenizing takes the time: keep ids with k25 index NAME --tokens TOKENIZER, then --cached-tokens",
    "assemble": "putting batches together takes the time: it is bound by memory; fewer packs a rank",
    "plan": "reading the plan takes the time: plan shorter segments",
    "loader": "the loader's own work takes the time: tiny samples; pack longer sequences or use --cached-tokens",
}
"""Stage that takes the most -> what to do."""


def add_commands(commands) -> None:
    """Add it to the parser, once."""
    if "doctor" in commands.choices:
        return
    doctor = command(
        commands,
        "doctor",
        _doctor,
        purpose="load some steps and say where the time goes, and what to do about it",
        example="k25 doctor PLAN --steps 0:16",
    )
    doctor.add_argument("plan")
    doctor.add_argument("--steps", type=step_range, metavar="A:B", help=f"from A up to but not B; 0:{DOCTOR_STEPS}")
    add_loader_arguments(doctor, cache=None)
    doctor.add_argument("--json", action="store_true", help="facts as JSON")


def _doctor(options: argparse.Namespace) -> None:
    from k25_pipelines.planning import open_plan

    lake = open_lake()
    plan = open_plan(lake, options.plan)
    first, end = options.steps or (0, min(DOCTOR_STEPS, plan.num_steps))
    plan.segment_of(end - 1)
    facts = examined(plan, lake, range(first, end), loader_options(options))
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(told(facts)))


def examined(plan: "Plan", lake: Store, steps: range, how: dict) -> dict:
    """Return where the time went while some steps were loaded, in a process that has loaded one before.

    Args:
        plan: whose steps.
        lake: where it stands.
        steps: at least one.
        how: arguments of the loader.
    """
    from k25_pipelines.loader import PlanLoader

    with PlanLoader(plan, lake, **{**how, "cache": None}) as warm:  # what is compiled, is compiled
        warm.batch(next((step for step in steps if plan.rows(step)["media"].to_numpy().any()), steps[0]))
    counts = {"samples": 0, "images": 0, "tokens": 0, "masked": 0}
    tokens_of: dict[str, int] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    with PlanLoader(plan, lake, timed=True, **how) as loader:
        first_batch = None
        for step in tqdm(steps, desc="loading", unit="step", disable=not sys.stderr.isatty(), leave=False):
            batch = loader.batch(step)
            first_batch = first_batch or time.perf_counter() - wall
            counts["samples"] += len(batch.provenance)
            counts["images"] += len(batch.grid_thw)
            counts["masked"] += sum(sample.masked is not None for sample in batch.provenance)
            for sample in batch.provenance:
                counts["tokens"] += sample.num_tokens
                tokens_of[sample.dataset] = tokens_of.get(sample.dataset, 0) + sample.num_tokens
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        timings = loader.timings()
    return _facts(plan.id, steps, counts, tokens_of, timings) | {
        "threads": how["threads"],
        "first_batch_s": round(first_batch or 0.0, 3),
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        **_speeds(counts, cpu),
    }


def _facts(plan: str, steps: range, counts: dict, tokens_of: Mapping[str, int], timings: Mapping) -> dict:
    stages = {name: round(seconds, 3) for name, seconds in timings["stages"].items()}
    working = {name: seconds for name, seconds in stages.items() if name != "queue"}
    per_source = {name: sum(found.values()) for name, found in timings["sources"].items()}
    slow = max(per_source, key=lambda name: per_source[name] / max(1, tokens_of.get(name, 0)), default=None)
    worst = max(working, key=lambda name: working[name])
    return {
        "plan": plan,
        "steps": [steps.start, steps.stop],
        **counts,
        "stages_s": stages,
        "sources_s": {
            name: {stage: round(s, 3) for stage, s in found.items()} for name, found in timings["sources"].items()
        },
        "cache": timings["cache"],
        "slow_source": slow,
        "slow_stage": worst,
        "remedy": REMEDIES[worst],
    }


def _speeds(counts: Mapping[str, int], cpu: float) -> dict:
    images = counts["images"] / cpu if cpu else 0.0
    return {
        "images_per_core_s": round(images, 2),
        "tokens_per_core_s": round(counts["tokens"] / cpu) if cpu else 0,
        "cores_per_gpu": round(IMAGES_PER_GPU / images, 3) if images else None,
    }


def told(facts: Mapping) -> list[str]:
    """Return the facts as lines for a terminal."""
    total = sum(seconds for name, seconds in facts["stages_s"].items() if name != "queue") or 1.0
    lines = [
        f"plan {facts['plan'][:12]}, steps {facts['steps'][0]}:{facts['steps'][1]}: {facts['samples']:,} samples, "
        f"{facts['images']:,} vision items, {facts['tokens']:,} tokens in {facts['wall_s']:.2f} s "
        f"({facts['cpu_s']:.2f} s of CPU, {facts['threads']} threads; first batch: {facts['first_batch_s']:.2f} s)",
        "",
        f"{'stage':<10}{'thread s':>10}{'share':>8}",
    ]
    for name, seconds in sorted(facts["stages_s"].items(), key=lambda entry: -entry[1]):
        share = "" if name == "queue" else f"{seconds / total:>8.0%}"
        lines.append(f"{name:<10}{seconds:>10.2f}{share}{'  the reader of batches waited' * (name == 'queue')}")
    lines += ["", f"{'source':<20}{'thread s':>10}  most in"]
    for name, stages in sorted(facts["sources_s"].items(), key=lambda entry: -sum(entry[1].values())):
        lines.append(f"{name:<20}{sum(stages.values()):>10.2f}  {max(stages, key=lambda stage: stages[stage])}")
    cores = f"; {facts['cores_per_gpu']} cores a GPU at {IMAGES_PER_GPU:.0f} images/s" if facts["cores_per_gpu"] else ""
    lines += [
        "",
        f"a core: {facts['images_per_core_s']} vision items/s, {facts['tokens_per_core_s']:,} tokens/s{cores}",
        f"slowest source for its tokens: {facts['slow_source'] or 'none was seen at work'}",
        f"remedy: {facts['remedy']}",
    ]
    return lines
