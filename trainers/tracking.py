"""Metrics for those who use TensorBoard or MLflow: a step's line in, their files or calls out. Neither is needed.

TensorBoard's event files are written where the run file asks for them, MLflow is told where its own environment
variable names a server or a file. A server that does not answer is given up, and the run goes on. The only door to
both.
"""

import os
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

MLFLOW_URI = "MLFLOW_TRACKING_URI"
"""MLflow's own variable; `MLFLOW_EXPERIMENT_NAME` is heeded too."""
RUN_TAG = "k25.run"
STEPS_WAITING = 10_000
"""Steps that MLflow may lag behind."""
CLOSE_SECONDS = 30.0
"""For which a run that ends waits for MLflow."""


class Tracker(Protocol):
    """Takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, float]) -> str | None:
        """Take them, and return what is to be said: that something went wrong, once."""
        ...

    def close(self) -> str | None:
        """Write what is left, and return as `log` does."""
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
    """A run of MLflow's for each of ours, found again by its tag. A thread talks to it, so that no step waits."""

    def __init__(self, run: str) -> None:
        self._run, self._trouble, self._is_told = run, "", False
        self._told: queue.Queue[tuple[int, int, Mapping[str, float]] | None] = queue.Queue(STEPS_WAITING)
        self._thread = threading.Thread(target=self._talk, name="k25-mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> str | None:
        if not self._trouble:
            with suppress(queue.Full):
                self._told.put_nowait((step, int(time.time() * 1000), figures))
                return self._news()
            self._trouble = f"{STEPS_WAITING} steps wait to be told"
        return self._news()

    def close(self) -> str | None:
        if not self._trouble:
            with suppress(queue.Full):
                self._told.put_nowait(None)
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive() and not self._trouble:
                self._trouble = f"no answer within {CLOSE_SECONDS:.0f} s"
        return self._news()

    def _news(self) -> str | None:
        """Return what went wrong, once."""
        if not self._trouble or self._is_told:
            return None
        self._is_told = True
        return f"MLflow at {os.environ.get(MLFLOW_URI)} is told no more of this run, which goes on: {self._trouble}"

    def _talk(self) -> None:
        try:
            metric, client, run = _mlflow_run(self._run)
            while (told := self._told.get()) is not None:
                step, now, figures = told
                named = [metric(key=name, value=value, timestamp=now, step=step) for name, value in figures.items()]
                client.log_batch(run, metrics=named)
            client.set_terminated(run)
        except Exception as error:  # noqa: BLE001  whatever a server, the network or MLflow itself does
            self._trouble = " ".join(str(error).split()) or type(error).__name__


def _mlflow_run(run: str) -> tuple[Any, Any, str]:
    """Return MLflow's metric, its client, and the id of the run that bears our run's name as a tag."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report its own use to its makers
    mlflow = import_module("mlflow")
    client = mlflow.tracking.MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "k25")
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name)
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
    made = found[0] if found else client.create_run(experiment, tags={RUN_TAG: run}, run_name=run)
    return mlflow.entities.Metric, client, made.info.run_id
