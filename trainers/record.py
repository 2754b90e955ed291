"""A checkpoint's record: everything known of what made it, as plain data. No clock, host or path stands in it."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from k25_pipelines.keys import digest
from trainers.config import Run, TrainConfig, plain
from trainers.feed import Feed, reads_until

PACKAGES = ("deepspeed", "numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg", "tokenizers", "torch")
SOURCES = Path(__file__).resolve().parent.parent


def checkpoint_record(run: Run, feed: Feed, history: Sequence[dict], *, num_ranks: int) -> dict:
    """Return the record after the steps of `history`, all but the files and the digest.

    Args:
        run: what was run.
        feed: what it read.
        history: the metrics of each step since step 0.
        num_ranks: processes that shared the work; with the threads, what a bit-exact resume needs again.
    """
    step = len(history)
    reads = reads_until(feed.reads, step)
    parents = sorted(set(run.config.initial.values()))
    return {
        "run": run.run,
        "stage": run.config.stage,
        "step": step,
        "plan": reads[-1]["plan"],
        "segments": [segment["digest"] for read in reads for segment in read["segments"]],
        "reads": reads,
        "step_range": [0, step],
        "parent": parents[0] if len(parents) == 1 else parents or None,
        "code_version": code_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "layout": {"ranks": num_ranks, "threads": run.threads},
        "config": plain(run.config),
        "metrics": summary(history),
        "loader": feed.state_dict(),
    }


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
