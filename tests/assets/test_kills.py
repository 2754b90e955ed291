"""Killed at any moment, a run goes on and ends in the same losses and weights, bit for bit."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import pytest

from assets.instance import open_instance
from assets.outputs import checkpoint_record, read_output
from assets.processes import marked_processes, wait_until
from tests.assets.conftest import ROOT, Place
from tests.assets.tiny_lake import build

DATASETS = ("captions", "clips", "grounding")
STAGE = ("vit_plan", "vit_checkpoint")


def trained(place: Place) -> dict:
    """Return the record of the checkpoint that the place made last."""
    output = read_output(place.lake, "vit_checkpoint", scale="toy", edition="main")
    record = checkpoint_record(place.lake, output["checkpoint"])
    assert record is not None
    return record


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    """The record of a run that nobody disturbed, in a lake of its own."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with open_instance(folder / "dagster") as instance:
        place = Place(folder, build(folder / "lake"), instance)
        place.index(*DATASETS)
        place.make(*STAGE)
        return trained(place)


def run_folder(place: Place) -> Path | None:
    return next(iter((place.folder / "work").glob("vit-*")), None)


def is_young(place: Place) -> bool:
    """The trainer's process is there, and has not taken a step."""
    folder = run_folder(place)
    return folder is not None and bool(marked_processes(folder / "pretrain.json"))


def has_stepped(place: Place, steps: int = 3) -> bool:
    """Some steps are taken, some are left."""
    folder = run_folder(place)
    metrics = folder / "metrics.jsonl" if folder else None
    return metrics is not None and metrics.exists() and len(metrics.read_text().splitlines()) >= steps


def is_saving(place: Place) -> bool:
    """Some files of a checkpoint are uploaded and its record is not; the trainer is held there, stopped."""
    if not half_uploads(place):
        return False
    trainers = marked_processes(run_folder(place) / "pretrain.json")
    for process in trainers:
        process.suspend()
    if half_uploads(place):
        return True
    for process in trainers:
        process.resume()
    return False


def half_uploads(place: Place) -> list[Path]:
    steps = Path(place.lake.url).glob("k25/checkpoints/vit-*/*")
    return [step for step in steps if any(step.iterdir()) and not (step / "record.json").exists()]


def same(record: dict, other: dict) -> bool:
    """Losses, weights and all that made them agree."""
    names = ("key", "digest", "metrics", "config", "plan", "segments", "loader")
    return {name: record[name] for name in names} == {name: other[name] for name in names}


@contextmanager
def killer(place: Place, moment: Callable[[Place], bool]) -> Iterator[list[int]]:
    """Kill the trainer, all its processes at once, when the moment comes; yields whom it killed."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if moment(place):
                for process in marked_processes(run_folder(place) / "pretrain.json"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                return
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    yield killed
    over.set()
    thread.join()


MOMENTS = {"before a step": is_young, "between checkpoints": has_stepped, "during a save": is_saving}
LONG = [pytest.param(name, marks=pytest.mark.exact) for name in ("before a step", "between checkpoints")]


@pytest.mark.parametrize("moment", [*LONG, "during a save"])
def test_a_killed_trainer_goes_on_as_if_nothing_had_happened(place, uninterrupted, moment):
    place.index(*DATASETS)
    with killer(place, MOMENTS[moment]) as killed:
        assert not place.make(*STAGE, raise_on_error=False).success
    assert killed
    unfinished = half_uploads(place)
    assert bool(unfinished) is (moment == "during a save")
    place.make(*STAGE)
    assert half_uploads(place) == []
    assert same(trained(place), uninterrupted)


def test_a_killed_dagster_leaves_no_trainer_and_no_open_run(place, uninterrupted):
    place.index(*DATASETS)
    selection = ["asset", "materialize", "-m", "assets.definitions", "--select", ",".join(STAGE)]
    with (place.folder / "dagster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", *selection], cwd=ROOT, env=place.environment, stdout=log, stderr=log
        )
    assert wait_until(lambda: has_stepped(place, 1), timeout_seconds=90), (place.folder / "dagster.log").read_text()
    orphans = marked_processes(run_folder(place) / "pretrain.json")
    for orphan in orphans:
        orphan.suspend()  # it cannot see that its parent dies
    process.kill()
    process.wait()
    [open_run] = place.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))

    with open_instance(place.folder / "dagster"):
        pass
    assert place.instance.get_run_by_id(open_run.run_id).status == dg.DagsterRunStatus.FAILURE
    place.make(*STAGE)
    assert [orphan for orphan in orphans if orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE] == []
    assert same(trained(place), uninterrupted)


def test_a_cancelled_run_takes_its_trainer_with_it(place):
    place.index(*DATASETS)
    words = ["asset", "materialize", "-m", "assets.definitions", "--select", ",".join(STAGE)]
    with (place.folder / "dagster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", *words], cwd=ROOT, env=place.environment, stdout=log, stderr=log
        )
    assert wait_until(lambda: has_stepped(place, 1), timeout_seconds=90), (place.folder / "dagster.log").read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert marked_processes(run_folder(place) / "pretrain.json") == []
    assert place.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])) == []
