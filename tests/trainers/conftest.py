"""A lake with the small demo corpus, indexed and planned: what the trainers of these tests read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infra.demo_corpus import DATASETS
from infra.demo_corpus.build import build
from k25_pipelines.catalog.registry import Registration, index_dataset, register
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.local import LocalStore
from trainers.config import Run, TrainConfig
from trainers.recipes import PARENTS, stage_config, stage_recipe


@pytest.fixture(scope="session")
def lake(tmp_path_factory) -> LocalStore:
    """The small corpus in a folder, every dataset registered where it lies."""
    folder = tmp_path_factory.mktemp("lake")
    store = LocalStore(str(folder))
    build(store, folder / "wheels", small=True, progress=lambda done, total, what: None)
    for dataset in DATASETS:
        register(store, Registration(**{**dataset, "uri": f"{folder}/{dataset['uri']}"}))
        index_dataset(store, dataset["name"])
    return store


@pytest.fixture(scope="session")
def toy_config(lake) -> Callable[..., TrainConfig]:
    """A stage at toy scale from random weights: `toy_config("joint", steps=4)`."""

    def made(stage: str, **changes) -> TrainConfig:
        plan = make_plan(lake, parse_recipe(stage_recipe(stage, "toy")))
        nowhere = {module: "nowhere" for module in PARENTS[stage]}
        return replace(stage_config(stage, "toy", plan=plan, initial=nowhere), **{"initial": {}, **changes})

    return made


@pytest.fixture
def toy_run(lake, toy_config, tmp_path) -> Callable[..., Run]:
    """A run of a stage with a work folder of its own: `toy_run("a", "joint", steps=4)`."""

    def made(name: str, stage: str, *, stop_at: int | None = None, **changes) -> Run:
        work: Path = tmp_path / name
        config = toy_config(stage, **changes)
        return Run(config=config, store=lake.url, run=name, work=str(work), threads=1, stop_at=stop_at)

    return made
