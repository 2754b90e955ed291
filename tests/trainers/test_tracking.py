"""What others are told of a step: flat figures, and event files that TensorBoard reads."""

import importlib.util

import pytest

from trainers import tracking
from trainers.report import open_report

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


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_finds_a_resumed_run_again(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for step in (3, 4):
        (tracker,) = tracking.open_trackers(tmp_path, run="r", tensorboard=False)
        tracker.log(step, tracking.figures(METRICS))
        tracker.close()
    client = mlflow.tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("k25").experiment_id])
    assert [each.step for each in client.get_metric_history(run.info.run_id, "loss")] == [3, 4]
