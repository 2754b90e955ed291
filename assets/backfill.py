"""Make up for what is missing or was changed: by dataset, by day range, or a whole stage; a run each, in order.

Run: python -m assets.backfill --days 2026-11-01:2026-11-07   (or `k25 backfill`; --help shows the rest)

A backfill is named by what it is to make. One that was stopped goes on where it was; one that is done begins anew.
"""

import argparse
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol

import dagster as dg
from tqdm import tqdm

from assets import processes
from assets.instance import add_datasets, open_instance
from assets.outputs import EDITION_TAG, MAIN
from assets.resources import dagster_home, first_day_from_env, lake_from_env
from k25_pipelines.catalog.registration import nearest
from k25_pipelines.errors import K25Error
from k25_pipelines.keys import digest

BACKFILL_TAG, ITEM_TAG = "k25/backfill", "k25/backfill_item"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DONE = "SUCCESS"
OPEN = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "MANAGED")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One run of a backfill."""

    job: str
    partition: str | None = None
    assets: tuple[str, ...] = ()
    """Of the job; none: all of it."""
    edition: str = MAIN

    @property
    def name(self) -> str:
        """What the run is called: unique in a backfill."""
        return f"{self.job} {self.partition or ' '.join(self.assets)}".strip()

    def tags(self, backfill: str) -> dict[str, str]:
        """Return the tags of the run."""
        edition = {EDITION_TAG: self.edition} if self.edition != MAIN else {}
        return {BACKFILL_TAG: backfill, ITEM_TAG: digest(self.name), **edition}


class Runner(Protocol):
    """Where the runs of a backfill are made."""

    def states(self, backfill: str) -> Mapping[str, str]:
        """Return the newest status of each item of a backfill, by its tag."""
        ...

    def start(self, item: Item, backfill: str) -> str:
        """Make the run of an item, or hand it over; return its status, and what failed where it failed."""
        ...


class Here:
    """Runs, one after the other, in this process: needs no daemon and no server."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        """Load the definitions."""
        from assets.definitions import defs

        self.instance, self.defs = instance, defs

    def states(self, backfill: str) -> Mapping[str, str]:
        """Return the newest status of each item of a backfill, by its tag."""
        runs = self.instance.get_runs(dg.RunsFilter(tags={BACKFILL_TAG: backfill}))
        return {run.tags[ITEM_TAG]: run.status.value for run in reversed(runs)}

    def start(self, item: Item, backfill: str) -> str:
        """Make the run of an item."""
        run_id = str(uuid.uuid4())
        processes.record_process(processes.records_folder(self.instance.root_directory), run_id)
        result = self.defs.resolve_job_def(item.job).execute_in_process(
            instance=self.instance,
            run_id=run_id,
            partition_key=item.partition,
            asset_selection=[dg.AssetKey(name) for name in item.assets] or None,
            tags=item.tags(backfill),
            run_config=QUIET,
            raise_on_error=False,
        )
        if result.success:
            return DONE
        return f"FAILURE: {'; '.join(_words_of_failures(result)) or f'see run {run_id} in the web page'}"


def main(arguments: list[str] | None = None) -> int:
    """Make a backfill; return 0, 1 if a run failed, 2 on bad input."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stopped backfill stops its trainer
    if options.scale:
        os.environ["K25_SCALE"] = options.scale  # the definitions read it when they are loaded
    try:
        with open_instance(dagster_home()) as instance:
            items = wanted(options, datasets=add_datasets(instance, lake_from_env().open()))
            if options.dry_run:
                sys.stdout.write("".join(f"{item.name}\n" for item in items))
                return 0
            with _runner(options, instance) as runner:
                return run_all(items, runner, again=options.again)
    except K25Error as error:
        sys.stderr.write(f"k25 backfill: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="k25 backfill", description=__doc__)
    parser.add_argument("--datasets", default="", help="names with commas, or `all`: index them and count their tokens")
    parser.add_argument("--days", default="", metavar="A:B", help="index what arrived from day A to B, both included")
    parser.add_argument("--stage", default="", help="plan and train a stage")
    parser.add_argument("--parents", action="store_true", help="with --stage: the stages before it, too")
    parser.add_argument("--edition", default=MAIN, help="with --stage: of which training; default: main")
    parser.add_argument("--scale", choices=["demo", "toy"], help="with --stage; K25_SCALE if not given")
    parser.add_argument("--server", metavar="URL", help="hand the runs over to the web server there, which queues them")
    parser.add_argument("--again", action="store_true", help="make everything, also what an unfinished backfill made")
    parser.add_argument("--dry-run", action="store_true", help="name the runs and make none")
    return parser


@contextmanager
def _runner(options: argparse.Namespace, instance: dg.DagsterInstance) -> Iterator[Runner]:
    if options.server:
        from assets.server import Server

        yield Server(options.server)
    else:
        yield Here(instance)


def wanted(options: argparse.Namespace, *, datasets: Sequence[str]) -> list[Item]:
    """Return the runs that the options ask for, in order. Raises K25Error: they ask for nothing, or the unknown."""
    items = [Item(job="index_datasets", partition=name) for name in _names(options.datasets, datasets)]
    items += [Item(job="index_day", partition=day) for day in days_between(options.days)]
    if options.stage:
        items += [
            Item(job="pretraining", assets=assets, edition=options.edition)
            for assets in _stages(options.stage, parents=options.parents)
        ]
    if not items:
        raise K25Error("nothing to make: give --datasets NAMES, --days A:B or --stage STAGE; see k25 backfill --help")
    return items


def _names(words: str, known: Sequence[str]) -> list[str]:
    names = list(known) if words == "all" else [name for name in words.split(",") if name]
    for name in names:
        if name not in known:
            raise K25Error(f"unknown dataset {name!r}{nearest(name, list(known))}; register it first: k25 register")
    return names


def days_between(words: str) -> list[str]:
    """Return the days of `A:B`, both included, or of one day. Raises K25Error: it is no such range, or too early."""
    if not words:
        return []
    first, _, last = words.partition(":")
    try:
        start, end = date.fromisoformat(first), date.fromisoformat(last or first)
    except ValueError as error:
        raise K25Error(f"--days {words} is no range of days; write 2026-11-01:2026-11-07, both included") from error
    if start.isoformat() < first_day_from_env() or end < start:
        raise K25Error(f"--days {words} has to go forward from {first_day_from_env()} on (K25_FIRST_DAY)")
    return [(start + timedelta(days=number)).isoformat() for number in range((end - start).days + 1)]


def _stages(stage: str, *, parents: bool) -> list[tuple[str, ...]]:
    """Return the assets of a stage, and before them those of the stages that it starts from, if they are wanted."""
    from assets.pretraining import ASSET_OF_STAGE
    from trainers.recipes import PARENTS

    if stage not in ASSET_OF_STAGE:
        raise K25Error(f"unknown stage {stage!r}{nearest(stage, list(ASSET_OF_STAGE))}")
    chosen = {stage}
    while parents and (more := {parent for each in chosen for parent in PARENTS[each].values()} - chosen):
        chosen |= more
    return [(f"{each}_plan", asset) for each, asset in ASSET_OF_STAGE.items() if each in chosen]


def run_all(items: Sequence[Item], runner: Runner, *, again: bool = False) -> int:
    """Make the runs that an unfinished backfill of the same items lacks; say what each came to."""
    backfill, states = open_backfill(items, runner, again=again)
    left = [item for item in items if states.get(digest(item.name)) not in (DONE, *OPEN)]
    sys.stdout.write(f"backfill {backfill}: {len(items)} runs, {len(items) - len(left)} of them made or under way\n")
    failed = 0
    with tqdm(total=len(left), unit="run", file=sys.stderr, disable=None, leave=False) as bar:
        for item in left:
            bar.set_postfix_str(item.name[:50])
            said = runner.start(item, backfill)
            failed += said.startswith("FAILURE")
            bar.write(f"  {item.name:52} {said}", file=sys.stdout)
            sys.stdout.flush()
            bar.update()
    if failed:
        sys.stdout.write(f"{failed} of {len(items)} runs failed; the same command goes on with these\n")
    return 1 if failed else 0


def open_backfill(items: Sequence[Item], runner: Runner, *, again: bool) -> tuple[str, Mapping[str, str]]:
    """Return the id of the backfill to go on with, and what it has: the newest of these items, or a new one."""
    name = digest(sorted((item.name, item.edition) for item in items))[:12]
    number, states = 1, runner.states(f"{name}-1")
    while states:
        if (following := runner.states(f"{name}-{number + 1}")) or again:
            number, states = number + 1, following
            continue
        if any(states.get(digest(item.name)) != DONE for item in items):
            break
        number, states = number + 1, {}
    return f"{name}-{number}", states


def _words_of_failures(result: dg.ExecuteInProcessResult) -> list[str]:
    words = []
    for event in result.filter_events(lambda event: event.is_step_failure):
        failure = event.step_failure_data
        error = failure.error.cause or failure.error if failure.error else None
        said = failure.user_failure_data.description if failure.user_failure_data else error and error.message
        words.append(f"{event.step_key}: {(said or 'no words').strip()}")
    return words


if __name__ == "__main__":
    sys.exit(main())
