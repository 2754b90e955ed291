"""Bit for bit after a kill, with everything on; and the same data on another number of ranks.

On: experts, MuonClip with heads that are clipped, packing, augmentation, video, media encoded by all ranks alike,
recomputation and offload, two real processes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from k25_pipelines.planning import open_plan
from k25_pipelines.storage.store import Store
from tests.trainers.conftest import as_one_rank, toy_config
from trainers.checkpoint import load_weights
from trainers.config import Run, TrainConfig, checkpoint_key, parse, plain
from trainers.pretrain import main
from trainers.recipes import PROBE_STEPS
from trainers.resuming import newest_record

ROOT = Path(__file__).resolve().parents[2]
ENOUGH_SECONDS = 300
SOURCES = {
    "captions": {"weight": 3, "augment": ["resize"], "flip_safe": False},
    "grounding": {"weight": 3, "augment": ["resize", "crop", "flip", "colour"]},
    "clips": {"weight": 4, "augment": ["colour"], "flip_safe": False},
    "wiki": {"weight": 8},
    "code": {"weight": 2},
}
ALL_ON = {"threads": 1, "recompute": ["norm", "swiglu", "mla_up"], "offload": True}


def everything(lake: Store, *, steps: int, checkpoint_every: int) -> TrainConfig:
    recipe = {
        "name": f"everything-{steps}",
        "packs_per_step": 3,
        "pack_window": 16,
        "vision_share": 0.1,
        "steps": steps + PROBE_STEPS,
        "sources": SOURCES,
    }
    changes = {"optimizer": "muonclip", "qk_clip_threshold": 0.05, "checkpoint_every": checkpoint_every}
    return toy_config(lake, "joint", recipe=recipe, steps=steps, **changes)


class Ranks:
    """Processes that train some runs one after another, in a group of their own."""

    def __init__(self, out: Path, lake: Store, num_ranks: int, runs: Sequence[tuple[str, TrainConfig, dict[str, Any]]]):
        out.mkdir(parents=True)
        self.out = out
        told = [
            {**ALL_ON, "config": plain(config), "store": lake.url, "run": run, "work": str(out / run), **more}
            for run, config, more in runs
        ]
        (out / "plan.json").write_text(json.dumps({"runs": told, "out": str(out)}))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        with (out / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*launcher, "-m", "tests.trainers.two_ranks", str(out / "plan.json")],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def to_their_end(self) -> None:
        code = self.process.wait(ENOUGH_SECONDS)
        assert code == 0, (self.out / "log").read_text()[-5000:]

    def killed_after(self, run: str, steps: int) -> None:
        """SIGKILL all of them once a run has done so many steps."""
        metrics, deadline = self.out / run / "metrics.jsonl", time.monotonic() + ENOUGH_SECONDS
        while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
            assert self.process.poll() is None, (self.out / "log").read_text()[-5000:]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        self._kill_all()

    def _kill_all(self) -> None:
        """The launcher and the ranks, each of which torchrun gives a session of its own."""
        import psutil

        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for each in family:
            each.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=60)
        self.process.wait()


def history(lake: Store, run: str, step: int) -> list[dict]:
    return [json.loads(line) for line in lake.get(f"{checkpoint_key(run, step)}/metrics.jsonl").splitlines()]


def engine_state(lake: Store, run: str, step: int, folder: Path) -> list[Any]:
    """Return what the engine's files of a checkpoint hold: weights, random state, optimizer."""
    states = []
    for info in lake.list(f"{checkpoint_key(run, step)}/engine/"):
        path = folder / Path(info.key).name
        path.write_bytes(lake.get(info.key))
        states.append(torch.load(path, weights_only=True))
    return states


def equal(one: Any, other: Any) -> bool:
    """Whether two nested structures agree, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def killed_and_resumed(lake: Store, config: TrainConfig, folder: Path, *, seed: int) -> None:
    """Train `whole-<seed>`; train `torn-<seed>`, kill it somewhere after its first checkpoint, and let it go on."""
    kill_at = random.Random(seed).randrange(config.checkpoint_every + 1, 2 * config.checkpoint_every + 2)
    print(f"seed {seed}: killed after step {kill_at}")  # noqa: T201
    runs = [(f"{name}-{seed}", config, {}) for name in ("whole", "torn")]
    Ranks(folder / "first", lake, 2, runs).killed_after(f"torn-{seed}", kill_at)
    found = newest_record(lake, f"torn-{seed}")
    assert found is not None
    assert config.checkpoint_every <= found["step"] < config.steps
    Ranks(folder / "second", lake, 2, runs[1:]).to_their_end()


def check_the_same(lake: Store, config: TrainConfig, folder: Path, *, seed: int) -> None:
    whole, torn, step = f"whole-{seed}", f"torn-{seed}", config.steps
    told = [newest_record(lake, run) for run in (whole, torn)]
    assert [each and each["step"] for each in told] == [step, step]
    one, other = (each or {} for each in told)
    assert one["digest"] == other["digest"]
    assert one["files"]["weights.npz"] == other["files"]["weights.npz"]
    assert one["files"]["spikes.jsonl"] == other["files"]["spikes.jsonl"]
    assert {**one["loader"], "run": ""} == {**other["loader"], "run": ""}
    assert history(lake, whole, step) == history(lake, torn, step)
    states = []
    for run in (whole, torn):
        (folder / run).mkdir()
        states.append(engine_state(lake, run, step, folder / run))
    assert len(states[0]) == 3  # the model's file, and one of each rank's optimizer
    assert equal(*states)


def check_that_all_is_on(lake: Store, config: TrainConfig, run: str) -> None:
    lines, plan = history(lake, run, config.steps), open_plan(lake, config.plan)
    assert all(line["clipped_heads"] > 0 for line in lines)
    assert all(len(line["expert_load"]) == 1 for line in lines)
    encoded = zip(*[line["patches"] for line in lines], strict=True)
    assert all(sum(patches) > 0 for patches in encoded)  # each rank encodes, wherever the media are
    rows = [row for step in range(config.steps) for row in plan.rows(step).to_pylist()]
    read = {row["dataset"] for row in rows}
    assert {"grounding", "clips"} <= read  # augmentation and video
    assert read & {"wiki", "code"}
    assert max(row["slot"] for row in rows) > 0  # packs hold several samples


def test_a_run_killed_at_any_step_goes_on_bit_for_bit_with_everything_on(lake, tmp_path):
    config = everything(lake, steps=12, checkpoint_every=4)
    killed_and_resumed(lake, config, tmp_path, seed=5)
    check_the_same(lake, config, tmp_path, seed=5)
    check_that_all_is_on(lake, config, "torn-5")


@pytest.mark.exact
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fifty_steps_after_a_kill_are_those_of_a_run_that_was_not_killed(lake, tmp_path, seed):
    config = everything(lake, steps=72, checkpoint_every=10)
    killed_and_resumed(lake, config, tmp_path, seed=seed)
    check_the_same(lake, config, tmp_path, seed=seed)
    check_that_all_is_on(lake, config, f"torn-{seed}")


def test_two_ranks_then_one_then_three_read_one_sequence(lake, one_rank, tmp_path):
    config = everything(lake, steps=7, checkpoint_every=7)
    Ranks(tmp_path / "two", lake, 2, [("moved", config, {"stop_at": 2})]).to_their_end()
    for run, stop_at in (("moved", 4), ("stayed", None)):
        told = {"config": plain(config), "store": lake.url, "run": run, "work": str(tmp_path / run), **ALL_ON}
        with as_one_rank():
            main(parse(Run, {**told, "stop_at": stop_at}))
    Ranks(tmp_path / "three", lake, 3, [("moved", config, {})]).to_their_end()
    moved, stayed = history(lake, "moved", 7), history(lake, "stayed", 7)
    assert [len(line["patches"]) for line in moved] == [2, 2, 1, 1, 3, 3, 3]
    for name in ("digest", "tokens", "vision_tokens", "targets"):
        assert [line[name] for line in moved] == [line[name] for line in stayed]
    assert [line["loss"] for line in moved] == pytest.approx([line["loss"] for line in stayed], rel=1e-3)
    weights = [load_weights(lake, checkpoint_key(run, 7)) for run in ("moved", "stayed")]
    assert weights[0].keys() == weights[1].keys()
