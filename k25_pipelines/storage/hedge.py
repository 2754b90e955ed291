"""A second request for an answer that is late: a small read in, the answer of whichever try came first out."""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

SMALL_BYTES = 2**20
"""Reads up to this size are asked for twice; of larger ones the second would cost more than it saves."""
REMEMBERED = 128
"""Waits from which is told what is late."""
LEARNING = 20
"""Reads that pass before anything is called late."""
LATE_SHARE = 0.95
"""What takes longer than this share of reads did is late."""


class Hedger(Generic[Answer]):
    """Asks again for what is late, if a permit is free, and drops the slower answer.

    Source: Dean and Barroso 2013, "The tail at scale" (hedged requests after the 95th percentile).
    """

    def __init__(
        self, least_seconds: float, may_start: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is late before `least_seconds`; `may_start` takes a permit for a second request, or says no."""
        self._least, self._may_start, self._clock = least_seconds, may_start, clock
        self._waits: deque[float] = deque(maxlen=REMEMBERED)
        self._late_after, self._num_seen = math.inf, 0
        self._workers = _Workers[Answer]()
        self.num_hedged = 0

    def ask(self, operation: Callable[[], Answer]) -> Answer:
        """Return the operation's answer. Raises what it raised, where no try had another outcome."""
        started = self._clock()
        answer = operation() if self._num_seen < LEARNING else self._first_of_two(operation)
        self._note(self._clock() - started)
        return answer

    def _first_of_two(self, operation: Callable[[], Answer]) -> Answer:
        first = self._workers.submit(operation)
        if first in wait([first], self._late_after).done or not self._may_start():
            return first.result()
        self.num_hedged += 1
        tries = {first, self._workers.submit(operation)}
        while True:
            done, tries = wait(tries, return_when=FIRST_COMPLETED)
            good = [future for future in done if future.exception() is None]
            if good or not tries:
                return (good or [*done])[0].result()

    def _note(self, seconds: float) -> None:
        self._waits.append(seconds)
        self._num_seen += 1
        if self._num_seen == LEARNING or self._num_seen % (REMEMBERED // 8) == 0:
            waits = sorted(self._waits.copy())
            self._late_after = max(self._least, waits[int(LATE_SHARE * (len(waits) - 1))])


class _Workers(Generic[Answer]):
    """Threads that end with the process: the slower of two requests must not hold its exit up."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Answer], Callable[[], Answer]]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, operation: Callable[[], Answer]) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._tasks.put((future, operation))
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._work, name="hedge", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, operation = self._tasks.get()
            try:
                future.set_result(operation())
            except BaseException as error:  # noqa: BLE001 - it is the caller's to judge
                future.set_exception(error)
            del future, operation  # an idle thread keeps no bytes
            self._idle.release()
