"""A tiny lake with a Dagster instance of its own, and the real definitions over both."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from tests.assets.tiny_lake import build

with warnings.catch_warnings():  # pydantic and Dagster deprecate each other's names while the definitions load
    warnings.simplefilter("ignore")
    import dagster as dg

    from assets.definitions import definitions

from k25_pipelines.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent


NOTICES = (
    "ignore::dagster.PreviewWarning",
    "ignore::dagster.BetaWarning",
    "ignore:AssetExecutionContext.run_id is deprecated:DeprecationWarning",  # Dagster's own Pipes session reads it
    "ignore:The .__fields__. attribute is deprecated:DeprecationWarning",  # Dagster reads it of every resource
)
"""Dagster's notices about its own interfaces, and the one that it earns from pydantic."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the notices as they are."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for notice in NOTICES:
                item.add_marker(pytest.mark.filterwarnings(notice))


@dataclass(frozen=True)
class Place:
    """A lake, an instance and a work folder below one temporary folder."""

    folder: Path
    lake: Store
    instance: dg.DagsterInstance
    layout: Mapping[str, object] = field(default_factory=dict)
    """Fields of the trainer's resource."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a process that works here, at toy scale."""
        own = {
            "K25_LAKE": self.lake.url,
            "K25_WORK": str(self.folder / "work"),
            "K25_SCALE": "toy",
            "K25_THREADS": "1",
            "DAGSTER_HOME": str(self.folder / "dagster"),
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("K25_")}
        return {**clean, **own}

    @property
    def resources(self) -> dict[str, object]:
        """Return the resources of the definitions for this place."""
        from assets.resources import LakeResource, NoOutputs, TrainerResource

        trainer = TrainerResource(
            scale="toy",
            python=sys.executable,
            work=str(self.folder / "work"),
            threads=1,
            grace_seconds=5,
            **self.layout,
        )
        return {"lake": LakeResource(url=self.lake.url), "trainer": trainer, "io_manager": NoOutputs()}

    @cached_property
    def defs(self) -> dg.Definitions:
        """Return the graph over this place."""
        return definitions(self.resources)

    def make(
        self,
        *names: str,
        partition: str | None = None,
        job: str = "demo",
        tags: Mapping[str, str] | None = None,
        raise_on_error: bool = True,
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets of a job, with their checks, in this process."""
        return self.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in names] or None,
            partition_key=partition,
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=raise_on_error,
        )

    def index(self, *names: str) -> None:
        """Index datasets, each a run of its own."""
        self.instance.add_dynamic_partitions("dataset", list(names))
        for name in names:
            self.make(partition=name, job="index_datasets")

    def metadata(self, asset: str) -> dict[str, object]:
        """Return the metadata of an asset's newest materialization."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        return {name: entry.value for name, entry in event.asset_materialization.metadata.items()}


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    """An un-indexed tiny lake with a persistent instance."""
    from assets.instance import open_instance

    lake = build(tmp_path / "lake")
    with open_instance(tmp_path / "dagster") as instance:
        yield Place(tmp_path, lake, instance)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Iterator[Place]:
    """A tiny lake whose datasets are indexed, shared by a module's tests."""
    from assets.data_layer import known_datasets
    from assets.instance import open_instance

    folder = tmp_path_factory.mktemp("indexed")
    lake = build(folder / "lake")
    with open_instance(folder / "dagster") as instance:
        shared = Place(folder, lake, instance)
        shared.index(*known_datasets(lake))
        yield shared
