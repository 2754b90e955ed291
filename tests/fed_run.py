"""A run without a model: the trainers' feed on a tiny lake, one rank, checkpoints that are records alone."""

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from k25_pipelines import cli, planning
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import Store
from tests.assets import tiny_lake
from trainers.config import Run, TrainConfig, checkpoint_key
from trainers.feed import Feed, Ranks
from trainers.recipes import stage_config
from trainers.record import checkpoint_record

RECIPE: dict[str, Any] = {
    "name": "fed",
    "seed": 5,
    "pack_tokens": 256,
    "packs_per_step": 2,
    "lanes": 1,
    "pack_window": 16,
    "steps": 12,
    "max_image_tokens": 64,
    "sources": {
        "grounding": {"weight": 3, "augment": ["resize", "crop", "flip", "colour"]},
        "captions": {"weight": 1},
        "wiki": {"weight": 2},
    },
}
METRICS = {"loss": 1.0, "tokens": 1, "vision_tokens": 0, "targets": 1}
HALF_BROKEN = "raw/grounding/0003.png"


class Lone:
    """A group of one."""

    rank, num_ranks = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Threaded:
    """One of a group of threads."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier):
        self.rank, self.num_ranks, self._values, self._barrier = rank, len(values), values, barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(60)
        gathered = list(self._values)
        self._barrier.wait(60)
        return gathered


LONE = Lone()


def new_lake(folder: Path) -> Store:
    """A tiny lake, indexed, in which one picture cannot be decoded; its good bytes are kept beside it."""
    lake = tiny_lake.build(folder, num_broken=0)
    whole = lake.get(HALF_BROKEN)
    lake.put("kept.png", whole)
    lake.put(HALF_BROKEN, whole[:60] + bytes(len(whole) - 72) + whole[-12:])  # an index looks at its two ends
    return tiny_lake.index_all(lake)


def planned(lake: Store, *, segment_steps: int = 3, **fields: Any) -> str:
    return make_plan(lake, parse_recipe({**RECIPE, **fields}), segment_steps=segment_steps)


def config_of(plan: str, *, steps: int = 10, stage: str = "vit") -> TrainConfig:
    return replace(stage_config("vit", "toy", plan=plan), stage=stage, steps=steps)


def feed_run(
    lake: Store,
    config: TrainConfig,
    run: str,
    work: Path,
    *,
    until: int | None = None,
    save: tuple[int, ...] = (),
    ranks: Ranks = LONE,
) -> list[dict]:
    """Read a run's steps up to one, from its newest checkpoint on, leave records where told, and return the last."""
    until = config.steps if until is None else until
    told = Run(config=config, store=lake.url, run=run, work=str(work / run), threads=1)
    with Feed(told, lake, ranks) as feed:
        record = newest(lake, run)
        if record:
            feed.resume(record)
        history = [dict(METRICS) for _ in range(record["step"] if record else 0)]
        for step in range(len(history), until):
            batch = feed.batch(step)
            history.append({**METRICS, "digest": feed.trained(step, batch)})
            if step + 1 in save:
                feed.write_log()
                made = checkpoint_record(told, feed, history, num_ranks=1)
                lake.put(f"{checkpoint_key(run, step + 1)}/record.json", json.dumps(made).encode())
    return history


def newest(lake: Store, run: str) -> Mapping[str, Any] | None:
    keys = [info.key for info in lake.list(f"k25/checkpoints/{run}/") if info.key.endswith("/record.json")]
    return json.loads(lake.get(keys[-1])) if keys else None


def rows_of(lake: Store, plan: str, steps: range) -> list[dict]:
    opened = planning.open_plan(lake, plan)
    return [row for step in steps for row in opened.rows(step).to_pylist()]


def k25(*words: object) -> int:
    """Run a command in this process, in the lake of the environment, and return its exit code."""
    return cli.main([str(word) for word in words])
