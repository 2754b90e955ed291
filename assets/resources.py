"""Environment in, resources out: the lake, the trainer's launcher, the schedule's settings. Nothing else reads it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from assets import processes
from k25_pipelines.errors import K25Error
from k25_pipelines.storage.store import Store, open_store
from trainers.recipes import SCALES

REPOSITORY = Path(__file__).resolve().parent.parent
STATE = REPOSITORY / ".k25"
DAGSTER_HOME_DEFAULT = STATE / "dagster"
PAGES_URL = "http://127.0.0.1:3080"
"""Where `k25 ui` and `k25 pages` serve pages, unless told otherwise."""
RATES = ("tokens_per_gpu_second", "usd_per_gpu_hour", "usd_per_1000_gets", "usd_per_gb")
"""Rates of a quote that K25_TOKENS_PER_GPU_SECOND and so on may say."""
PARALLEL = ("decoupled_vision", "expert_ranks", "pipeline_stages", "virtual_stages")
"""Fields of `trainers.config.ParallelConfig`."""


class NotAnOutputError(K25Error):
    """An asset returned a value: what assets make is in the lake, never in Dagster's folder."""


class LakeResource(dg.ConfigurableResource):
    """The object store with the raw data and all that is made of it."""

    url: str
    """`s3://bucket/prefix` or a folder; empty if the environment names none."""

    def open(self) -> Store:
        """Return the store. Raises K25Error where the environment names none."""
        if not self.url:
            raise K25Error("K25_LAKE is not set; start the embedded lake with `k25 up --background` and `. .k25/env`")
        return open_store(self.url)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Write down which process executes this run, so that a killed one is told from a busy one."""
        if context.run and context.instance:
            folder = processes.records_folder(context.instance.root_directory)
            processes.record_process(folder, context.run.run_id)


class TrainerResource(dg.ConfigurableResource):
    """How and where trainers are started; none of it changes what they compute, but `scale`."""

    scale: str = "demo"
    """Which recipes: `demo`, or `toy` for seconds a stage."""
    python: str = sys.executable
    """The interpreter of the trainers; the graph's own needs no torch."""
    work: str = str(STATE / "work")
    """Folder of run files, logs and caches, one below it per run."""
    threads: int = os.cpu_count() or 1
    """Threads of a trainer's arithmetic; the same number continues a run bit for bit."""
    num_ranks: int = 1
    """Processes of a trainer."""
    expert_ranks: int = 1
    """Ranks that share one set of experts."""
    pipeline_stages: int = 1
    """Ranks that the decoder's layers are spread over."""
    virtual_stages: int = 2
    """Runs of layers that each rank of a pipeline has."""
    decoupled_vision: bool = True
    """Whether media are encoded by all ranks alike."""
    recompute: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """Parts of the decoder made again for the backward pass."""
    offload: bool = False
    """Whether what the backward pass needs waits in the CPU's memory."""
    tensorboard: bool = False
    """Whether trainers write event files below their work folder."""
    grace_seconds: float = 20.0
    """How long a cancelled trainer may take to leave [s]."""

    def command(self, module: str, arguments: list[str], *, num_ranks: int = 1, logs: Path | None = None) -> list[str]:
        """Return the command that starts a trainer's module on so many ranks; those above 0 write below `logs`."""
        launcher = ["trainers.ranks", "--logs", str(logs or self.work), str(num_ranks)] if num_ranks > 1 else []
        return [self.python, "-m", *launcher, module, *arguments]

    def layout(self) -> dict[str, Any]:
        """Return what a stage's run file says of how the work is done: nothing of it changes what is learnt."""
        parallel = {name: getattr(self, name) for name in PARALLEL}
        others = {name: getattr(self, name) for name in ("threads", "recompute", "offload", "tensorboard")}
        return {"parallel": parallel, **others}


class NoOutputs(dg.ConfigurableIOManager):
    """Refuses to store what an asset returns: the default would fill DAGSTER_HOME with pickles."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Accept nothing but nothing."""
        if obj is not None:
            raise NotAnOutputError(f"{context.asset_key.to_user_string()} returned a value; write it to the lake")

    def load_input(self, context: dg.InputContext) -> Any:
        """Refuse: an asset reads its inputs from the lake."""
        raise NotAnOutputError(f"{context.asset_key.to_user_string()} is not loaded by Dagster; read it from the lake")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainingSettings:
    """When the scheduled retraining runs, and how much of it."""

    cron: str
    """Cron line, in UTC."""
    is_on: bool
    """Whether the schedule runs as soon as a daemon does; else it is switched on in the web page."""
    stages: tuple[str, ...]
    """The stages that are trained anew; the others are taken from the main edition."""
    most_usd: float | None = None
    """What one retraining may cost by its quote; None: anything."""
    most_usd_per_month: float | None = None
    """What the retrainings of 30 days may cost together."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Speeds and prices of the quote that differ from its own."""


def resources_from_env() -> dict[str, Any]:
    """Return the resources that the environment describes."""
    return {"lake": lake_from_env(), "trainer": trainer_from_env(), "io_manager": NoOutputs()}


def lake_from_env() -> LakeResource:
    """Return the lake of K25_LAKE."""
    return LakeResource(url=os.environ.get("K25_LAKE", ""))


def trainer_from_env() -> TrainerResource:
    """Return the trainer's launcher.

    From K25_SCALE, K25_TRAINER_PYTHON, K25_WORK; K25_THREADS (of a rank; the cores dealt out among the ranks if not
    told), K25_RANKS, K25_EXPERT_RANKS, K25_PIPELINE_STAGES, K25_VIRTUAL_STAGES, K25_COUPLED_VISION; K25_RECOMPUTE
    (names with commas), K25_OFFLOAD, K25_TENSORBOARD. Switches are `on` or `off`.

    Raises:
        K25Error: a variable holds what cannot be.
    """
    scale = os.environ.get("K25_SCALE", "demo")
    if scale not in SCALES:
        raise K25Error(f"K25_SCALE is {scale!r}; the scales are {', '.join(SCALES)}")
    num_ranks = _whole("K25_RANKS", 1)
    return TrainerResource(
        scale=scale,
        python=os.environ.get("K25_TRAINER_PYTHON", sys.executable),
        work=os.environ.get("K25_WORK", str(STATE / "work")),
        threads=_whole("K25_THREADS", max(1, (os.cpu_count() or 1) // num_ranks)),
        num_ranks=num_ranks,
        expert_ranks=_whole("K25_EXPERT_RANKS", 1),
        pipeline_stages=_whole("K25_PIPELINE_STAGES", 1),
        virtual_stages=_whole("K25_VIRTUAL_STAGES", 2),
        decoupled_vision=not _switch("K25_COUPLED_VISION"),
        recompute=[name for name in os.environ.get("K25_RECOMPUTE", "").split(",") if name],
        offload=_switch("K25_OFFLOAD"),
        tensorboard=_switch("K25_TENSORBOARD"),
    )


def _whole(name: str, default: int) -> int:
    """Return a variable that counts something. Raises K25Error where it is no whole number of at least 1."""
    told = os.environ.get(name, str(default))
    if not told.isascii() or not told.isdigit() or int(told) < 1:
        raise K25Error(f"{name} is {told!r}; expected a whole number of at least 1")
    return int(told)


def _switch(name: str) -> bool:
    """Return a variable that is on or off; off where it is not told. Raises K25Error where it is neither."""
    told = os.environ.get(name, "off")
    if told not in ("on", "off"):
        raise K25Error(f"{name} is {told!r}; expected on or off")
    return told == "on"


def retraining_from_env(stages: tuple[str, ...]) -> RetrainingSettings:
    """Return when and what to retrain: K25_RETRAIN_CRON, K25_RETRAIN (on or off), K25_RETRAIN_STAGES.

    Raises:
        K25Error: K25_RETRAIN_STAGES names something else than one of `stages`.
    """
    chosen = os.environ.get("K25_RETRAIN_STAGES", "")
    if unknown := sorted(set(chosen.split(",")) - {*stages, ""}):
        raise K25Error(f"K25_RETRAIN_STAGES names {', '.join(unknown)}; the stages are {', '.join(stages)}")
    return RetrainingSettings(
        cron=os.environ.get("K25_RETRAIN_CRON", "0 2 * * *"),
        is_on=os.environ.get("K25_RETRAIN", "off") == "on",
        stages=tuple(stage for stage in stages if stage in chosen.split(",")) if chosen else stages,
        most_usd=_amount("K25_RETRAIN_USD"),
        most_usd_per_month=_amount("K25_RETRAIN_USD_PER_MONTH"),
        rates={name: told for name in RATES if (told := _amount(f"K25_{name.upper()}")) is not None},
    )


def first_day_from_env() -> str:
    """Return the first day of ingestion, K25_FIRST_DAY, such as `2026-01-01`. Raises K25Error: it is no day."""
    told = os.environ.get("K25_FIRST_DAY", "2026-01-01")
    try:
        return date.fromisoformat(told).isoformat()
    except ValueError as error:
        raise K25Error(f"K25_FIRST_DAY is {told!r}; write a day such as 2026-01-01") from error


def is_on(name: str) -> bool:
    """Return whether an environment variable that is on or off is on."""
    return os.environ.get(name, "off") == "on"


def inbox_from_env() -> str:
    """Return the bucket prefix below which new datasets announce themselves, K25_INBOX; empty if there is none."""
    return os.environ.get("K25_INBOX", "")


def pages_url_from_env() -> str:
    """Return where a browser finds the lake's pages, K25_PAGES_URL: part of every link that a materialisation keeps."""
    return os.environ.get("K25_PAGES_URL", PAGES_URL).rstrip("/")


def mlflow_from_env() -> tuple[str, str]:
    """Return MLflow's own MLFLOW_TRACKING_URI, empty if it is not used, and MLFLOW_EXPERIMENT_NAME."""
    return os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_EXPERIMENT_NAME", "k25")


def openlineage_from_env() -> str:
    """Return the collector of lineage events, OpenLineage's own OPENLINEAGE_URL; empty if there is none."""
    return os.environ.get("OPENLINEAGE_URL", "")


def webhook_from_env() -> str:
    """Return where failures are told, K25_ALERT_WEBHOOK; empty if nowhere."""
    return os.environ.get("K25_ALERT_WEBHOOK", "")


def _amount(name: str) -> float | None:
    """Return the number in an environment variable, None where there is none. Raises K25Error: no amount."""
    told = os.environ.get(name, "")
    try:
        amount = float(told) if told else None
    except ValueError:
        amount = -1.0
    if amount is not None and not 0 <= amount < float("inf"):
        raise K25Error(f"{name} is {told!r}; write a number of at least 0")
    return amount


def dagster_home() -> Path:
    """Return the folder of the Dagster instance, DAGSTER_HOME or .k25/dagster, and name it in the environment."""
    folder = Path(os.environ.get("DAGSTER_HOME") or DAGSTER_HOME_DEFAULT).resolve()
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder
