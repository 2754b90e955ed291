"""What a stage leaves: its own modules moved, the others as they were, and a record of what it read."""

import json

import numpy as np
import pytest
import torch

from tests.trainers.conftest import toy_config, train
from trainers.checkpoint import load_weights
from trainers.config import checkpoint_key, plain
from trainers.pretrain import build_model


def test_a_stage_starts_from_modules_of_others_and_moves_only_its_own(lake, one_rank, tmp_path):
    train(lake, toy_config(lake, "vit", steps=1), "tower", tmp_path)
    train(lake, toy_config(lake, "warmup", steps=1), "words", tmp_path)
    parents = {"vision": checkpoint_key("tower", 1), "language": checkpoint_key("words", 1)}
    config = toy_config(lake, "projector", steps=1, initial=parents)
    assert train(lake, config, "bridge", tmp_path)["parent"] == sorted(parents.values())
    after, before = load_weights(lake, checkpoint_key("bridge", 1)), build_model(config, lake).state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("projector.")}
    for module, key in parents.items():
        theirs = load_weights(lake, key)
        assert all(torch.equal(after[name], theirs[name]) for name in after if name.startswith(f"{module}."))


def test_a_record_says_what_the_run_read_and_counted(lake, one_rank, tmp_path):
    config = toy_config(lake, "joint", steps=2)
    record = train(lake, config, "counted", tmp_path)
    assert (record["step_range"], record["parent"], record["config"]) == ([0, 2], None, plain(config))
    assert record["plan"] == record["loader"]["plan"] == config.plan
    history = [json.loads(line) for line in lake.get(f"{checkpoint_key('counted', 2)}/metrics.jsonl").splitlines()]
    told = [json.loads(line) for line in (tmp_path / "counted" / "metrics.jsonl").read_text().splitlines()]
    times = [json.loads(line) for line in lake.get(f"{checkpoint_key('counted', 2)}/timings.jsonl").splitlines()]
    assert told == [
        {**line, "seconds": {part: value for part, value in seconds.items() if part != "step"}}
        for line, seconds in zip(history, times, strict=True)
    ]
    shares = [line["vision_tokens"] / line["tokens"] for line in history]
    assert record["metrics"]["vision_share_std"] == pytest.approx(np.std(shares))
    assert record["metrics"]["losses"] == [line["loss"] for line in history]


def test_more_steps_than_the_plan_has_are_refused(lake, one_rank, tmp_path):
    with pytest.raises(ValueError, match=r"config\.steps is 10000, and plan \w+ has 8; train fewer, or extend it"):
        train(lake, toy_config(lake, "warmup", steps=10_000), "endless", tmp_path)
