"""What `sample/journal.py` promises: a bad sample stays bad for all ranks, and the lake is asked when it must be."""

import json
import uuid

import pytest

from k25_pipelines.errors import BadSampleBudgetError
from k25_pipelines.sample.journal import SAMPLES_NAMED, Journal
from k25_pipelines.storage.memory import MemoryStore
from k25_pipelines.storage.store import open_store


def new_lake():
    return open_store(f"memory://{uuid.uuid4().hex}")


def row(line: int, step: int, *, dataset: str = "d") -> dict:
    return {"dataset": dataset, "line": line, "epoch": 0, "step": step, "pack": 0}


@pytest.fixture
def listed(monkeypatch):
    """The listings that were asked for."""
    prefixes, whole = [], MemoryStore.list
    monkeypatch.setattr(MemoryStore, "list", lambda store, prefix="": prefixes.append(prefix) or whole(store, prefix))
    return prefixes


def test_a_sample_is_masked_from_its_step_on_also_in_a_later_attempt():
    lake = new_lake()
    Journal(lake, "r").write(row(3, 5), "broken")
    later = Journal(lake, "r")
    assert [later.reason(row(3, step)) for step in (4, 5, 6)] == [None, "broken", "broken"]
    assert later.reason(row(4, 6)) is None
    assert Journal(lake, "another").reason(row(3, 6)) is None


def test_of_two_ranks_that_meet_a_bad_sample_the_earlier_step_counts():
    lake = new_lake()
    first, second = Journal(lake, "r", is_shared=True), Journal(lake, "r", is_shared=True)
    first.write(row(3, 9), "broken")
    second.write(row(3, 7), "broken too")
    assert [json.loads(lake.get(info.key))["step"] for info in lake.list("k25/runs/r/")] == [7]
    first.refresh()
    assert [first.reason(row(3, step)) for step in (6, 7)] == [None, "broken too"]


def test_the_lake_is_asked_only_before_a_sample_that_any_rank_may_have_met_since(listed):
    lake = new_lake()
    own, other = Journal(lake, "r", is_shared=True), Journal(lake, "r", is_shared=True)
    own.follow(0, all_samples=[("d", 0), ("d", 1)], own=[("d", 0)])
    listed.clear()
    other.write(row(1, 0), "broken")
    own.follow(1, all_samples=[("d", 2), ("d", 3)], own=[("d", 2)])
    own.follow(2, all_samples=[("d", 1), ("d", 5)], own=[("d", 5)])
    assert listed == []
    own.follow(3, all_samples=[("d", 1), ("d", 6)], own=[("d", 1)])
    assert listed == ["k25/runs/r/bad_samples/"]
    assert own.reason(row(1, 3)) == "broken"


def test_the_lake_is_asked_where_steps_were_left_out(listed):
    own = Journal(new_lake(), "r", is_shared=True)
    own.follow(0, all_samples=[("d", 0)], own=[])
    listed.clear()
    own.follow(7, all_samples=[("d", 0)], own=[])
    assert len(listed) == 1


def test_a_run_of_one_rank_asks_no_more_than_once(listed):
    own = Journal(new_lake(), "r")
    for step in range(3):
        own.follow(step, all_samples=[("d", 0)], own=[("d", 0)])
    assert len(listed) == 1


def test_a_budget_that_is_passed_stops_with_the_list_and_says_where_all_of_it_stands():
    lake = new_lake()
    journal = Journal(lake, "r")
    for line in range(SAMPLES_NAMED + 3):
        journal.write(row(line, 0), f"reason {line}")
        journal.write(row(0, 0, dataset="fine"), "one")
    journal.check_budget(lambda dataset: SAMPLES_NAMED + 3)
    with pytest.raises(BadSampleBudgetError) as failure:
        journal.check_budget(lambda dataset: 1)
    message = str(failure.value)
    assert message.startswith(f"d has {SAMPLES_NAMED + 3} bad samples, its budget is 1: d:0 (reason 0); d:1 (reason 1)")
    assert f", and 3 more (all in {lake.url}/k25/runs/r/bad_samples/)" in message
