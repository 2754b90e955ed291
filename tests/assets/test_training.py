"""What an asset shows of a run's steps, and how it says on what they are taken."""

import json
import os
from dataclasses import replace

import pytest

from assets.outputs import checkpoint_record, read_output
from assets.resources import trainer_from_env
from assets.training import Training, spike_rows, training_figures, training_pictures
from k25_pipelines.errors import K25Error

DATASETS = ("captions", "clips", "grounding")
STAGE = ("vit_plan", "vit_checkpoint")
LINE = {"loss": 2.0, "tokens": 30, "vision_tokens": 3, "max_logit": 7.0, "clipped_heads": 1, "patches": [4, 8]}
TIMES = {"wait": 0.1, "vision": 0.4, "backbone": 1.2, "optimizer": 0.2, "all": 2.0}


def test_the_steps_are_summed_up_in_figures():
    metrics = [{**LINE, "expert_load": [1.5]}, {**LINE, "max_logit": 9.0, "expert_load": [2.0]}]
    told = Training(metrics=metrics, timings=[TIMES, TIMES], spikes=[])
    assert training_figures(told) == {
        "num_spikes": 0,
        "clipped_heads": 2,
        "max_logit": 9.0,
        "patches_per_step": 12.0,
        "wait_share_of_time": pytest.approx(0.05),
        "vision_share_of_time": pytest.approx(0.2),
        "backbone_share_of_time": pytest.approx(0.6),
        "optimizer_share_of_time": pytest.approx(0.1),
        "tokens_per_second": 15.0,
    }
    drawn = training_pictures(told)
    assert list(drawn) == ["loss", "vision share", "largest attention logit", "expert load", "step time"]
    assert {image[:4] for image in drawn.values()} == {b"\x89PNG"}


def test_what_a_run_did_not_record_is_left_out():
    metrics = [{"loss": 2.0, "tokens": 30, "vision_tokens": 0, "max_logit": None}]
    told = Training(metrics=metrics, timings=[], spikes=[])
    assert (training_figures(told), list(training_pictures(told))) == ({"num_spikes": 0}, ["loss"])


def test_a_spike_names_the_samples_that_cost_most():
    samples = [{"dataset": "wiki", "key": f"page-{number}"} for number in range(5)]
    spike = {"step": 8, "loss": 9.5, "median": 5.0, "samples": samples}
    row = {"step": 8, "loss": 9.5, "median before": 5.0, "samples": "wiki/page-0, wiki/page-1, wiki/page-2"}
    assert spike_rows(Training(metrics=[], timings=[], spikes=[spike])) == [row]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("K25_SCALE", "huge", "K25_SCALE is 'huge'; the scales are toy, demo"),
        ("K25_RANKS", "two", "K25_RANKS is 'two'; expected a whole number of at least 1"),
        ("K25_RANKS", "0", "K25_RANKS is '0'; expected a whole number of at least 1"),
        ("K25_EXPERT_RANKS", "-1", "K25_EXPERT_RANKS is '-1'; expected a whole number of at least 1"),
        ("K25_OFFLOAD", "yes", "K25_OFFLOAD is 'yes'; expected on or off"),
    ],
)
def test_a_variable_that_cannot_be_is_named(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(K25Error, match=said):
        trainer_from_env()


def test_the_environment_says_how_ranks_share_the_work(monkeypatch):
    told = {"K25_RANKS": "2", "K25_EXPERT_RANKS": "2", "K25_RECOMPUTE": "norm,swiglu", "K25_COUPLED_VISION": "on"}
    for name, value in {**told, "K25_THREADS": "3"}.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_from_env()
    parallel = {"decoupled_vision": False, "expert_ranks": 2, "pipeline_stages": 1, "virtual_stages": 2}
    others = {"threads": 3, "recompute": ["norm", "swiglu"], "offload": False, "tensorboard": False}
    assert (trainer.num_ranks, trainer.layout()) == (2, {"parallel": parallel, **others})
    monkeypatch.delenv("K25_THREADS")
    assert trainer_from_env().threads == max(1, (os.cpu_count() or 1) // 2)


def test_two_ranks_train_a_stage_through_dagster_and_its_asset_shows_what_was_seen(place):
    place.index(*DATASETS)
    shared = replace(place, layout={"num_ranks": 2, "recompute": ["norm"]})
    assert shared.make(*STAGE).success
    record = checkpoint_record(place.lake, read_output(place.lake, STAGE[1], scale="toy", edition="main")["checkpoint"])
    assert record is not None
    assert record["layout"]["ranks"] == 2
    lines = place.lake.get(f"{record['key']}/metrics.jsonl").splitlines()
    assert {len(json.loads(line)["patches"]) for line in lines} == {2}
    assert place.metadata(STAGE[1])["patches_per_step"] > 0
