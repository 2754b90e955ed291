"""A virtual clock, and an object store that answers by it: what blocks runs as it is, and no time passes.

What would be a thread is a greenlet; where it sleeps, the next one that is due goes on.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet


class VirtualClock:
    """Seconds that pass only while everybody sleeps."""

    def __init__(self) -> None:
        """Begin at a second that no lifetime of a machine reaches."""
        self.now = 1000.0
        self._due: list[tuple[float, int, greenlet]] = []
        self._number = 0
        self.hub = getcurrent()

    def time(self) -> float:
        """Return the time [s]."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        self.wake(getcurrent(), self.now + max(0.0, seconds))
        self.hub.switch()

    def start(self, work: Callable[[], None]) -> None:
        """Run something beside the caller, from now on."""
        self.wake(greenlet(work, parent=self.hub), self.now)

    def run(self) -> None:
        """Go on until nobody sleeps."""
        while self._due:
            self.now, _, next_one = heapq.heappop(self._due)
            next_one.switch()

    def wake(self, one: greenlet, when: float) -> None:
        """Let one go on at a time [s]."""
        self._number += 1
        heapq.heappush(self._due, (when, self._number, one))

    def waiter(self) -> "Signal":
        """Return something to wait for."""
        return Signal(self)


class Signal:
    """Something that happens; who waits goes on then."""

    def __init__(self, clock: VirtualClock) -> None:
        """Make one that did not happen yet."""
        self._clock, self._waiting = clock, list[greenlet]()

    def wait(self) -> None:
        """Sleep until it happens the next time."""
        self._waiting.append(getcurrent())
        self._clock.hub.switch()

    def happen(self) -> None:
        """Wake who waits."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            self._clock.wake(one, self._clock.now)


class RefusedError(Exception):
    """The store says that it is asked too much: 503 SlowDown."""


class FaultError(Exception):
    """The store, or the way to it, failed: a 500, or a connection that breaks off in the middle."""


@dataclass(kw_only=True, slots=True)
class StoreModel:
    """How a store answers GETs."""

    clock: VirtualClock
    gets_per_second: float = 5500.0
    """What a prefix bears; above it come 503s."""
    burst_seconds: float = 0.1
    """What an idle prefix saves up, as a share of a second's GETs."""
    first_byte_seconds: float = 0.150
    """Median of the wait; its logarithm is normal."""
    first_byte_p99_seconds: float = 1.0
    bytes_per_second: float = 87e6
    """Of a connection."""
    faults: float = 0.001
    """Share of requests that fail: half at once with a 500, half in the middle of the body."""
    refusal_seconds: float = 0.02
    """After which a 503 comes."""
    drawn: random.Random = field(default_factory=lambda: random.Random(1))
    prefixes: dict[str, float] = field(default_factory=dict)
    """When each may be asked next."""
    by_second: dict[int, Counter[str]] = field(default_factory=dict)
    """Requests, refusals and faults of each second."""
    served_bytes: int = 0

    def get(self, prefix: str, num_bytes: int) -> None:
        """Take as long as a GET of so many bytes. Raises RefusedError, FaultError."""
        said = self.by_second.setdefault(int(self.clock.now), Counter())
        said["requests"] += 1
        start = max(self.prefixes.get(prefix, 0.0), self.clock.now - self.burst_seconds)
        if start > self.clock.now:
            said["refused"] += 1
            self.clock.sleep(self.refusal_seconds)
            raise RefusedError(prefix)
        self.prefixes[prefix] = start + 1 / self.gets_per_second
        spread = math.log(self.first_byte_p99_seconds / self.first_byte_seconds) / 2.3263
        first_byte = self.drawn.lognormvariate(math.log(self.first_byte_seconds), spread)
        share = 1.0
        if fault := self.drawn.random() < self.faults:
            said["faults"] += 1
            share = self.drawn.choice([0.0, self.drawn.random()])
        self.clock.sleep(first_byte + share * num_bytes / self.bytes_per_second)
        self.served_bytes += int(share * num_bytes)
        if fault:
            raise FaultError(prefix)
