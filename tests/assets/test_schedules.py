"""What starts runs by itself: the nightly retraining and the sensor of new datasets."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

import dagster as dg
import pytest

from assets.outputs import EDITION_TAG
from assets.plans import edition_recipe
from assets.resources import retraining_from_env
from assets.schedules import nightly_retraining, registered_datasets
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import load_manifest, register
from k25_pipelines.errors import K25Error
from tests.assets.conftest import ROOT

NIGHT = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)


def test_a_night_is_an_edition_of_its_own(place):
    context = dg.build_schedule_context(place.instance, scheduled_execution_time=NIGHT)
    request = nightly_retraining.evaluate_tick(context).run_requests[0]
    assert (request.run_key, request.tags[EDITION_TAG]) == ("20261124T0200Z", "20261124T0200Z")


def test_no_retraining_starts_beside_one_that_runs(place):
    job = place.defs.resolve_job_def("retraining")
    run = place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    context = dg.build_schedule_context(place.instance, scheduled_execution_time=NIGHT)
    tick = nightly_retraining.evaluate_tick(context)
    assert (tick.run_requests, tick.skip_message) == ([], f"retraining run {run.run_id} has not ended yet")


def test_an_edition_has_a_name_and_a_seed_of_its_own():
    recipes = [edition_recipe("joint", scale="toy", edition=name) for name in ("main", "20261124T0200Z", "other")]
    assert [recipe["name"] for recipe in recipes] == ["joint-toy", "joint-toy-20261124T0200Z", "joint-toy-other"]
    assert len({recipe["seed"] for recipe in recipes}) == 3


@pytest.mark.parametrize(("chosen", "stages"), [("", ("a", "b", "c")), ("b", ("b",)), ("c,a", ("a", "c"))])
def test_stages_of_a_retraining_are_chosen_by_name(monkeypatch, chosen, stages):
    monkeypatch.setenv("K25_RETRAIN_STAGES", chosen)
    assert retraining_from_env(("a", "b", "c")).stages == stages


def test_an_unknown_stage_of_a_retraining_is_named(monkeypatch):
    monkeypatch.setenv("K25_RETRAIN_STAGES", "warmup,pretrain")
    with pytest.raises(K25Error, match="K25_RETRAIN_STAGES names pretrain; the stages are warmup, vit"):
        retraining_from_env(("warmup", "vit"))


def test_the_sensor_takes_in_what_was_registered(place):
    entry = Registration(name="notes", uri=f"{place.lake.url}/raw/code", kind="jsonl", licence="MIT", source="tests")
    register(place.lake, entry)
    result = tick_of_sensor(place)
    [added] = result.dynamic_partitions_requests
    assert "notes" in added.partition_keys
    assert [(request.run_key, request.partition_key) for request in result.run_requests] == [("index-notes", "notes")]


def test_the_sensor_rests_when_nothing_is_new(place):
    place.index("wiki")
    from assets.instance import add_datasets

    add_datasets(place.instance, place.lake)
    assert "all 7 datasets are known" in tick_of_sensor(place).skip_message


def tick_of_sensor(place) -> dg.SensorResult | dg.SkipReason:
    lake = place.resources["lake"]
    return registered_datasets(dg.build_sensor_context(place.instance, resources={"lake": lake}))


@pytest.fixture(scope="module")
def daemon(indexed):
    """A real daemon whose schedule fires every minute, over a lake where a dataset was registered by hand."""
    uri = f"{indexed.lake.url}/raw/code"
    register(indexed.lake, Registration(name="notes", uri=uri, kind="jsonl", licence="MIT", source="tests"))
    own = {"K25_RETRAIN": "on", "K25_RETRAIN_CRON": "* * * * *", "K25_RETRAIN_STAGES": "warmup"}
    with (indexed.folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-w", str(ROOT / "workspace.yaml")],
            cwd=ROOT,
            env={**indexed.environment, **own},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield indexed
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(300)
def test_the_daemon_retrains_on_the_minute(daemon):
    """A real tick, a real run: an edition's plan and checkpoint are made, and the main ones are not touched."""
    run = wait_for_run(daemon.instance, "retraining", seconds=240)
    assert run.status == dg.DagsterRunStatus.SUCCESS, (daemon.folder / "daemon.log").read_text()[-4000:]
    made = [info.key for info in daemon.lake.list("k25/outputs/toy/")]
    edition = f"k25/outputs/toy/{run.tags[EDITION_TAG]}/"
    assert made[:2] == [f"{edition}language_checkpoint.json", f"{edition}warmup_plan.json"]
    assert [key for key in made if "/main/" in key] == []


@pytest.mark.timeout(300)
def test_the_daemon_indexes_what_was_registered(daemon):
    tags = {"dagster/partition": "notes"}
    run = wait_for_run(daemon.instance, "index_datasets", tags=tags, seconds=240)
    assert run.status == dg.DagsterRunStatus.SUCCESS, (daemon.folder / "daemon.log").read_text()[-4000:]
    assert load_manifest(daemon.lake, "notes").num_lines == 30


def wait_for_run(
    instance: dg.DagsterInstance, job: str, *, seconds: float, tags: dict[str, str] | None = None
) -> dg.DagsterRun:
    """Return the first run of a job that has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = [run for run in instance.get_runs(dg.RunsFilter(job_name=job, tags=tags)) if run.is_finished]
        if ended:
            return ended[0]
        time.sleep(1)
    raise AssertionError(f"no run of {job} ended within {seconds:.0f} s")
