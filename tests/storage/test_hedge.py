"""Late answers: a small read that takes far longer than others is asked for a second time, within the budget."""

import threading
from itertools import count

import pytest

from k25_pipelines.storage.hedge import LEARNING, Hedger
from k25_pipelines.storage.store import open_store
from tests.storage.conftest import use_endpoint
from tests.storage.mock_s3 import BODY, mock_s3


@pytest.fixture
def hedger():
    hedger = Hedger[str](0.02, lambda: True)
    for _ in range(LEARNING):
        hedger.ask(lambda: "quick")
    return hedger


def late_first(then: str | Exception, *, at_last: str | Exception = "late"):
    """Return an operation whose first call answers only after its second one did."""
    calls, second_is_done = count(), threading.Event()

    def operation() -> str:
        if next(calls) == 0:
            second_is_done.wait(5)
            outcome = at_last
        else:
            second_is_done.set()
            outcome = then
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return operation


def test_what_is_late_is_asked_for_again_and_the_first_answer_counts(hedger):
    blocked = threading.Event()
    calls = count()
    assert hedger.ask(lambda: (blocked.wait(5) and "late") if next(calls) == 0 else "second") == "second"
    blocked.set()
    assert hedger.num_hedged == 1


def test_a_second_request_that_fails_leaves_the_first_to_answer(hedger):
    assert hedger.ask(late_first(KeyError("second"))) == "late"


def test_where_both_fail_so_does_the_read(hedger):
    with pytest.raises(KeyError):
        hedger.ask(late_first(KeyError("second"), at_last=KeyError("first")))


def test_without_a_free_permit_nothing_is_asked_twice():
    hedger, asked = Hedger[str](0.01, lambda: False), []
    for _ in range(LEARNING):
        hedger.ask(lambda: "quick")
    assert hedger.ask(lambda: (asked.append(1), threading.Event().wait(0.1), "slow")[-1]) == "slow"
    assert (len(asked), hedger.num_hedged) == (1, 0)


def test_nothing_is_late_until_enough_was_seen():
    hedger = Hedger[str](0.001, lambda: True)
    for _ in range(LEARNING):
        hedger.ask(lambda: (threading.Event().wait(0.005), "slow")[-1])
    assert hedger.num_hedged == 0


def test_one_late_answer_of_many_costs_one_more_request(monkeypatch):
    numbers, paths = count(), []

    def answer(path: str) -> tuple[int, float]:
        paths.append(path)
        return 200, 3 if next(numbers) == 30 else 0

    monkeypatch.setenv("K25_S3_HEDGE", "0.3")
    with mock_s3(answer) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        store = open_store("s3://lake")
        found = [store.get_range(f"{number:02}", number, 100) for number in range(40)]
    assert found == [BODY[number : number + 100] for number in range(40)]
    assert sorted(paths) == sorted([f"/lake/{number:02}" for number in range(40)] + ["/lake/30"])
    assert store.statistics() == {"requests": 41, "throttled": 0, "retried": 0, "hedged": 1, "bytes": 4000}


def test_hedging_can_be_switched_off(monkeypatch):
    numbers = count()
    monkeypatch.setenv("K25_S3_HEDGE", "off")
    with mock_s3(lambda path: (200, 1.2 if next(numbers) == 30 else 0)) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        store = open_store("s3://lake")
        assert {store.get_range("a", 0, 10) for _ in range(40)} == {BODY[:10]}
    assert next(numbers) == 40
