"""A run that goes on from another run's checkpoint: on the same steps before it, with whatever went wrong left out."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from k25_pipelines.errors import CheckpointError, K25Error
from k25_pipelines.lineage import trace_checkpoint, trace_sample
from k25_pipelines.loader import Batch
from k25_pipelines.planning import fork_plan, open_plan
from k25_pipelines.storage.store import Store
from tests.trainers.conftest import toy_config, train
from trainers import pretrain
from trainers.changes import Changes, changed_config
from trainers.config import TrainConfig, checkpoint_key, plain, run_name
from trainers.engine import Engine
from trainers.inputs import Inputs
from trainers.resuming import check_continuable, read_record
from trainers.step import Step


@pytest.fixture(scope="module")
def config(lake) -> TrainConfig:
    return toy_config(lake, "joint", steps=6, optimizer="muonclip", qk_clip_threshold=0.05, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(lake, config, one_rank, tmp_path_factory) -> dict:
    """The record of a run of `config` to its end."""
    return train(lake, config, "plain", tmp_path_factory.mktemp("continue"))


def continued(lake: Store, checkpoint: str, **changes: Any) -> TrainConfig:
    return changed_config(lake, "joint", scale="toy", changes=Changes(continues=checkpoint, **changes))


def history(lake: Store, run: str, step: int) -> list[dict]:
    return [json.loads(line) for line in lake.get(f"{checkpoint_key(run, step)}/metrics.jsonl").splitlines()]


def first_seen_at(lake: Store, config: TrainConfig, step: int) -> tuple[str, int]:
    """Return a sample with a medium that a plan has at a step and at none before."""
    plan = open_plan(lake, config.plan)
    rows = [row for each in range(step + 1) for row in plan.rows(each).to_pylist()]
    before = {(row["dataset"], row["line"]) for row in rows if row["step"] < step}
    fresh = [
        (row["dataset"], row["line"])
        for row in rows
        if row["step"] == step and row["vision_tokens"] and (row["dataset"], row["line"]) not in before
    ]
    return fresh[0]


def spoilt(batch: Batch, inputs: Inputs, sample: tuple[str, int]) -> Inputs:
    """Return the tensors of a batch with no numbers for a sample's pixels, wherever it is among them."""
    edges = np.cumsum([0, *inputs.grid_thw.prod(axis=1)])
    places = sorted(batch.provenance, key=lambda place: (place.pack, place.start))
    patches = inputs.patches.clone()
    rows = {pack: row for row, pack in enumerate(sorted({place.pack for place in places}))}
    starts = np.asarray(batch.cu_seqlens)[:-1].tolist()
    for place in places:
        document = starts.index(rows[place.pack] * batch.input_ids.shape[1] + place.start)
        for medium in np.flatnonzero(inputs.media_document == document) if place_of(place) == sample else ():
            patches[edges[medium] : edges[medium + 1]] = math.nan
    return replace(inputs, patches=patches)


def place_of(place: Any) -> tuple[str, int]:
    return place.dataset, place.line


def test_after_a_loss_that_is_no_number_the_two_commands_of_the_message_lead_to_the_end(
    lake, config, whole, one_rank, tmp_path, monkeypatch
):
    sample, take = first_seen_at(lake, config, 3), pretrain.train_step

    def wild(engine: Engine, batch: Batch, *given: Any, inputs: Inputs, **named: Any) -> Step:
        return take(engine, batch, *given, inputs=spoilt(batch, inputs, sample), **named)

    monkeypatch.setattr(pretrain, "train_step", wild)
    with pytest.raises(K25Error, match="step 3 of run wild-joint: the loss is nan") as raised:
        train(lake, config, "wild-joint", tmp_path)
    commands = (
        r"k25 plan fork (\w+) --at-step 3 --without (\S+) --reason WHY .* k25 train joint --continue (\S+) --plan"
    )
    found = re.search(commands, str(raised.value))
    assert found is not None
    plan, without, checkpoint = found.groups()
    assert (plan, checkpoint) == (config.plan, "wild-joint/00000002")

    fork = fork_plan(lake, plan, at_step=3, without=[without], reason="no number", author="test")
    going_on = continued(lake, checkpoint, plan=fork)
    assert going_on == replace(config, plan=fork, continues=checkpoint_key("wild-joint", 2))
    train(lake, going_on, "tame", tmp_path, stop_at=5)
    record = train(lake, going_on, "tame", tmp_path)
    steps, before = history(lake, "tame", 6), history(lake, "plain", 6)
    assert [line["step"] for line in steps] == [0, 1, 2, 3, 4, 5]
    assert steps[:3] == before[:3]  # step 2 was done again, with the weights, states and data it had
    assert steps[3]["digest"] != before[3]["digest"]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert {name: record[name] for name in ("parent", "plan", "step_range")} == {
        "parent": checkpoint_key("wild-joint", 2),
        "plan": fork,
        "step_range": [2, 6],
    }
    assert [(read["plan"], read["steps"]) for read in record["reads"]] == [(fork, [2, 6])]
    assert train(lake, going_on, "tame-at-once", tmp_path)["digest"] == record["digest"]
    check_lineage(lake, sample)


def check_lineage(lake: Store, sample: tuple[str, int]) -> None:
    """Of `tame`: what it was trained on before and after it went on; and that it never saw the sample."""
    told = trace_checkpoint(lake, "tame/00000006")
    spans = {(row["run"], row["first_step"] >= 2, row["end_step"] <= 2) for row in told}
    assert spans == {("tame", True, False), ("wild-joint", False, True)}
    held = trace_sample(lake, dataset=sample[0], line=sample[1])["checkpoints"]
    assert checkpoint_key("plain", 4) in {row["checkpoint"] for row in held}
    assert not [row for row in held if row["run"] in ("tame", "wild-joint")]


def test_on_the_same_plan_a_run_goes_on_bit_for_bit(lake, config, whole, one_rank, tmp_path):
    going_on = continued(lake, "plain/00000002")
    assert going_on == replace(config, continues=checkpoint_key("plain", 2))
    record = train(lake, going_on, run_name(going_on), tmp_path)
    assert record["files"]["weights.npz"] == whole["files"]["weights.npz"]
    assert record["files"]["metrics.jsonl"] == whole["files"]["metrics.jsonl"]
    assert record["metrics"] == whole["metrics"]


def test_a_lower_rate_and_settings_of_the_optimizer_may_be_other(lake, config, whole):
    going_on = continued(lake, "plain/00000002", learning_rate=1e-5, fields={"gradient_clip": "0.5"})
    assert (going_on.learning_rate, going_on.gradient_clip, going_on.plan) == (1e-5, 0.5, config.plan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optimizer": "adamw"},
            "config.optimizer was 'muonclip' and is 'adamw'; going on from it only plan, continues",
        ),
        ({"fields": {"model.language.layers": "3"}}, "config.model.language.layers was 2 and is 3"),
        ({"steps": 9}, "config.steps was 6 and is 9"),
    ],
)
def test_what_the_optimizers_states_would_not_fit_is_refused_by_the_fields_name(lake, whole, changes, said):
    with pytest.raises(CheckpointError, match=re.escape(said)):
        continued(lake, "plain/00000002", **changes)


def test_a_plan_that_differs_before_the_checkpoint_is_refused_by_its_first_other_step(
    lake, config, whole, one_rank, tmp_path
):
    dataset, line = first_seen_at(lake, config, 1)
    fork = fork_plan(lake, config.plan, at_step=1, without=[f"{dataset}:{line}"], reason="no number", author="test")
    said = (
        f"config.plan: plan {fork} differs at step 1 from plan {config.plan}, on which k25/checkpoints/plain/00000002"
    )
    with pytest.raises(CheckpointError, match=said):
        continued(lake, "plain/00000002", plan=fork)
    by_hand = replace(config, plan=fork, continues=checkpoint_key("plain", 2))
    with pytest.raises(CheckpointError, match=said):
        train(lake, by_hand, "other-past", tmp_path)
    assert [info.key for info in lake.list("k25/runs/other-past/")] == []


def test_what_is_no_place_to_go_on_from_is_refused(lake, config, whole):
    with pytest.raises(CheckpointError, match="plain/00000006 is the end of its run of 6 steps"):
        continued(lake, "plain/00000006")
    with pytest.raises(ValueError, match="plain/00000002 is of stage joint, not warmup"):
        changed_config(lake, "warmup", scale="toy", changes=Changes(continues="plain/00000002"))
    with pytest.raises(ValueError, match="--initial says where a run begins, and --continue that it goes on"):
        continued(lake, "plain/00000002", initial={"all": "plain/00000002"})
    bare = {**read_record(lake, checkpoint_key("plain", 2)), "files": {"weights.npz": ""}}
    with pytest.raises(CheckpointError, match="holds no optimizer to go on with"):
        check_continuable(bare, plain(config))


def test_a_run_that_goes_on_from_none_has_the_name_it_had_before_there_was_a_choice(config):
    assert run_name(config) == run_name(replace(config, continues=None))
    assert run_name(config) != run_name(replace(config, continues="k25/checkpoints/a/00000001"))
