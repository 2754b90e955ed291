"""What a run does beside learning: it says what it sees, stops where a number is none, and names samples."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from k25_pipelines.errors import K25Error
from k25_pipelines.planning import open_plan
from k25_pipelines.storage.store import Store
from tests.trainers.conftest import as_one_rank, toy_config, train
from trainers import pretrain
from trainers.checkpoint import load_weights
from trainers.config import Run, TrainConfig, checkpoint_key
from trainers.engine import Engine
from trainers.interchange.lora_config import LoraConfig
from trainers.model.kimi_k25 import KimiK25
from trainers.resuming import newest_record
from trainers.step import Step

PARTS = ("wait", "vision", "backbone", "optimizer", "other", "all")


@pytest.fixture(scope="module")
def joint(lake) -> TrainConfig:
    return toy_config(lake, "joint", steps=4, optimizer="muonclip", qk_clip_threshold=0.05, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(lake, joint, one_rank, tmp_path_factory) -> Path:
    """The work folder of a run of `joint`."""
    work = tmp_path_factory.mktemp("pretrain")
    train(lake, joint, "seen", work)
    return work / "seen"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved(lake: Store, run: str, step: int, name: str) -> list[dict]:
    return [json.loads(line) for line in lake.get(f"{checkpoint_key(run, step)}/{name}.jsonl").splitlines()]


def samples_of(lake: Store, config: TrainConfig, step: int) -> set[tuple[str, int]]:
    return {(row["dataset"], row["line"]) for row in open_plan(lake, config.plan).rows(step).to_pylist()}


def run_of(lake: Store, config: TrainConfig, name: str, work: Path, **more: Any) -> Run:
    return Run(config=config, store=lake.url, run=name, work=str(work / name), threads=1, **more)


def test_a_steps_line_tells_what_was_seen(lake, joint, whole):
    for line in saved(lake, "seen", 4, "metrics"):
        assert line["vision_share"] == line["vision_tokens"] / line["tokens"]
        assert len(line["patches"]) == 1
        assert line["patches"][0] >= 4 * line["vision_tokens"] > 0
        assert line["max_logit"] > 0.05
        assert 0 < line["clipped_heads"] <= joint.model.language.heads * joint.model.language.layers
        assert [1 <= load <= joint.model.language.experts for load in line["expert_load"]] == [True]
        assert math.isfinite(line["gradient_norm"])


def test_times_stand_apart_from_what_is_compared(lake, whole):
    metrics, times = saved(lake, "seen", 4, "metrics"), saved(lake, "seen", 4, "timings")
    assert [set(line) for line in times] == [{"step", *PARTS}] * 4
    assert all(min(line[part] for part in PARTS) >= 0 for line in times)
    assert all(line["vision"] > 0 for line in times)
    assert [sum(line[part] for part in PARTS[:-1]) for line in times] == pytest.approx([line["all"] for line in times])
    assert not any("seconds" in line for line in metrics)
    told = [
        {**line, "seconds": {part: time[part] for part in PARTS}} for line, time in zip(metrics, times, strict=True)
    ]
    assert lines(whole / "metrics.jsonl") == told


def test_a_resumed_runs_files_begin_with_what_was_done(lake, joint, whole, one_rank, tmp_path):
    train(lake, joint, "parted", tmp_path, stop_at=3)
    train(lake, joint, "parted", tmp_path / "elsewhere")
    again = lines(tmp_path / "elsewhere" / "parted" / "metrics.jsonl")
    assert [line["step"] for line in again] == [0, 1, 2, 3]
    assert all("seconds" in line for line in again)
    assert saved(lake, "parted", 4, "metrics") == saved(lake, "seen", 4, "metrics")


def test_recomputation_and_offload_change_no_bit(lake, joint, whole, one_rank, tmp_path):
    with as_one_rank():
        switches = {"recompute": ("norm", "swiglu", "mla_up"), "offload": True}
        pretrain.main(run_of(lake, joint, "saving", tmp_path, **switches))
    records = [newest_record(lake, run) or {} for run in ("seen", "saving")]
    assert records[0]["digest"] == records[1]["digest"]


def test_adapters_alone_are_trained_and_saved_beside_the_weights_they_belong_to(lake, whole, one_rank, tmp_path):
    key = checkpoint_key("seen", 4)
    config = toy_config(lake, "joint", steps=4, optimizer="adamw", checkpoint_every=2, lora=LoraConfig(rank=2))
    config = replace(config, initial=dict.fromkeys(("vision", "projector", "language"), key))
    train(lake, config, "adapted", tmp_path, stop_at=3)
    record = train(lake, config, "adapted", tmp_path)
    before, after = load_weights(lake, key), load_weights(lake, checkpoint_key("adapted", 4))
    assert all(torch.equal(before[name], after[name]) for name in before)
    added = {name: value for name, value in after.items() if name not in before}
    assert {name.rpartition(".")[2] for name in added} == {"lora_A", "lora_B"}
    assert all(value.abs().max() > 0 for value in added.values())
    assert record["config"]["lora"]["rank"] == 2
    assert all(line["clipped_heads"] == 0 for line in saved(lake, "adapted", 4, "metrics"))
    whole_again = train(lake, config, "adapted-at-once", tmp_path)
    assert whole_again["digest"] == record["digest"]


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_samples(lake, one_rank, tmp_path, monkeypatch):
    config, take = toy_config(lake, "warmup", checkpoint_every=1), pretrain.train_step

    def poisoned(engine: Engine, *given: Any, step: int, **named: Any) -> Step:
        if step == 1:
            torch.nn.init.constant_(cast(KimiK25, engine.model).language.norm.weight, math.nan)
        return take(engine, *given, step=step, **named)

    monkeypatch.setattr(pretrain, "train_step", poisoned)
    with pytest.raises(K25Error, match="step 1 of run wild: the loss is nan") as raised:
        train(lake, config, "wild", tmp_path)
    told = json.loads((tmp_path / "wild" / "stopped.json").read_text())
    assert {(each["dataset"], each["line"]) for each in told["samples"]} == samples_of(lake, config, 1)
    worst = told["samples"][0]
    assert f"{worst['dataset']}/{worst['key']} (nan)" in str(raised.value)
    assert f"k25 plan fork {config.plan} --at-step 1 --without step=1 --reason" in str(
        raised.value
    )  # all are lost: none to blame
    assert "then k25 train warmup --continue wild/00000001 --plan FORK" in str(raised.value)
    newest = newest_record(lake, "wild")
    assert newest is not None
    assert newest["step"] == 1  # the last good one stays
    assert all(value.isfinite().all() for value in load_weights(lake, checkpoint_key("wild", 1)).values())


def test_a_gradient_that_is_no_number_stops_the_run_before_anything_is_saved(lake, one_rank, tmp_path, monkeypatch):
    config, update = toy_config(lake, "warmup", checkpoint_every=1), Engine.update
    rates: list[float] = []

    def spoilt(engine: Engine, rate: float) -> float:
        rates.append(rate)
        return update(engine, rate) if len(rates) < 3 else math.inf

    monkeypatch.setattr(Engine, "update", spoilt)
    with pytest.raises(K25Error, match="step 2 of run steep: the norm of the gradient is inf"):
        train(lake, config, "steep", tmp_path)
    newest = newest_record(lake, "steep")
    assert newest is not None
    assert newest["step"] == 2


def test_a_loss_spike_is_kept_and_said_with_its_samples_and_the_way_out(lake, one_rank, tmp_path, monkeypatch, capfd):
    config = toy_config(lake, "warmup", recipe={"name": "long", "steps": 14}, steps=12)
    take = pretrain.train_step

    def spiked(*given: Any, step: int, **named: Any) -> Step:
        taken = take(*given, step=step, **named)
        loss = taken.metrics["loss"] * (3 if step == 10 else 1)
        return replace(taken, metrics={**taken.metrics, "loss": loss})

    monkeypatch.setattr(pretrain, "train_step", spiked)
    train(lake, config, "spiky", tmp_path)
    (spike,) = saved(lake, "spiky", 12, "spikes")
    assert lines(tmp_path / "spiky" / "spikes.jsonl") == [spike]
    assert (spike["step"], spike["loss"] > spike["limit"] > spike["median"]) == (10, True)
    assert {(each["dataset"], each["line"]) for each in spike["samples"]} <= samples_of(lake, config, 10)
    losses = [each["loss"] for each in spike["samples"] if each["loss"] is not None]
    assert losses == sorted(losses, reverse=True) != []
    said = capfd.readouterr().err
    assert f"loss spike at step 10: {spike['loss']:.4f}" in said
    worst = f"{spike['samples'][0]['dataset']}/{spike['samples'][0]['key']}"
    assert f"k25 plan fork {config.plan} --at-step 10 --without {worst} --reason WHY prints the plan FORK" in said
    assert "then k25 train warmup --continue spiky/00000010 --plan FORK" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_published(lake, one_rank, tmp_path, monkeypatch, value):
    config, take = toy_config(lake, "warmup", checkpoint_every=2), pretrain.train_step

    def spoilt(engine: Engine, *given: Any, step: int, **named: Any) -> Step:
        taken = take(engine, *given, step=step, **named)
        if step == 3:
            cast(KimiK25, engine.model).language.norm.weight.data[0] = value
        return taken

    monkeypatch.setattr(pretrain, "train_step", spoilt)
    run = f"rotten-{value}"
    said = f"step 3 of run {run}: the weight language.norm.weight is no finite number after its update. Nothing of"
    with pytest.raises(K25Error, match=said):
        train(lake, config, run, tmp_path)
    newest = newest_record(lake, run)
    assert newest is not None
    assert newest["step"] == 2


def test_a_probe_that_is_no_number_stops_the_run_before_its_last_checkpoint(lake, one_rank, tmp_path, monkeypatch):
    config, probes = toy_config(lake, "warmup", checkpoint_every=2), iter([8.0, math.inf])
    monkeypatch.setattr(pretrain, "probe_loss", lambda *given: next(probes))
    with pytest.raises(K25Error, match=f"step {config.steps - 1} of run blind: probe_after is inf. Nothing of this"):
        train(lake, config, "blind", tmp_path)
    newest = newest_record(lake, "blind")
    assert newest is not None
    assert newest["step"] == 4


def test_what_is_kept_of_a_stop_is_json(lake, one_rank, tmp_path, monkeypatch):
    config = toy_config(lake, "warmup")
    monkeypatch.setattr(Engine, "update", lambda engine, rate: math.inf)
    with pytest.raises(K25Error, match="the norm of the gradient is inf"):
        train(lake, config, "strict", tmp_path)
    told = json.loads((tmp_path / "strict" / "stopped.json").read_text(), parse_constant=pytest.fail)
    assert (told["why"], told["norm"]) == ("the norm of the gradient is inf", "inf")
