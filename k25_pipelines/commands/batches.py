"""`k25 batch`: what a rank of a run is fed."""

import argparse
import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from k25_pipelines.commands.parts import command, count, step_range
from k25_pipelines.environment import STATE, open_lake
from k25_pipelines.errors import K25Error


def add_commands(commands) -> None:
    """Add `batch`, and `doctor` beside it, to the parser."""
    from k25_pipelines.commands import doctor

    doctor.add_commands(commands)
    batch = command(
        commands,
        "batch",
        _batch,
        purpose="build batches of a plan, and say what is in them",
        example="k25 batch PLAN --steps 0:4 --rank 1 --num-ranks 4 --digest",
    )
    batch.add_argument("plan")
    batch.add_argument("--steps", required=True, type=step_range, metavar="A:B", help="from A up to but not B")
    add_loader_arguments(batch, cache=STATE / "cache")
    batch.add_argument("--digest", action="store_true", help="one line a pack: step=<n> pack=<i> sha256=<hex>")
    batch.add_argument("--show", action="store_true", help="one line a sample")


def add_loader_arguments(parser: argparse.ArgumentParser, *, cache: Path | None) -> None:
    """Add the arguments that say where and on what a plan is loaded."""
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--num-ranks", type=count, default=1)
    parser.add_argument(
        "--ranks-per-node", type=count, default=1, help="of a machine, which deal out its packs by cost"
    )
    parser.add_argument("--threads", type=count, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cache", type=_folder, default=cache, metavar="DIR|none", help=f"keeps chunks on disk; {cache or 'none'}"
    )
    parser.add_argument("--cached-tokens", action="store_true", help="read token ids that are kept in the lake")


def _folder(words: str) -> Path | None:
    return None if words == "none" else Path(words)


def loader_options(options: argparse.Namespace) -> dict:
    """Return them as arguments of the loader. Raises K25Error: there is no such rank."""
    if not 0 <= options.rank < options.num_ranks:
        raise K25Error(f"--rank {options.rank} of --num-ranks {options.num_ranks}: ranks are counted from 0")
    names = ("rank", "num_ranks", "ranks_per_node", "threads", "cache", "cached_tokens")
    return {name: getattr(options, name) for name in names}


def _batch(options: argparse.Namespace) -> None:
    from k25_pipelines.loader import PlanLoader

    first, end = options.steps
    masked: dict[str, str] = {}
    with PlanLoader(options.plan, open_lake(), **loader_options(options)) as loader:
        loader.plan.segment_of(end - 1)  # a range past the end is refused before anything of it is printed
        for step in tqdm(range(first, end), desc="batches", unit="step", disable=not sys.stderr.isatty()):
            batch = loader.batch(step)
            masked |= {f"{s.dataset}:{s.line}": s.masked for s in batch.provenance if s.masked}
            if options.digest:
                for _, pack, sha256 in loader.pack_digests(step):
                    print(f"step={step} pack={pack} sha256={sha256}")
            elif options.show:
                for sample in batch.provenance:
                    print(json.dumps({"step": step, **_plain(sample)}))
            else:
                print(_batch_line(step, batch))
    if masked:
        name, reason = next(iter(masked.items()))
        told = f"{len(masked)} samples cannot be used and are masked, the first {name}: {reason}"
        print(f"k25 batch: {told}; all of them: --show", file=sys.stderr)


def _batch_line(step: int, batch) -> str:
    num_real = sum(sample.num_tokens for sample in batch.provenance if not sample.masked)
    num_masked = sum(bool(sample.masked) for sample in batch.provenance)
    num_vision = int(batch.media_slots[:, 2].sum()) if len(batch.media_slots) else 0
    fill = num_real / max(1, batch.input_ids.size)
    return (
        f"step {step}: {len(batch.input_ids)} packs, {len(batch.provenance)} samples, {num_real:,} tokens "
        f"(fill {fill:.4f}), {num_vision:,} vision tokens, {len(batch.patches):,} patches"
    ) + (f", {num_masked} samples masked" if num_masked else "")


def _plain(sample) -> dict:
    return {name: getattr(sample, name) for name in sample.__slots__}
