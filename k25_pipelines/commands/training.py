"""`k25 train`: a stage by hand."""

import argparse
import os
from pathlib import Path

from k25_pipelines.commands.parts import command, count
from k25_pipelines.environment import open_lake, run_child

STAGES = ("warmup", "vit", "projector", "joint", "long_context", "longest_context")
EXAMPLES = (
    "k25 train warmup --scale toy",
    "k25 train joint --ranks 4 --expert-ranks 2 --recompute norm,swiglu",
    "k25 train warmup --set weight_decay=0.1 --set model.language.layers=4 --steps 100",
    "k25 train joint --continue joint-0123456789ab/00000400 --plan FORK",
    "k25 train joint --initial import-0123456789ab/00000000 --lora 8 --learning-rate 1e-3",
)
PATHS = ("config", "write")
PASSED = (
    "scale", "restart", "ranks", "threads", "expert_ranks", "pipeline_stages", "virtual_stages", "coupled_vision",
    "recompute", "offload", "tensorboard", "lora", "optimizer", "steps", "learning_rate", "set", "initial", "continue",
    "plan", *PATHS,
)  # fmt: skip
"""Options that the launcher reads under the same names."""


def add_commands(commands) -> None:
    """Add them to the parser."""
    train = command(
        commands,
        "train",
        _train,
        purpose="train one stage by hand: what the Dagster asset launches",
        example="\n  ".join(EXAMPLES),
    )
    train.add_argument("stage", choices=STAGES)
    train.add_argument("--scale", choices=["demo", "toy"], default="demo")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint (also the default)")
    train.add_argument("--restart", action="store_true", help="a new run beside the older one, from step 0")
    train.add_argument(
        "--continue",
        metavar="RUN/STEP",
        help="a new run that goes on from another's checkpoint, on a plan with the same steps before it",
    )
    train.add_argument("--plan", metavar="PLAN", help="train on this plan, such as a fork, in place of the recipe's")
    train.add_argument("--config", type=Path, help="a run file; made from the stage's recipe if not given")
    train.add_argument("--write", type=Path, metavar="FILE", help="write the run file there and train nothing")
    _add_sharing(train)
    _add_learning(train)


def _add_sharing(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("how the work is shared (what is learnt stays the same but for rounding)")
    group.add_argument("--ranks", type=count, metavar="N", help="processes on this machine; 1 if not given")
    group.add_argument("--threads", type=count, metavar="N", help="of a rank; a rank's part of the cores if not given")
    group.add_argument("--expert-ranks", type=count, metavar="N", help="ranks that share one set of experts")
    group.add_argument(
        "--pipeline-stages", type=count, metavar="N", help="ranks that the decoder's layers are spread over"
    )
    group.add_argument("--virtual-stages", type=count, metavar="N", help="runs of layers that each of them has")
    group.add_argument("--coupled-vision", action="store_true", help="media are encoded where their packs are (no DEP)")
    group.add_argument("--recompute", metavar="PARTS", help="made again for the backward pass: norm,swiglu,mla_up")
    group.add_argument("--offload", action="store_true", help="keep what the backward pass needs in the CPU's memory")
    group.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")


def _add_learning(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("what is learnt (each gives the run another name)")
    group.add_argument("--steps", type=count, metavar="N", help="the plan is extended if it is shorter")
    group.add_argument("--learning-rate", type=float, metavar="RATE", help="the peak")
    group.add_argument("--optimizer", choices=["muonclip", "adamw"])
    group.add_argument("--lora", type=count, metavar="RANK", help="train low-rank adapters alone, under adamw")
    group.add_argument(
        "--initial",
        action="append",
        metavar="[MODULE=]RUN/STEP",
        help="where a module starts, or without a name all that the checkpoint holds, with its sizes; or: random",
    )
    group.add_argument("--set", action="append", metavar="FIELD=VALUE", help="any other field of the run file's config")


def _train(options: argparse.Namespace) -> int:
    lake = open_lake()  # so that a missing lake is said before a trainer starts
    os.environ["K25_PARENT_PID"] = str(os.getpid())  # the trainer ends with this command
    words = [options.stage, "--store", lake.url]
    for name in PASSED:
        words += _words(f"--{name.replace('_', '-')}", getattr(options, name), is_path=name in PATHS)
    return run_child("trainers.launch", *words)


def _words(option: str, value: object, *, is_path: bool) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    if isinstance(value, list):
        return [f"{option}={each}" for each in value]
    return [f"{option}={Path(str(value)).absolute() if is_path else value}"]
