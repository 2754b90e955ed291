"""Metrics for those who use TensorBoard or MLflow: a step's line in, their files or calls out. Neither is needed.

TensorBoard's event files are written where the run file asks for them, MLflow is told where its own environment
variable names a server or a folder. The only door to both.
"""

import os
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

MLFLOW_URI = "MLFLOW_TRACKING_URI"
"""MLflow's own variable; `MLFLOW_EXPERIMENT_NAME` is heeded too."""
RUN_TAG = "k25.run"


class Tracker(Protocol):
    """Takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take them."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_tracking(tensorboard: bool) -> None:
    """Raise ValueError where event files are asked for and nothing can write them."""
    if tensorboard and find_spec("tensorboard") is None:
        raise ValueError("tensorboard is true, and no package tensorboard is installed: pip install tensorboard")


def open_trackers(work: Path, *, run: str, tensorboard: bool) -> list[Tracker]:
    """Return who else is to be told of a run's steps; for rank 0 alone."""
    trackers: list[Tracker] = [_EventFiles(work / "tensorboard")] if tensorboard else []
    if os.environ.get(MLFLOW_URI) and find_spec("mlflow") is not None:
        trackers.append(_MLflow(run))
    return trackers


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a step's numbers under flat names: of a list `<name>/<place>`, of a mapping `<name>/<key>`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        flat |= {f"{name}/{key}": float(each) for key, each in inner}
        if isinstance(value, int | float):
            flat[name] = float(value)
    flat.pop("step", None)
    return flat


class _EventFiles:
    """TensorBoard's, below a folder; a resumed run adds a file there."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run of MLflow's for each of ours: found again by its tag."""

    def __init__(self, run: str) -> None:
        self._mlflow = import_module("mlflow")
        self._client = self._mlflow.tracking.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "k25")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        made = found[0] if found else self._client.create_run(experiment, tags={RUN_TAG: run}, run_name=run)
        self._run = made.info.run_id

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        metric = self._mlflow.entities.Metric
        now = int(time.time() * 1000)
        told = [metric(key=name, value=value, timestamp=now, step=step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=told)

    def close(self) -> None:
        self._client.set_terminated(self._run)
