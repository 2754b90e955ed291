"""Train one stage by hand: what the Dagster asset launches. A stage and a lake in, a run file and its trainer out.

Run: python -m trainers.launch joint --scale demo --store s3://lake
"""

import argparse
import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

from k25_pipelines.errors import CheckpointError, K25Error, ObjectNotFoundError
from k25_pipelines.keys import random_key
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import Store, open_store
from trainers.config import TrainConfig, plain, run_name
from trainers.recipes import PARENTS, SCALES, STAGES, stage_config, stage_recipe

ROOT = Path(__file__).resolve().parent.parent


def launch_config(lake: Store, stage: str, *, scale: str) -> TrainConfig:
    """Return the config of a stage on the lake's datasets, from the newest checkpoints of its parents' recipes.

    Raises:
        CheckpointError: a parent stage has not been trained to its end.
    """
    plan = make_plan(lake, parse_recipe(stage_recipe(stage, scale)))
    initial = {}
    for module, parent in PARENTS[stage].items():
        config = launch_config(lake, parent, scale=scale)
        initial[module] = f"k25/checkpoints/{run_name(config)}/{config.steps:08d}"
        try:
            lake.head(f"{initial[module]}/record.json")
        except ObjectNotFoundError:
            raise CheckpointError(
                f"stage {stage} starts from the end of {parent}, which is not in {lake.url}; run k25 train {parent}"
            ) from None
    return stage_config(stage, scale, plan=plan, initial=initial)


def main() -> int:
    """Write the run file and run the trainer in the foreground."""
    parser = argparse.ArgumentParser(description="Train one stage by hand.", epilog="example: k25 train warmup")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--scale", choices=SCALES, default="demo")
    parser.add_argument("--store", required=True)
    parser.add_argument("--config", type=Path, help="a run file to train as it is")
    parser.add_argument("--restart", action="store_true", help="a new seed, hence a new run beside the older ones")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    try:
        path = options.config or _write_run(options)
    except K25Error as error:
        sys.stderr.write(f"k25 train: {error}\n")
        return 2
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    return subprocess.call([sys.executable, "-m", "trainers.pretrain", str(path)], cwd=ROOT, env=environment)


def _write_run(options: argparse.Namespace) -> Path:
    lake = open_store(options.store)
    config = launch_config(lake, options.stage, scale=options.scale)
    if options.restart:
        config = replace(config, seed=random_key("restart", uuid.uuid4().hex) >> 33)
    run = run_name(config)
    work = ROOT / ".k25" / "work" / run
    work.mkdir(parents=True, exist_ok=True)
    path = work / "pretrain.json"
    told = {"config": plain(config), "store": lake.url, "run": run, "work": str(work), "threads": options.threads}
    path.write_text(json.dumps(told, indent=1, sort_keys=True))
    sys.stderr.write(f"run {run}; its checkpoints: {lake.url}/k25/checkpoints/{run}/\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
