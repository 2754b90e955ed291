"""What others are told of a step: flat figures, and event files that TensorBoard reads."""

import importlib.util
import socket
import threading

import pytest

from trainers import tracking
from trainers.report import open_report

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")

METRICS = {
    "step": 3,
    "loss": 2.5,
    "tokens": 100,
    "contrastive_loss": None,
    "patches": [4, 8],
    "digest": "ab",
    "seconds": {"wait": 0.25, "all": 1.0},
}


class Listener:
    """A tracker that remembers."""

    def __init__(self):
        self.heard, self.is_closed = [], False

    def log(self, step, figures):
        self.heard.append((step, figures))

    def close(self):
        self.is_closed = True


def test_numbers_have_flat_names_and_words_are_left_out():
    assert tracking.figures(METRICS) == {
        "loss": 2.5,
        "tokens": 100.0,
        "patches/0": 4.0,
        "patches/1": 8.0,
        "seconds/wait": 0.25,
        "seconds/all": 1.0,
    }


def test_a_tracker_hears_every_step_of_rank_zero_and_is_closed(tmp_path, monkeypatch):
    listener = Listener()
    monkeypatch.setattr("trainers.report.open_trackers", lambda work, *, run, tensorboard: [listener])
    for rank in (0, 1):
        with open_report(tmp_path, rank=rank, num_steps=4, run="r") as report:
            report.step(METRICS)
    assert listener.heard == [(3, tracking.figures(METRICS))]
    assert listener.is_closed


def test_event_files_that_nothing_can_write_are_refused_by_the_fields_name(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    tracking.check_tracking(False)
    with pytest.raises(ValueError, match="tensorboard is true, and no package tensorboard is installed"):
        tracking.check_tracking(True)


def test_nobody_else_is_told_where_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.open_trackers(tmp_path, run="r", tensorboard=False) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_event_files_hold_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = tracking.open_trackers(tmp_path, run="r", tensorboard=True)
    tracker.log(3, tracking.figures(METRICS))
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(3, 2.5)]
    assert sorted(events.Tags()["scalars"]) == sorted(tracking.figures(METRICS))


@needs_mlflow
def test_mlflow_finds_a_resumed_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (3, 4):
        (tracker,) = tracking.open_trackers(tmp_path, run="r", tensorboard=False)
        assert tracker.log(step, tracking.figures(METRICS)) is None
        assert tracker.close() is None
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("k25")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [
        (3, 2.5),
        (4, 2.5),
    ]
    assert sorted(run.data.metrics) == sorted(tracking.figures(METRICS))


@needs_mlflow
def test_a_server_that_does_not_answer_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:  # nobody listens there afterwards
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with open_report(tmp_path, rank=0, num_steps=4, run="r") as report:
        for step in range(4):
            report.step({**METRICS, "step": step})
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("MLflow at")]
    assert len(said) == 1
    assert said[0].startswith(f"MLflow at {url} is told no more of this run, which goes on: ")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


@needs_mlflow
def test_no_step_waits_for_a_server_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "STEPS_WAITING", 2)
    monkeypatch.setattr(tracking, "_mlflow_run", lambda run: threading.Event().wait(60))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
    for steps, trouble in ((2, "no answer within 0 s"), (3, "2 steps wait to be told")):
        (tracker,) = tracking.open_trackers(tmp_path, run="r", tensorboard=False)
        said = [*[tracker.log(step, {"loss": 1.0}) for step in range(steps)], tracker.close(), tracker.close()]
        told = [each for each in said if each]
        assert told == [f"MLflow at http://nowhere is told no more of this run, which goes on: {trouble}"]
