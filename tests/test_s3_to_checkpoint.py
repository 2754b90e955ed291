"""The whole way on a toy model, over a real S3 server and real processes; again after a kill: the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from k25_pipelines.lineage import checkpoints_of_sample, samples_of_step, steps_of_sample
from k25_pipelines.loader import PlanLoader
from k25_pipelines.storage.store import Store, open_store
from tests.assets import tiny_lake
from trainers.config import TrainConfig, plain
from trainers.launch import launch_config

ROOT = Path(__file__).resolve().parent.parent
ENOUGH_SECONDS = 240


@pytest.fixture
def lake(s3_environment, tmp_path) -> Store:
    """A tiny lake in a bucket: copied there, registered and indexed."""
    local = tiny_lake.build(tmp_path / "raw", num_broken=0)
    objects = open_store(s3_environment["K25_LAKE"])
    for info in local.list():
        objects.put(info.key, local.get(info.key))
    return tiny_lake.index_all(objects)


class Training:
    """A trainer as a process in a group of its own."""

    def __init__(self, lake: Store, config: TrainConfig, run: str, folder: Path):
        self.lake, self.run, self.folder = lake, run, folder / run
        self.folder.mkdir(exist_ok=True)
        told = {"config": plain(config), "store": lake.url, "run": run, "work": str(self.folder), "threads": 1}
        (self.folder / "run.json").write_text(json.dumps(told))

    def start(self) -> subprocess.Popen:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "trainers.pretrain", str(self.folder / "run.json")],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def to_its_end(self) -> None:
        assert self.start().wait(ENOUGH_SECONDS) == 0, (self.folder / "log").read_text()[-3000:]

    def killed_when(self, condition) -> None:
        """Start, wait for the moment, SIGKILL the group."""
        process = self.start()
        deadline = time.monotonic() + ENOUGH_SECONDS
        while not condition(self):
            assert process.poll() is None, (self.folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def objects(self) -> list[str]:
        return [info.key for info in self.lake.list(f"k25/checkpoints/{self.run}/")]

    def records(self) -> list[dict]:
        return [json.loads(self.lake.get(key)) for key in self.objects() if key.endswith("/record.json")]

    def last_metrics(self) -> list[dict]:
        """The steps' metrics as the last checkpoint holds them."""
        newest = max(key for key in self.objects() if key.endswith("/record.json")).removesuffix("record.json")
        name = next(key for key in self.objects() if key.startswith(newest) and key.endswith(".jsonl"))
        return [json.loads(line) for line in self.lake.get(name).splitlines()]


def one_checkpoint(training: Training) -> bool:
    return bool(training.records())


def a_save_under_way(training: Training) -> bool:
    """Files of a second checkpoint are in the store, its record is not."""
    steps = {key.split("/")[3] for key in training.objects()}
    published = {key.split("/")[3] for key in training.objects() if key.endswith("/record.json")}
    return len(published) >= 1 and bool(steps - published)


def test_a_run_killed_twice_ends_with_the_steps_and_losses_of_one_that_was_not(lake, tmp_path):
    config = launch_config(lake, "warmup", scale="toy")
    whole = Training(lake, config, "whole", tmp_path)
    whole.to_its_end()
    torn = Training(lake, config, "torn", tmp_path)
    torn.killed_when(one_checkpoint)
    torn.killed_when(a_save_under_way)
    torn.to_its_end()
    seen = whole.last_metrics()
    assert len(seen) == config.steps
    assert [line["digest"] for line in torn.last_metrics()] == [line["digest"] for line in seen]
    assert [line["loss"] for line in torn.last_metrics()] == [line["loss"] for line in seen]
    assert torn.records()[-1]["digest"] == whole.records()[-1]["digest"]


def test_every_stage_trains_on_what_its_parents_left_and_lineage_leads_back_to_a_sample(lake, tmp_path):
    from trainers.config import run_name

    for stage in ("warmup", "vit", "projector"):
        config = launch_config(lake, stage, scale="toy")
        training = Training(lake, config, run_name(config), tmp_path)
        training.to_its_end()
    record = training.records()[-1]
    assert record["plan"] == config.plan
    first = samples_of_step(lake, config.plan, 0)[0]
    assert 0 in steps_of_sample(lake, config.plan, dataset=first["dataset"], line=first["line"])
    holding = checkpoints_of_sample(lake, dataset=first["dataset"], line=first["line"])
    assert f"k25/checkpoints/{training.run}/{config.steps:08d}" in holding


def test_what_a_trainer_logged_is_what_any_number_of_ranks_and_threads_would_load(lake, tmp_path):
    from k25_pipelines.loader import step_digest

    config = launch_config(lake, "vit", scale="toy")
    training = Training(lake, config, "logged", tmp_path)
    training.to_its_end()
    logged = [line["digest"] for line in training.last_metrics()]
    for num_ranks, threads in ((1, 8), (2, 1), (4, 2)):
        loaders = [
            PlanLoader(config.plan, lake, rank=rank, num_ranks=num_ranks, threads=threads) for rank in range(num_ranks)
        ]
        digests = [
            step_digest([sha256 for loader in loaders for _, _, sha256 in loader.pack_digests(step)])
            for step in range(config.steps)
        ]
        for loader in loaders:
            loader.close()
        assert digests == logged
