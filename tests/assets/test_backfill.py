"""Dagster's own command line on our definitions: a backfill, with no server and no daemon."""

import subprocess
import sys
import time

import dagster as dg

from assets.instance import add_datasets
from k25_pipelines.catalog.registry import dataset_versions
from tests.assets.conftest import ROOT


def test_a_backfill_indexes_every_dataset(place):
    names = add_datasets(place.instance, place.lake)
    words = ["job", "backfill", "-w", "workspace.yaml", "-j", "index_datasets", "--all", "yes", "--noprompt"]
    done = subprocess.run(
        [sys.executable, "-m", "dagster", *words], cwd=ROOT, env=place.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert statuses_at_the_end(place.instance) == dict.fromkeys(names, dg.DagsterRunStatus.SUCCESS)
    assert {name: len(dataset_versions(place.lake, name)) for name in names} == dict.fromkeys(names, 1)


def statuses_at_the_end(instance: dg.DagsterInstance, seconds: float = 150) -> dict[str, dg.DagsterRunStatus]:
    """Return partition -> status of its run, once all have ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = instance.get_runs(dg.RunsFilter(job_name="index_datasets"))
        if runs and all(run.is_finished for run in runs):
            break
        time.sleep(0.5)
    return {run.tags["dagster/partition"]: run.status for run in runs}
