"""`k25 train`: a stage by hand."""

import argparse
from pathlib import Path

from k25_pipelines.commands.parts import command
from k25_pipelines.environment import open_lake, run_child

STAGES = ("warmup", "vit", "projector", "joint", "long_context")


def add_commands(commands) -> None:
    """Add them to the parser."""
    train = command(
        commands,
        "train",
        _train,
        purpose="train one stage by hand: what the Dagster asset launches",
        example="k25 train warmup --scale toy",
    )
    train.add_argument("stage", choices=STAGES)
    train.add_argument("--config", type=Path, help="a run file; made from the stage's recipe if not given")
    train.add_argument("--scale", choices=["demo", "toy"], default="demo")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint (also the default)")
    train.add_argument("--restart", action="store_true", help="a new run beside the older one, from step 0")


def _train(options: argparse.Namespace) -> int:
    lake = open_lake()  # so that a missing lake is said before a trainer starts
    words = [options.stage, "--scale", options.scale, "--store", lake.url]
    words += ["--config", str(options.config.resolve())] if options.config else []
    return run_child("trainers.launch", *words, *(["--restart"] if options.restart else []))
