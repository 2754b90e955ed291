"""Retries: transient errors are waited out, others are not; patience depends on whether a store ever answered."""

import pytest

from k25_pipelines.storage.throttle import FIRST_CONTACT, PATIENT, RetryPolicy, retried


class BusyError(Exception):
    """Passes by itself."""


def failing(times: int, error: Exception):
    left = iter([error] * times)

    def operation() -> str:
        for failure in left:
            raise failure
        return "answer"

    return operation


def ask(operation, *, attempts=4, waits=None):
    return retried(
        operation,
        is_transient=lambda error: isinstance(error, BusyError),
        policy=lambda: RetryPolicy(attempts=attempts, base_seconds=1, cap_seconds=2),
        sleep=(waits if waits is not None else []).append,
    )


def test_a_busy_store_is_asked_again():
    waits = []
    assert ask(failing(3, BusyError()), waits=waits) == "answer"
    assert [wait <= most for wait, most in zip(waits, [1, 2, 2], strict=True)] == [True, True, True]


def test_patience_ends():
    with pytest.raises(BusyError):
        ask(failing(4, BusyError()))


def test_an_error_that_will_not_pass_is_not_repeated():
    waits = []
    with pytest.raises(KeyError):
        ask(failing(1, KeyError("wrong")), waits=waits)
    assert waits == []


def longest(policy: RetryPolicy) -> float:
    return sum(min(policy.cap_seconds, policy.base_seconds * 2**k) for k in range(policy.attempts - 1))


def test_a_store_that_never_answered_is_given_up_within_a_second_of_waits():
    assert longest(FIRST_CONTACT) <= 1
    assert 10 <= longest(PATIENT) <= 60
