"""`k25 batch`: what a rank of a run is fed."""

import argparse
import json
import os
import sys

from tqdm import tqdm

from k25_pipelines.commands.parts import command, count, step_range
from k25_pipelines.environment import STATE, open_lake
from k25_pipelines.errors import K25Error


def add_commands(commands) -> None:
    """Add them to the parser."""
    batch = command(
        commands,
        "batch",
        _batch,
        purpose="build batches of a plan, and say what is in them",
        example="k25 batch PLAN --steps 0:4 --rank 1 --num-ranks 4 --digest",
    )
    batch.add_argument("plan")
    batch.add_argument("--steps", required=True, type=step_range, metavar="A:B", help="from A up to but not B")
    batch.add_argument("--rank", type=int, default=0)
    batch.add_argument("--num-ranks", type=count, default=1)
    batch.add_argument("--threads", type=count, default=os.cpu_count() or 1)
    batch.add_argument("--digest", action="store_true", help="one line a pack: step=<n> pack=<i> sha256=<hex>")
    batch.add_argument("--show", action="store_true", help="one line a sample")


def _batch(options: argparse.Namespace) -> None:
    from k25_pipelines.loader import PlanLoader

    first, end = options.steps
    if not 0 <= options.rank < options.num_ranks:
        raise K25Error(f"--rank {options.rank} of --num-ranks {options.num_ranks}: ranks are counted from 0")
    cache = STATE / "cache"
    with PlanLoader(
        options.plan, open_lake(), rank=options.rank, num_ranks=options.num_ranks, threads=options.threads, cache=cache
    ) as loader:
        loader.plan.segment_of(end - 1)  # a range past the end is refused before anything of it is printed
        for step in tqdm(range(first, end), desc="batches", unit="step", disable=not sys.stderr.isatty()):
            batch = loader.batch(step)
            if options.digest:
                for _, pack, sha256 in loader.pack_digests(step):
                    print(f"step={step} pack={pack} sha256={sha256}")
            elif options.show:
                for sample in batch.provenance:
                    print(json.dumps({"step": step, **_plain(sample)}))
            else:
                print(_batch_line(step, batch))


def _batch_line(step: int, batch) -> str:
    num_real = sum(sample.num_tokens for sample in batch.provenance)
    num_vision = int(batch.media_slots[:, 2].sum()) if len(batch.media_slots) else 0
    fill = num_real / max(1, batch.input_ids.size)
    return (
        f"step {step}: {len(batch.input_ids)} packs, {len(batch.provenance)} samples, {num_real:,} tokens "
        f"(fill {fill:.4f}), {num_vision:,} vision tokens, {len(batch.patches):,} patches"
    )


def _plain(sample) -> dict:
    return {name: getattr(sample, name) for name in sample.__slots__}
