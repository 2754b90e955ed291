"""A lake with the small demo corpus, indexed in place, and one rank in this process to train on it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.demo_corpus import DATASETS
from infra.demo_corpus.build import build
from k25_pipelines.catalog.registry import Registration, index_dataset, register
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.local import LocalStore
from k25_pipelines.storage.store import Store
from trainers.config import Run, TrainConfig
from trainers.engine import join_ranks, leave_ranks
from trainers.pretrain import main
from trainers.recipes import PARENTS, stage_config, stage_recipe
from trainers.resuming import newest_record

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture(scope="module")
def lake(first_lake, tmp_path_factory) -> LocalStore:
    """The small corpus in a folder, indexed; each file of tests has a copy of its own for plans, runs and names."""
    folder = tmp_path_factory.mktemp("lake")
    for part in ("raw", "k25"):
        shutil.copytree(first_lake / part, folder / part)
    return LocalStore(str(folder))


@pytest.fixture(scope="session")
def first_lake(tmp_path_factory) -> Path:
    """Every dataset registered where it lies: in this folder."""
    folder = tmp_path_factory.mktemp("first-lake")
    store = LocalStore(str(folder))
    build(store, folder / "wheels", small=True, progress=lambda done, total, what: None)
    more = [{"key": name, "text": f"{name} counts the stones. " * 1000} for name in ("Ada", "Emmy")]
    store.put("raw/long_documents/more.jsonl", "".join(f"{json.dumps(each)}\n" for each in more).encode())
    for dataset in DATASETS:
        register(store, Registration(**{**dataset, "uri": f"{folder}/{dataset['uri']}"}))
        index_dataset(store, str(dataset["name"]))
    return folder


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory) -> Iterator[None]:
    """This process as a group of one; the group stands until the session ends, since DeepSpeed joins only once."""
    threads, is_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    before = dict(os.environ)
    join_ranks(tmp_path_factory.mktemp("ranks"), threads=1)
    os.environ.clear()
    os.environ.update(before)
    yield
    leave_ranks()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_strict)


@contextmanager
def as_one_rank() -> Iterator[None]:
    """Stand in the environment of a lone rank; outside, a trainer that a test starts must not take itself for one."""
    before = dict(os.environ)
    os.environ.update(ALONE)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def toy_config(lake: Store, stage: str, *, recipe: Mapping[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """Return a stage's toy config from random weights, on a plan of its recipe with some fields changed."""
    plan = make_plan(lake, parse_recipe({**stage_recipe(stage, "toy"), **(recipe or {})}))
    config = stage_config(stage, "toy", plan=plan, initial=dict.fromkeys(PARENTS[stage], "nowhere"))
    return replace(config, **{"initial": {}, **changes})


def train(lake: Store, config: TrainConfig, run: str, work: Path, *, stop_at: int | None = None) -> dict:
    """Train in this process and return the record of the newest checkpoint; needs the fixture `one_rank`."""
    with as_one_rank():
        main(Run(config=config, store=lake.url, run=run, work=str(work / run), threads=1, stop_at=stop_at))
    record = newest_record(lake, run)
    assert record is not None
    assert json.loads((work / run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == record["step"] - 1
    return record
