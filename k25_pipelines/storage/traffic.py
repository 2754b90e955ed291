"""Requests to one store: an operation in, its answer out, sent within the budget, hedged, retried and counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from k25_pipelines.storage.hedge import SMALL_BYTES, Hedger
from k25_pipelines.storage.throttle import RetryPolicy, retried, shared_budget

Answer = TypeVar("Answer")


class Traffic:
    """What passes between this process and a store. Threads may share it; processes share its budget."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        /,
        *,
        is_transient: Callable[[Exception], bool],
        refusal: Callable[[Exception], tuple[bool, float | None]],
        requests_per_second: float | None = None,
        bytes_per_second: float | None = None,
        hedge_seconds: float | None = None,
    ) -> None:
        """Open the traffic with the store whose budget lies in `folder`.

        Args:
            folder: see `throttle.Budget`.
            clock: seconds, the same in all processes that share the folder.
            sleep: waits so many of the clock's seconds.
            is_transient: whether an error may pass by itself.
            refusal: whether an error says that we ask too much, and for how long to pause if it says so [s].
            requests_per_second: limit for this machine, None for what the store bears.
            bytes_per_second: limit for this machine, None for none.
            hedge_seconds: before which no small read is late; None asks for nothing twice.
        """
        self._budget, self._sleep = shared_budget(requests_per_second, bytes_per_second, folder, clock), sleep
        self._is_transient, self._refusal = is_transient, refusal
        self._hedger: Hedger[bytes] | None = None
        if hedge_seconds:
            self._hedger = Hedger(hedge_seconds, lambda: self._budget.acquire_free(SMALL_BYTES), clock=clock)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(self, operation: Callable[[], Answer], *, policy: Callable[[], RetryPolicy], num_bytes: int = 0) -> Answer:
        """Return the operation's answer, of about `num_bytes` bytes. Raises its last error."""
        is_again = False

        def once() -> Answer:
            nonlocal is_again
            self._budget.acquire(num_bytes, sleep=self._sleep)
            self.count(requests=1, retried=is_again)
            is_again = True
            try:
                answer = operation()
            except Exception as error:
                is_refused, pause = self._refusal(error)
                if is_refused:
                    self.count(throttled=1)
                    self._budget.refused(pause)
                raise
            self._budget.answered()
            return answer

        return retried(once, is_transient=self._is_transient, policy=policy, sleep=self._sleep)

    def read(self, operation: Callable[[], bytes], *, policy: Callable[[], RetryPolicy], num_bytes: int = 0) -> bytes:
        """Return the bytes that the operation reads; a small read that is late is asked for a second time.

        Without `num_bytes`, as their number shows only afterwards, they are paid for then.
        """
        hedger = self._hedger if 0 < num_bytes <= SMALL_BYTES else None
        data = self.ask((lambda: hedger.ask(operation)) if hedger else operation, policy=policy, num_bytes=num_bytes)
        if not num_bytes:
            self._budget.charge(len(data))
        return data

    def count(self, **counts: int) -> None:
        """Add to the statistics."""
        with self._lock:
            self._counts.update(counts)

    def statistics(self) -> dict[str, int]:
        """Return how many requests were sent, how many of them were throttled, retried, hedged; bytes read."""
        hedged = self._hedger.num_hedged if self._hedger else 0
        with self._lock:
            told = {name: self._counts[name] for name in ("requests", "throttled", "retried", "bytes")}
        return {**told, "requests": told["requests"] + hedged, "hedged": hedged}
