"""What trainers write becomes metrics that Prometheus' own parser reads."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from k25_pipelines.telemetry import Telemetry

LINE = {
    "step": 0,
    "loss": 2.5,
    "tokens": 100,
    "vision_tokens": 10,
    "targets": 90,
    "learning_rate": 0.1,
    "contrastive_loss": None,
    "expert_load": [1.5, 2.0],
    "patches": [4, 6],
    "seconds": {"wait": 0.25, "all": 1.0},
}


@pytest.fixture
def work(tmp_path):
    (tmp_path / 'joint-"1"').mkdir()
    return tmp_path


def write(work, *lines: dict, torn: str = "") -> None:
    (work / 'joint-"1"' / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + torn)


def samples(telemetry: Telemetry) -> dict[tuple, float]:
    telemetry.look()
    families = text_string_to_metric_families(telemetry.text())
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "run")): sample.value
        for family in families
        for sample in family.samples
        if sample.name != "k25_last_step_age_seconds"
    }


def test_the_figures_of_a_run_are_read_by_prometheus_own_parser(work):
    write(work, LINE, {**LINE, "step": 1, "loss": 2.0})
    assert samples(Telemetry(work)) == {
        ("k25_steps_total",): 2,
        ("k25_tokens_total",): 200,
        ("k25_vision_tokens_total",): 20,
        ("k25_targets_total",): 180,
        ("k25_loss",): 2.0,
        ("k25_learning_rate",): 0.1,
        ("k25_step_seconds_total", "wait"): 0.5,
        ("k25_step_seconds_total", "all"): 2.0,
        ("k25_expert_load_ratio", "0"): 1.5,
        ("k25_expert_load_ratio", "1"): 2.0,
        ("k25_patches", "0"): 4,
        ("k25_patches", "1"): 6,
    }


def test_a_line_that_is_being_written_is_read_when_it_is_whole(work):
    telemetry = Telemetry(work)
    write(work, LINE, torn='{"step": 1, "lo')
    assert samples(telemetry)["k25_steps_total",] == 1
    write(work, LINE, {**LINE, "step": 1})
    assert samples(telemetry)["k25_tokens_total",] == 200


def test_a_run_begun_anew_is_counted_anew(work):
    telemetry = Telemetry(work)
    write(work, LINE, {**LINE, "step": 1}, {**LINE, "step": 2})
    assert samples(telemetry)["k25_steps_total",] == 3
    write(work, LINE)
    assert samples(telemetry)["k25_steps_total",] == 1


def test_no_runs_are_no_metrics(tmp_path):
    assert Telemetry(tmp_path).text() == ""
