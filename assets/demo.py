"""The main job from the command line: index every dataset, then plan, train, evaluate and report, all in Dagster.

Run: python -m assets.demo [--scale toy|demo]. The runs stand in the embedded instance, where the web page shows
them. A second call finds what is made; one after a kill goes on where the first stopped.
"""

import argparse
import logging
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg
from tqdm import tqdm

from assets import processes
from assets.instance import add_datasets, open_instance
from assets.reporting import in_words
from assets.resources import dagster_home, lake_from_env, trainer_from_env
from k25_pipelines.errors import K25Error
from k25_pipelines.storage.store import Store

if TYPE_CHECKING:
    from dagster._core.events.log import EventLogEntry

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
FACTS = (
    "dagster/row_count",
    "steps",
    "probe_before",
    "probe_after",
    "fill",
    "vision_share",
    "true_loss",
    "shuffled_loss",
)


class Board:
    """What the terminal shows: one bar over all assets, a line for each that is made, the trainer's words beside."""

    def __init__(self, num_assets: int):
        """Draw an empty bar."""
        self.bar = tqdm(
            disable=not sys.stderr.isatty(),
            total=num_assets,
            unit="asset",
            dynamic_ncols=True,
            file=sys.stderr,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self.failed_checks: list[str] = []

    def listen(self, what: str) -> "Callable[[EventLogEntry], None]":
        """Return a listener of a run's events; `what` is the partition, or empty."""

        def on_event(entry: "EventLogEntry") -> None:
            event = entry.dagster_event
            if event is None:
                self._words(entry)
            elif event.event_type_value == "STEP_START":
                self.bar.set_description_str(f"{event.step_key} {what}".strip()[:36])
            elif event.event_type_value == "ASSET_MATERIALIZATION":
                self._asset(event, what)
            elif event.event_type_value == "ASSET_CHECK_EVALUATION":
                self._check(event.asset_check_evaluation_data)

        return on_event

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.set_postfix_str("")
        self.bar.close()

    def _words(self, entry: "EventLogEntry") -> None:
        line = entry.user_message.partition("\n")[0]
        if not entry.step_key or line.startswith("[pipes]"):
            return
        self.bar.set_postfix_str(line[:90])
        if self.bar.disable and int(entry.level) >= logging.INFO:  # no terminal: what moves a bar there is a line here
            self.bar.write(f"      {line}", file=sys.stdout)
            sys.stdout.flush()

    def _asset(self, event: Any, what: str) -> None:
        metadata = {name: value.value for name, value in event.materialization.metadata.items()}
        facts = [
            f"{name.removeprefix('dagster/').replace('_', ' ')} {in_words(metadata[name])}"
            for name in FACTS
            if name in metadata
        ]
        found = " (found)" if metadata.get("cached") else ""
        self.bar.write(f"  {f'{event.step_key} {what}'.strip():38} {', '.join(facts)}{found}", file=sys.stdout)
        self.bar.update(1)

    def _check(self, check: Any) -> None:
        if check.passed:
            return
        is_error = check.severity == dg.AssetCheckSeverity.ERROR
        words = "failed" if is_error else "failed (a warning)"
        self.bar.write(f"  ! check {check.check_name} {words}: {check.asset_key.to_user_string()}", file=sys.stdout)
        if is_error:
            self.failed_checks.append(check.check_name)


def main(arguments: list[str] | None = None) -> int:
    """Make all that is tagged k25/demo; return 0, 1 if a run or a check failed, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m assets.demo", description=__doc__)
    parser.add_argument("--scale", choices=["demo", "toy"], default="demo", help="toy: seconds a stage")
    os.environ["K25_SCALE"] = parser.parse_args(arguments).scale  # the definitions read it when they are loaded
    warnings.simplefilter("ignore", dg.PreviewWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stopped demo stops its trainer
    try:
        lake = lake_from_env().open()
        with open_instance(dagster_home()) as instance:
            return _materialize_all(instance, lake)
    except K25Error as error:
        sys.stderr.write(f"k25 demo: {error}\n")
        return 2


def _materialize_all(instance: dg.DagsterInstance, lake: Store) -> int:
    from assets.definitions import defs  # after K25_SCALE is set
    from assets.summary import summary

    names = add_datasets(instance, lake)
    index, rest = defs.resolve_job_def("index_datasets"), defs.resolve_job_def("demo")
    num_assets = len(names) * len(_assets_of(index)) + len(_assets_of(rest))
    board = Board(num_assets)
    try:
        done = all(_run(index, instance, board, partition=name) for name in names) and _run(rest, instance, board)
    finally:
        board.close()
    if not done:
        sys.stdout.write("Stopped. The same command goes on where this one stopped.\n")
        return 1
    sys.stdout.write(summary(lake, trainer_from_env()))
    if board.failed_checks:
        sys.stdout.write(
            f"Everything was made; {len(board.failed_checks)} checks failed: {', '.join(board.failed_checks)}\n"
        )
    return 1 if board.failed_checks else 0


def _assets_of(job: dg.JobDefinition) -> set[dg.AssetKey]:
    return set(job.asset_layer.selected_asset_keys)


def _run(job: dg.JobDefinition, instance: dg.DagsterInstance, board: Board, *, partition: str | None = None) -> bool:
    """Run a job in this process, shown on the board; return whether it ended well, and say why if not."""
    run_id = str(uuid.uuid4())
    processes.record_process(processes.records_folder(instance.root_directory), run_id)
    instance.add_event_listener(run_id, board.listen(partition or ""))
    result = job.execute_in_process(
        instance=instance, run_id=run_id, partition_key=partition, run_config=QUIET, raise_on_error=False
    )
    for event in result.filter_events(lambda event: event.is_step_failure):
        failure = event.step_failure_data
        error = failure.error.cause or failure.error if failure.error else None
        words = failure.user_failure_data.description if failure.user_failure_data else error and error.message
        board.bar.write(f"\n{event.step_key} failed: {words}", file=sys.stdout)
    return result.success


if __name__ == "__main__":
    sys.exit(main())
