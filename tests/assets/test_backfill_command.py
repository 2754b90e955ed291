"""`k25 backfill`: runs of the graph by dataset, day range and stage; stopped, it goes on where it was."""

import argparse
import subprocess
import sys

import pytest

from assets.backfill import Item, days_between, open_backfill, run_all, wanted
from k25_pipelines.errors import K25Error
from k25_pipelines.keys import digest
from tests.assets.conftest import ROOT

ITEMS = [Item(job="index_day", partition="2026-11-01"), Item(job="index_day", partition="2026-11-02")]


class Board:
    """A runner that remembers what it was asked for; some items fail."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.made, self.runs = set(failing), [], {}

    def states(self, backfill: str) -> dict[str, str]:
        return dict(self.runs.get(backfill, {}))

    def start(self, item: Item, backfill: str) -> str:
        self.made.append(item.name)
        said = "FAILURE" if item.partition in self.failing else "SUCCESS"
        self.runs.setdefault(backfill, {})[digest(item.name)] = said
        return said


def options(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"datasets": "", "days": "", "stage": "", "parents": False, "edition": "main", **given})


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def test_a_range_of_days_has_both_its_ends():
    assert days_between("2026-02-27:2026-03-01") == ["2026-02-27", "2026-02-28", "2026-03-01"]


@pytest.mark.parametrize("words", ["2026-11-07:2026-11-01", "yesterday", "2025-12-31:2026-01-02", "2026-11-01:"])
def test_what_is_no_range_of_days_is_named(words):
    if words.endswith(":"):
        assert days_between(words) == ["2026-11-01"]
        return
    with pytest.raises(K25Error, match=f"--days {words}"):
        days_between(words)


def test_datasets_come_before_days_and_days_before_a_stage():
    asked = options(datasets="b", days="2026-11-01", stage="warmup")
    found = names(wanted(asked, datasets=["a", "b"]))
    assert found == ["index_datasets b", "index_day 2026-11-01", "pretraining warmup_plan language_checkpoint"]


def test_a_stage_is_made_after_those_that_it_starts_from():
    found = names(wanted(options(stage="projector", parents=True), datasets=[]))
    assert found == [
        "pretraining warmup_plan language_checkpoint",
        "pretraining vit_plan vit_checkpoint",
        "pretraining projector_plan projector_checkpoint",
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to make"),
        ({"datasets": "wikki"}, "unknown dataset 'wikki'; did you mean 'wiki'"),
        ({"stage": "joined"}, "unknown stage 'joined'; did you mean 'joint'"),
    ],
)
def test_what_cannot_be_made_is_named_with_the_way_out(given, words):
    with pytest.raises(K25Error, match=words):
        wanted(options(**given), datasets=["wiki"])


def test_a_backfill_with_a_failure_goes_on_with_it_alone(capsys):
    runner = Board("2026-11-02")
    assert run_all(ITEMS, runner) == 1
    assert "1 of 2 runs failed; the same command goes on" in capsys.readouterr().out
    runner.failing.clear()
    assert run_all(ITEMS, runner) == 0
    assert runner.made == [ITEMS[0].name, ITEMS[1].name, ITEMS[1].name]


def test_a_backfill_that_is_done_begins_anew():
    runner = Board()
    assert [run_all(ITEMS, runner), run_all(ITEMS, runner)] == [0, 0]
    assert (len(runner.made), sorted(len(states) for states in runner.runs.values())) == (4, [2, 2])


def test_again_makes_what_a_stopped_backfill_has_made():
    runner = Board("2026-11-02")
    run_all(ITEMS, runner)
    assert open_backfill(ITEMS, runner, again=True)[1] == {}


def test_the_command_indexes_days_and_leaves_runs_that_the_page_shows(place):
    words = ["--days", "2026-11-20:2026-11-21"]
    command = [sys.executable, "-W", "ignore", "-m", "k25_pipelines", "backfill", *words]
    done = subprocess.run(command, cwd=ROOT, env=place.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "index_day 2026-11-20" in done.stdout
    runs = place.instance.get_runs()
    told = {(run.job_name, run.tags["dagster/partition"], run.status.value) for run in runs}
    assert told == {("index_day", "2026-11-20", "SUCCESS"), ("index_day", "2026-11-21", "SUCCESS")}
