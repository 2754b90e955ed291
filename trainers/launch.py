"""Train one stage by hand: what the Dagster asset launches. A stage and a lake in, a run file and its trainer out.

Run: python -m trainers.launch joint --scale demo --store s3://lake --ranks 2

Whatever cannot work is said before a rank is started.
"""

import argparse
import json
import os
import subprocess
import sys
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from k25_pipelines.errors import K25Error
from k25_pipelines.keys import random_key
from k25_pipelines.storage.store import Store, open_store
from trainers.changes import WHOLE, Changes, changed_config
from trainers.checks import check_machine, check_run
from trainers.config import ParallelConfig, Run, TrainConfig, check_config, load_run, run_name
from trainers.lifetime import PARENT, end_with_parent
from trainers.ranks import run_ranks
from trainers.recipes import SCALES, STAGES
from trainers.run_lock import check_unlocked

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTED = 130
LEARNT = ("restart", "continue", "plan", "lora", "optimizer", "steps", "learning_rate", "set", "initial")
"""Options that change what is learnt, and so are not for a run file that stands."""


def launch_config(lake: Store, stage: str, *, scale: str) -> TrainConfig:
    """Return the config of a stage on the lake's datasets, from the newest checkpoints of its parents' recipes.

    Raises:
        CheckpointError: a parent stage has not been trained to its end.
    """
    return changed_config(lake, stage, scale=scale, changes=Changes())


def main() -> int:
    """Write the run file and run the trainer in the foreground; 2 with one line where it cannot work."""
    options = _parser().parse_args()
    try:
        run = _run_of_file(options) if options.config else _run_of_stage(options)
        run = _shared(run, options)
        check_config(run.config)
        check_run(run, options.ranks)
        if not options.write:
            check_machine(run)
            check_unlocked(Path(run.work), run=run.run)  # before run file and logs of who trains it are overwritten
        path = _write(run, options.write)
    except (K25Error, ValueError) as error:
        sys.stderr.write(f"k25 train: {' '.join(str(error).split())}\n")
        return 2
    if options.write:
        sys.stdout.write(f"{path}\n")
        return 0
    sys.stderr.write(f"run {run.run}; its checkpoints: {run.store}/k25/checkpoints/{run.run}/\n")
    return _start(run, path, num_ranks=options.ranks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train one stage by hand.", epilog="example: k25 train warmup")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--scale", choices=SCALES, default="demo")
    parser.add_argument("--store", required=True)
    parser.add_argument("--config", type=Path, help="a run file to train as it is")
    parser.add_argument("--restart", action="store_true", help="a new seed, hence a new run beside the older ones")
    parser.add_argument("--continue", help="another run's checkpoint to go on from, RUN/STEP")
    parser.add_argument("--plan", help="a plan to train on, such as a fork")
    parser.add_argument("--write", type=Path, help="write the run file there, and train nothing")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--expert-ranks", type=int)
    parser.add_argument("--pipeline-stages", type=int)
    parser.add_argument("--virtual-stages", type=int)
    parser.add_argument("--coupled-vision", action="store_true")
    parser.add_argument("--recompute", type=_names)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--lora", type=int)
    parser.add_argument("--optimizer")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--initial", action="append", default=[])
    return parser


def _run_of_stage(options: argparse.Namespace) -> Run:
    lake, continues = open_store(options.store), getattr(options, "continue")
    if continues and options.restart:
        raise ValueError("--restart begins at step 0, and --continue goes on; leave one out")
    changes = Changes(
        steps=options.steps,
        learning_rate=options.learning_rate,
        optimizer=options.optimizer,
        lora_rank=options.lora,
        initial=_pairs("--initial", options.initial, name=WHOLE),
        fields=_pairs("--set", options.set),
        plan=options.plan,
        continues=continues,
    )
    config = changed_config(lake, options.stage, scale=options.scale, changes=changes)
    if options.restart:
        config = replace(config, seed=random_key("restart", uuid.uuid4().hex) >> 33)
    run = run_name(config)
    threads = max(1, (os.cpu_count() or 1) // max(1, options.ranks))
    return Run(config=config, store=lake.url, run=run, work=str(ROOT / ".k25" / "work" / run), threads=threads)


def _run_of_file(options: argparse.Namespace) -> Run:
    for name in LEARNT:
        if getattr(options, name):
            word = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{word} changes what is learnt, and --config names a run as it is; change {options.config}"
            )
    run = load_run(options.config)
    if run.config.stage != options.stage:
        raise ValueError(f"{options.config} is a run of stage {run.config.stage}, not {options.stage}; name that stage")
    return run


def _shared(run: Run, options: argparse.Namespace) -> Run:
    """Return a run with what the options say of ranks and switches, which change nothing of what is learnt."""
    told = {name: getattr(options, name) for name in ("expert_ranks", "pipeline_stages", "virtual_stages")}
    parallel: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    parallel |= {"decoupled_vision": False} if options.coupled_vision else {}
    own: dict[str, Any] = {name: True for name in ("offload", "tensorboard") if getattr(options, name)}
    own |= {name: getattr(options, name) for name in ("threads", "recompute") if getattr(options, name) is not None}
    if options.ranks < 1:
        raise ValueError(f"--ranks is {options.ranks}; it must be at least 1")
    return replace(run, **own, parallel=ParallelConfig(**{**asdict(run.parallel), **parallel}))


def _write(run: Run, path: Path | None) -> Path:
    target = path or Path(run.work) / "pretrain.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(asdict(run), indent=1, sort_keys=True, allow_nan=False))
    except OSError as error:
        what = f"--write {path}" if path else f"run file {target}"
        raise ValueError(f"{what}: {error.strerror}; name a file that can be written") from error
    return target


def _start(run: Run, path: Path, *, num_ranks: int) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads), PARENT: str(os.getpid())}
    words = ["trainers.pretrain", str(path)]
    if num_ranks > 1:
        return run_ranks(num_ranks, words, logs=Path(run.work), environment=environment)
    return subprocess.call([sys.executable, "-m", *words], cwd=ROOT, env=environment)


def _pairs(option: str, told: list[str], *, name: str | None = None) -> dict[str, str]:
    """Return what `NAME=VALUE` words say; without a name they are of `name`, where it is given."""
    pairs = {}
    for words in told:
        key, is_pair, value = words.partition("=")
        if not is_pair and name:
            key, value = name, words
        if not (key and value) or (not is_pair and not name):
            raise ValueError(f"{option} {words}: write NAME=VALUE, such as {option} {_EXAMPLE[option]}")
        if key in pairs:
            raise ValueError(f"{option} names {key} twice; leave one out")
        pairs[key] = value
    return pairs


_EXAMPLE = {"--set": "weight_decay=0.1", "--initial": "vision=RUN/STEP"}


def _names(words: str) -> tuple[str, ...]:
    return tuple(word for word in words.split(",") if word)


if __name__ == "__main__":
    end_with_parent()
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # `k25` says what to do
        sys.exit(INTERRUPTED)
