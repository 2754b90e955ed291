"""The budget of a store: limits are shared and kept, and a limit that nobody told is found and used."""

import heapq
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from k25_pipelines.errors import StoreError
from k25_pipelines.storage.store import open_store
from k25_pipelines.storage.throttle import LONGEST_PAUSE, Budget
from tests.conftest import ROOT
from tests.storage.conftest import use_endpoint
from tests.storage.mock_s3 import BODY, Gate, mock_s3


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def permits_taken(budgets: list[Budget], clock: Clock, seconds: float, num_bytes: int = 0) -> int:
    """Return how many permits start within `seconds`, asked for by turns as soon as the budgets let it."""
    taken, end = 0, clock.now + seconds
    while True:
        is_taken, wait = budgets[taken % len(budgets)].reserve(num_bytes)
        clock.now += wait
        if clock.now >= end:
            return taken
        taken += is_taken


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_a_limit_on_requests_is_one_for_all_who_share_the_folder(tmp_path, num_processes):
    clock = Clock()
    budgets = [Budget(40, None, tmp_path, clock=clock) for _ in range(num_processes)]
    assert permits_taken(budgets, clock, 10) == pytest.approx(400, abs=2)


def test_a_limit_on_bytes_is_one_for_all_who_share_the_folder(tmp_path):
    clock = Clock()
    budgets = [Budget(None, 1_000_000, tmp_path, clock=clock) for _ in range(2)]
    assert permits_taken(budgets, clock, 10, num_bytes=100_000) == pytest.approx(100, abs=2)


def test_bytes_whose_number_shows_only_afterwards_are_paid_for():
    clock = Clock()
    budget = Budget(None, 1000, None, clock=clock)
    budget.charge(5000)
    assert not budget.acquire_free()
    clock.now += 5.01
    assert budget.acquire_free()


def test_without_a_limit_nobody_waits():
    budget = Budget(None, None, None, clock=Clock())
    assert {budget.reserve(10**9) for _ in range(100)} == {(True, 0.0)}
    assert budget.rate() is None


def test_a_pause_that_the_store_asks_for_is_kept_by_all_but_not_for_ever(tmp_path):
    clock = Clock()
    refused, other = (Budget(None, None, tmp_path, clock=clock) for _ in range(2))
    refused.refused(retry_after=5)
    is_taken, wait = other.reserve()
    assert (is_taken, 4.8 < wait <= 5) == (False, True)
    assert not other.acquire_free()
    clock.now += 5.5
    assert other.acquire_free()
    other.refused(retry_after=10**6)
    clock.now += LONGEST_PAUSE + 1
    assert other.acquire_free()


def test_a_refusal_halves_the_rate_that_was_served_and_calm_brings_it_back_and_beyond(tmp_path):
    clock = Clock()
    budget = Budget(None, None, tmp_path, clock=clock)
    for _ in range(400):  # 100 a second
        budget.reserve()
        budget.answered()
        clock.now += 0.01
    budget.refused()
    assert budget.rate() == pytest.approx(50, rel=0.05)
    rates = []
    for _ in range(12):
        clock.now += 1
        budget.reserve()
        rates.append(budget.rate())
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(98, rel=0.05)
    assert rates[-1] > 200


def test_refusals_of_requests_sent_before_the_cut_do_not_cut_again():
    clock = Clock()
    budget = Budget(1000, None, None, clock=clock)
    for _ in range(500):
        budget.answered()
    for _ in range(20):
        budget.refused()
        clock.now += 0.01
    assert budget.rate() > 200


def test_a_limit_that_is_given_is_never_passed():
    clock = Clock()
    budget = Budget(20, None, None, clock=clock)
    for _ in range(100):
        budget.answered()
    budget.refused()
    for _ in range(100):
        clock.now += 1
        budget.reserve()
    assert budget.rate() == 20


@pytest.mark.parametrize("content", [b"", b"\xff" * 400, bytes(range(200)) * 2, b"\x7f\xef" * 200])
def test_a_state_that_makes_no_sense_is_begun_anew(tmp_path, content):
    Budget(40, None, tmp_path)
    (tmp_path / "budget").write_bytes(content)
    clock = Clock()
    assert permits_taken([Budget(40, None, tmp_path, clock=clock)], clock, 1) == pytest.approx(40, abs=2)


def test_a_folder_that_cannot_be_written_leaves_each_process_to_itself():
    clock = Clock()
    assert permits_taken([Budget(40, None, Path("/proc/budget"), clock=clock)], clock, 1) == pytest.approx(40, abs=2)


@pytest.mark.parametrize("num_clients", [8, 64])
@pytest.mark.parametrize("rate", [20, 200])
def test_nine_tenths_of_what_a_store_allows_are_used_in_simulated_time(rate, num_clients):
    served, refused, most_tries = simulated(rate, burst=max(2, rate / 10), num_clients=num_clients, seconds=40)
    assert served >= 0.9
    assert refused <= 0.05
    assert most_tries < 8


def simulated(rate: float, *, burst: float, num_clients: int, seconds: float) -> tuple[float, float, int]:
    """Return the share of a store's permits that clients used, refusals a served request, and tries of the unluckiest.

    The first five seconds, in which the rate is found, are left out.
    """
    clock, jitter = Clock(), random.Random(1)
    budget, begin = Budget(None, None, None, clock=clock), clock.now
    events = [(begin + client * 1e-4, client, "ask") for client in range(num_clients)]
    heapq.heapify(events)
    permits, last, served, refused, tries = burst, begin, 0, 0, [0] * num_clients
    while events[0][0] < begin + seconds:
        clock.now, client, what = heapq.heappop(events)
        is_counted = clock.now > begin + 5
        if what == "ask":
            is_taken, wait = budget.reserve()
            heapq.heappush(events, (clock.now + wait, client, "send" if is_taken else "ask"))
            continue
        permits, last = min(burst, permits + (clock.now - last) * rate), clock.now
        if permits >= 1:
            permits, served, tries[client] = permits - 1, served + is_counted, 0
            budget.answered()
            heapq.heappush(events, (clock.now + 0.01, client, "ask"))
        else:
            refused, tries[client] = refused + is_counted, tries[client] + 1
            budget.refused()
            wait = 0.01 + jitter.uniform(0, min(8, 0.1 * 2 ** (tries[client] - 1)))
            heapq.heappush(events, (clock.now + wait, client, "ask"))
    return served / (rate * (seconds - 5)), refused / served, max(tries)


READER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from k25_pipelines.storage.store import open_store
store, stop, failed = open_store("s3://lake"), Path(sys.argv[1]), []

def work(_):
    while not stop.exists():
        try:
            assert len(store.get_range(sys.argv[2], 100, 1000, etag="mock")) == 1000
        except Exception as error:
            failed.append(repr(error))

with ThreadPoolExecutor(6) as pool:
    list(pool.map(work, range(6)))
print(json.dumps(failed))
"""


def waited_for(is_so: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_so()


def test_processes_use_nine_tenths_of_what_a_server_allows_and_no_read_fails(tmp_path, monkeypatch):
    gate, names = Gate(rate=120, burst=12), ["/lake/a", "/lake/b", "/lake/c"]
    with mock_s3(lambda path: (200 if gate.lets_in(path) else 503, 0)) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        command = [sys.executable, "-c", READER, str(tmp_path / "stop")]
        readers = [
            subprocess.Popen([*command, name[-1]], cwd=ROOT, stdout=subprocess.PIPE, env=dict(os.environ))
            for name in names
        ]
        assert waited_for(lambda: all(gate.counts[name] > 20 for name in names))
        found_at = gate.seen()[2] + 3 * gate.rate  # three seconds to find the rate
        assert waited_for(lambda: gate.seen()[2] > found_at)
        served_before, refused_before, offered_before = gate.seen()
        assert waited_for(lambda: gate.seen()[2] > found_at + 4 * gate.rate)
        served, refused, offered = gate.seen()
        (tmp_path / "stop").touch()
        assert [reader.communicate()[0].decode() for reader in readers] == ["[]\n"] * 3
    assert (served - served_before) / (offered - offered_before) >= 0.9
    assert (refused - refused_before) / (served - served_before) <= 0.1
    assert min(gate.counts[name] for name in names) > 0.15 * served


def test_a_store_tells_what_it_asked(monkeypatch):
    answers = iter([200, 503, 503, 200, 200])
    with mock_s3(lambda path: (next(answers), 0)) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        store = open_store("s3://lake")
        assert [store.get("a"), store.get_range("a", 5, 10), store.get("a")] == [BODY, BODY[5:15], BODY]
    assert store.statistics() == {
        "requests": 5,
        "throttled": 2,
        "retried": 2,
        "hedged": 0,
        "bytes": 2 * len(BODY) + 10,
    }


def test_a_retry_after_is_waited_for(monkeypatch):
    answers, asked = iter([200, 429, 200]), []

    def answer(path: str) -> tuple[int, float]:
        asked.append(time.monotonic())
        return next(answers), 0

    with mock_s3(answer) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        store = open_store("s3://lake")
        assert [store.get("a"), store.get("a")] == [BODY, BODY]
    assert asked[2] - asked[1] >= 1


def test_what_a_store_refused_long_ago_is_forgotten(tmp_path):
    clock = Clock()
    budget = Budget(None, None, tmp_path, clock=clock)
    budget.reserve()
    budget.refused()
    assert budget.rate() is not None
    clock.now += 301
    assert budget.rate() is None


@pytest.mark.parametrize("words", ["none", "0", "-3", "inf", "nan"])
@pytest.mark.parametrize("name", ["K25_S3_REQUESTS_PER_SECOND", "K25_S3_BYTES_PER_SECOND", "K25_S3_HEDGE"])
def test_a_limit_that_is_no_number_is_named(monkeypatch, name, words):
    monkeypatch.setenv(name, words)
    with pytest.raises(StoreError, match=f"{name} is '{words}'; set a number above 0, or unset it"):
        open_store("s3://lake")
