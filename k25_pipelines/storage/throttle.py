"""Retries of what may pass by itself: an operation in, its answer out, with a growing jittered wait between tries."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how patiently a store asks again."""

    attempts: int = 8
    """Tries in all."""
    base_seconds: float = 0.1
    """Longest wait after the first failure; it doubles with each."""
    cap_seconds: float = 8.0
    """Longest wait at all."""


PATIENT = RetryPolicy()
"""For a store that has answered before: it is busy, or restarts; half a minute of waits at most."""
FIRST_CONTACT = RetryPolicy(attempts=3, base_seconds=0.2, cap_seconds=0.5)
"""For a store that never answered: more likely a wrong endpoint than a busy one, so say it soon."""


def retried(
    operation: Callable[[], Answer],
    *,
    is_transient: Callable[[Exception], bool],
    policy: Callable[[], RetryPolicy],
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Return the operation's answer, asking again after transient errors.

    Waits are drawn from [0, base * 2^k], "full jitter", so that many clients that were refused
    together do not come back together.

    Args:
        operation: what is asked; safe to ask twice.
        is_transient: whether an error may pass by itself.
        policy: asked after each failure, since a first answer makes a store worth waiting for.
        sleep: waits [seconds].

    Raises:
        Exception: the operation's last one, or its first that is not transient.

    Source: Brooker 2015, "Exponential backoff and jitter".
    """
    jitter = random.Random()  # nothing recorded depends on it
    attempt = 0
    while True:
        try:
            return operation()
        except Exception as error:
            attempt += 1
            now = policy()
            if attempt >= now.attempts or not is_transient(error):
                raise
            sleep(jitter.uniform(0, min(now.cap_seconds, now.base_seconds * 2 ** (attempt - 1))))
