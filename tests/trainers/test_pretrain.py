"""A run's promises: killed anywhere it goes on as if it had not been, and ranks change nothing but who does the work."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from k25_pipelines.errors import CheckpointError, K25Error
from k25_pipelines.storage.store import open_store
from trainers.checkpoint import load_weights, newest_record, read_record
from trainers.config import checkpoint_key, plain
from trainers.pretrain import build_model, main

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Can't initialize NVML:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed"),
    pytest.mark.filterwarnings("ignore::FutureWarning:deepspeed"),
]


def steps_of(lake, run: str) -> list[int]:
    records = [info.key for info in lake.list(f"k25/checkpoints/{run}/") if info.key.endswith("/record.json")]
    return [json.loads(lake.get(key))["step"] for key in records]


def lines(lake, key: str) -> list[dict]:
    return [json.loads(line) for line in lake.get(f"{key}/metrics.jsonl").decode().splitlines()]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(lake, toy_run):
    main(toy_run("whole", "vit", steps=4, checkpoint_every=2))
    main(toy_run("halves", "vit", steps=4, checkpoint_every=2, stop_at=2))
    assert steps_of(lake, "halves") == [2]
    main(toy_run("halves", "vit", steps=4, checkpoint_every=2))
    whole, halves = (read_record(lake, checkpoint_key(run, 4)) for run in ("whole", "halves"))
    assert whole["files"]["weights.npz"] == halves["files"]["weights.npz"]
    assert whole["files"]["metrics.jsonl"] == halves["files"]["metrics.jsonl"]
    assert {**whole, "files": 0, "run": 0, "loader": 0} == {**halves, "files": 0, "run": 0, "loader": 0}
    main(toy_run("halves", "vit", steps=4, checkpoint_every=2))  # finished: nothing is left to do
    assert steps_of(lake, "halves") == [2, 4]


def test_a_record_says_what_the_run_read_and_counted(lake, toy_run):
    run = toy_run("counted", "joint", steps=2)
    main(run)
    key = checkpoint_key("counted", 2)
    record, history = read_record(lake, key), lines(lake, key)
    assert record["step_range"] == [0, 2]
    assert record["config"] == plain(run.config)
    assert (record["parent"], record["plan"]) == (None, run.config.plan)
    assert record["loader"] == {**record["loader"], "run": "counted", "plan": run.config.plan, "step": 2}
    metrics = record["metrics"]
    shares = [line["vision_tokens"] / line["tokens"] for line in history]
    assert metrics["losses"] == [line["loss"] for line in history]
    assert metrics["tokens"] == sum(line["tokens"] for line in history) <= 2 * 4 * 256
    assert metrics["vision_share_std"] == pytest.approx(np.std(shares))
    work = [json.loads(line) for line in (Path(run.work) / "metrics.jsonl").read_text().splitlines()]
    assert work == history


def test_another_config_under_the_same_name_is_refused(toy_run):
    main(toy_run("named", "warmup", steps=2, stop_at=1))
    with pytest.raises(CheckpointError, match="learning_rate differ"):
        main(toy_run("named", "warmup", steps=2, learning_rate=1e-4))


def test_more_steps_than_the_plan_has_are_refused(toy_run):
    with pytest.raises(K25Error, match="extend it"):
        main(toy_run("long", "warmup", steps=10_000))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class KilledStore:
    """A store whose process dies at its n-th write."""

    def __init__(self, store, writes: int):
        self._store, self._left = store, writes

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put(self, key: str, data: bytes) -> None:
        self._die_when_due()
        self._store.put(key, data)

    def put_new(self, key: str, data: bytes) -> None:
        self._die_when_due()
        self._store.put_new(key, data)

    def _die_when_due(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed


@pytest.mark.parametrize("writes", [0, 1, 3, 4])
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(lake, toy_run, monkeypatch, writes):
    # A checkpoint is five writes: two of the engine, metrics, weights, and the record last.
    name = f"killed-{writes}"
    main(toy_run(name, "warmup", steps=3, stop_at=1))
    monkeypatch.setattr("trainers.pretrain.open_store", lambda url: KilledStore(open_store(url), writes))
    with pytest.raises(Killed):
        main(toy_run(name, "warmup", steps=3))
    monkeypatch.undo()
    assert newest_record(lake, name)["step"] == 1
    main(toy_run(name, "warmup", steps=3))
    main(toy_run(f"{name}-never", "warmup", steps=3))
    files = [read_record(lake, checkpoint_key(run, 3))["files"] for run in (name, f"{name}-never")]
    assert files[0]["weights.npz"] == files[1]["weights.npz"]


def test_a_file_that_changed_after_it_was_published_is_refused(lake, toy_run):
    main(toy_run("broken", "warmup", steps=2, stop_at=1))
    lake.put(f"{checkpoint_key('broken', 1)}/metrics.jsonl", b"{}")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has SHA-256"):
        main(toy_run("broken", "warmup", steps=2))


def test_a_stage_starts_from_modules_of_others_and_moves_only_its_own(lake, toy_run):
    main(toy_run("tower", "vit", steps=1))
    main(toy_run("words", "warmup", steps=1))
    tower, words = checkpoint_key("tower", 1), checkpoint_key("words", 1)
    run = toy_run("bridge", "projector", steps=1, initial={"vision": tower, "language": words})
    main(run)
    record = read_record(lake, checkpoint_key("bridge", 1))
    assert record["parent"] == [tower, words]
    bridge = load_weights(lake, checkpoint_key("bridge", 1))
    for module, key in (("vision", tower), ("language", words)):
        theirs = load_weights(lake, key)
        own = [name for name in bridge if name.startswith(f"{module}.")]
        assert own
        assert all(torch.equal(bridge[name], theirs[name]) for name in own)
    fresh = build_model(run.config, lake).state_dict()
    assert all(not torch.equal(bridge[name], fresh[name]) for name in bridge if name.startswith("projector.proj"))


def test_two_ranks_learn_what_one_learns_and_share_the_optimizer(lake, toy_run):
    one, two = (toy_run(name, "joint", steps=3, checkpoint_every=0) for name in ("one-rank", "two-ranks"))
    main(one)
    Path(two.work).mkdir()
    path = Path(two.work) / "run.json"
    path.write_text(json.dumps({**asdict(two), "config": plain(two.config)}))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainers.pretrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, str(path)], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()

    keys = [checkpoint_key(run.run, 3) for run in (one, two)]
    first, second = (lines(lake, key) for key in keys)
    for name in ("digest", "tokens", "vision_tokens", "targets"):
        assert [line[name] for line in first] == [line[name] for line in second]
    assert [line["loss"] for line in first] == pytest.approx([line["loss"] for line in second], rel=1e-4)
    weights, theirs = (load_weights(lake, key) for key in keys)
    assert all(torch.allclose(weights[name], theirs[name], atol=2e-3) for name in weights)

    record = read_record(lake, keys[1])
    assert record["layout"] == {"ranks": 2, "threads": 1}
    parts = [f"{keys[1]}/engine/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    whole = lake.head(f"{keys[0]}/engine/zero_pp_rank_0_mp_rank_00_optim_states.pt").num_bytes
    assert [lake.head(part).num_bytes / whole for part in parts] == pytest.approx([0.5, 0.5], abs=0.02)
    with pytest.raises(CheckpointError, match="2 ranks"):
        main(two)
