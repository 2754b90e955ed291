"""A checkpoint's record: everything known of what made it, as plain data. No clock, host or path stands in it."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from k25_pipelines.keys import digest
from trainers.config import Run, TrainConfig, plain
from trainers.feed import Feed, reads_until

PACKAGES = ("deepspeed", "numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg", "tokenizers", "torch")
SOURCES = Path(__file__).resolve().parent.parent


def checkpoint_record(
    run: Run, feed: Feed, history: Sequence[dict], *, num_ranks: int, ranks_per_node: int = 1
) -> dict:
    """Return the record after the steps of `history`, all but the files and the digest.

    Args:
        run: what was run.
        feed: what it read.
        history: the metrics of each step since step 0, those before another run's checkpoint included.
        num_ranks: processes that shared the work; the whole layout is what a bit-exact resume needs again.
        ranks_per_node: of them, neighbours that dealt a machine's packs out by cost.
    """
    step = len(history)
    reads = reads_until(feed.reads, step)
    parents = [run.config.continues] if run.config.continues else sorted(set(run.config.initial.values()))
    return {
        "run": run.run,
        "stage": run.config.stage,
        "step": step,
        "plan": reads[-1]["plan"],
        "tokenizer": feed.plan.tokenizer,
        "segments": [segment["digest"] for read in reads for segment in read["segments"]],
        "reads": reads,
        "step_range": [reads[0]["steps"][0], step],
        "parent": parents[0] if len(parents) == 1 else parents or None,
        "code_version": code_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "layout": layout_of(run, num_ranks=num_ranks, ranks_per_node=ranks_per_node),
        "config": plain(run.config),
        "metrics": summary(history),
        "loader": feed.state_dict(),
    }


def layout_of(run: Run, *, num_ranks: int, ranks_per_node: int) -> dict:
    """Return how the work is shared out: on the same layout a run goes on bit for bit."""
    shared = {"ranks": num_ranks, "ranks_per_node": ranks_per_node, "threads": run.threads}
    return {**shared, **plain(run.parallel)}


def changed_layout(record: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return in words in what a run's layout is not that of the checkpoint it goes on from."""
    theirs = record["layout"]
    return [
        f"{name} {theirs[name]} before, {own[name]} now" for name in own if theirs.get(name, own[name]) != own[name]
    ]


def summary(history: Sequence[dict]) -> dict:
    """Return the whole run's figures; the vision share is of tokens, its spread that from step to step."""
    losses = [line["loss"] for line in history]
    tokens = sum(line["tokens"] for line in history)
    vision = sum(line["vision_tokens"] for line in history)
    shares = [line["vision_tokens"] / max(1, line["tokens"]) for line in history]
    mean = sum(shares) / len(shares)
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "losses": losses,
        "probe_before": history[0].get("probe_before"),
        "probe_after": history[-1].get("probe_after"),
        "vision_share": vision / max(1, tokens),
        "vision_share_std": math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares)),
        "tokens": tokens,
        "vision_tokens": vision,
        "targets": sum(line["targets"] for line in history),
    }


def checkpoint_steps(config: TrainConfig) -> list[int]:
    """Return after how many steps a run leaves a checkpoint: always at the end."""
    every = config.checkpoint_every or config.steps
    return sorted({*range(every, config.steps, every), config.steps})


@cache
def code_version() -> str:
    """Return the digest of the source files that read data and train."""
    paths = sorted(path for folder in ("k25_pipelines", "trainers") for path in (SOURCES / folder).rglob("*.py"))
    return digest([[path.relative_to(SOURCES).as_posix(), path.read_bytes()] for path in paths])
