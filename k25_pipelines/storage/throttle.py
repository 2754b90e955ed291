"""How calmly a store is asked: a budget that a machine's processes share, and retries of what may pass by itself."""

import fcntl
import mmap
import os
import random
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from k25_pipelines.keys import digest

Answer = TypeVar("Answer")

BURST_SECONDS = 0.01
"""What an idle budget saves up, as a share of a second's permits."""
AHEAD_SECONDS = 0.2
"""Permits are given out this far ahead, so that few are under way at the old rate when it is cut."""
CUT = 0.5
"""A refusal halves the rate."""
DEAF_SECONDS = 0.5
"""Refusals so soon after a cut are of requests that were sent before it."""
NEAR, RETURN, PROBE = 0.98, 1.0, 0.004
"""Back near the refused rate within half a second, then past it along a cubic curve: slow at first, ever faster."""
DOUBLING_SECONDS = 0.5
"""A refused rate that was told by less than a second of answers is doubled so often, until it is refused again."""
LEAST_CEILING = 8.0
"""A refused rate is taken to be at least this, so that one refusal of few requests slows nobody down [1/s]."""
LONGEST_PAUSE = 60.0
"""Of a Retry-After we wait at most this long [s]."""
LOST_CLOCK_SECONDS = 600.0
"""A state that lies further ahead is of an earlier boot of the machine."""
FORGET_SECONDS = 300.0
"""What a store refused so long ago, with no request since, tells nothing of it now."""


@dataclass(kw_only=True, slots=True)
class _State:
    """What a machine's processes know of one store. Times are of the monotonic clock, which they share."""

    next_request: float = 0.0
    next_byte: float = 0.0
    ceiling: float = 0.0
    """Rate at which the store refused last [1/s]; 0 while it never did."""
    is_sure: float = 0.0
    """Whether the ceiling was measured over a whole second."""
    calm: float = 0.0
    """Time without a refusal since the last cut, idle time left out [s]."""
    seen: float = 0.0
    cut: float = -1e9
    paused_until: float = 0.0
    window: float = 0.0
    """When the second began in which answers are counted."""
    answered: float = 0.0
    answered_before: float = 0.0
    """Answers of the second before."""


_LAYOUT = struct.Struct(f"<{len(fields(_State))}d")
_NAMES = [field.name for field in fields(_State)]


class Budget:
    """Permits for requests and bytes of one store, shared by all processes that name the same folder.

    A limit that is given is kept. The store's own limit is found: there is none until it first
    refuses; then the rate is halved, returns to just below what was refused, and goes on from there.
    A process killed at any moment leaves permits unused at most.

    Source: Chiu and Jain 1989 (additive increase, multiplicative decrease); Ha, Rhee and Xu 2008
        (CUBIC: return fast, then probe slowly); ITU-T I.371 (virtual scheduling of a token bucket).
    """

    def __init__(
        self,
        requests_per_second: float | None,
        bytes_per_second: float | None,
        folder: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the budget whose state lies in `folder`; None keeps it in this process alone.

        Args:
            requests_per_second: limit for the machine; None for what the store bears.
            bytes_per_second: limit for the machine; None for none.
            folder: of this store alone, made if missing; one that cannot be written is as None.
            clock: seconds, the same in all processes that share the folder.
        """
        self._requests, self._bytes, self._clock = requests_per_second, bytes_per_second, clock
        self._path = folder / "budget" if folder else None
        self._open()

    def acquire(self, num_bytes: int = 0, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait for a permit for one request of `num_bytes` bytes."""
        is_taken = False
        while not is_taken:
            is_taken, wait = self.reserve(num_bytes)
            if wait > 0:
                sleep(wait)

    def reserve(self, num_bytes: int = 0) -> tuple[bool, float]:
        """Return whether a permit was taken, and how long to wait [s]: until it holds, or before asking again."""
        with self._locked() as state:
            now = self._clock()
            start = self._next_start(state, now)
            if (late := start - now - AHEAD_SECONDS) > 0:
                return False, late + AHEAD_SECONDS * random.uniform(0.25, 1)
            self._take(state, num_bytes)
            return True, start - now

    def acquire_free(self, num_bytes: int = 0) -> bool:
        """Take a permit if one is free at once; return whether it was."""
        with self._locked() as state:
            now = self._clock()
            if self._next_start(state, now) > now:
                return False
            self._take(state, num_bytes)
            return True

    def charge(self, num_bytes: int) -> None:
        """Pay for bytes whose number was not known before they came."""
        if self._bytes:
            with self._locked() as state:
                self._next_start(state, self._clock())
                state.next_byte += num_bytes / self._bytes

    def answered(self) -> None:
        """Note that the store served a request. Others learn of it with this process's next permit."""
        with self._lock:
            self._num_answered += 1

    def refused(self, retry_after: float | None = None) -> None:
        """Note that the store refused a request for being too many, for `retry_after` seconds if it said so."""
        with self._locked() as state:
            now = self._clock()
            if retry_after:
                state.paused_until = max(state.paused_until, now + min(retry_after, LONGEST_PAUSE))
            if now - state.cut < DEAF_SECONDS:
                return
            served, rate = _served_per_second(state, now), self._rate(state)
            state.is_sure = float(state.answered_before > 0)
            state.ceiling = max(min(served, rate or served), LEAST_CEILING)
            state.calm, state.cut, state.seen = 0.0, now, now

    def rate(self) -> float | None:
        """Return how many requests a second are let through now; None where nothing limits them."""
        with self._locked() as state:
            return self._rate(state)

    def _rate(self, state: _State) -> float | None:
        if not state.ceiling:
            return self._requests
        if state.is_sure:
            found = state.ceiling * (min(NEAR, CUT + RETURN * state.calm) + PROBE * max(0.0, state.calm - 1) ** 3)
        else:
            found = state.ceiling * CUT * 2 ** min(state.calm / DOUBLING_SECONDS, 64)
        return min(found, self._requests or found)

    def _next_start(self, state: _State, now: float) -> float:
        """Return when the next request may start, in the clock's seconds; at the earliest now."""
        state.calm += min(max(0.0, now - state.seen), 1.0)
        state.seen = now
        state.next_request = max(state.next_request, state.paused_until, now - BURST_SECONDS)
        state.next_byte = max(state.next_byte, now - BURST_SECONDS)
        return max(now, state.next_request, state.next_byte)

    def _take(self, state: _State, num_bytes: int) -> None:
        state.next_request += 1 / rate if (rate := self._rate(state)) else 0.0
        state.next_byte += num_bytes / self._bytes if self._bytes else 0.0

    def _open(self) -> None:
        self._pid, self._lock, self._num_answered = os.getpid(), threading.Lock(), 0
        self._descriptor, self._memory = None, mmap.mmap(-1, _LAYOUT.size)
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.parent.stat().st_uid != os.getuid():
                return
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, descriptor)
            if os.fstat(descriptor).st_size < _LAYOUT.size:
                os.truncate(descriptor, _LAYOUT.size)
            self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        except OSError:  # each process for itself, then
            return
        self._descriptor = descriptor

    @contextmanager
    def _locked(self) -> Iterator[_State]:
        if self._pid != os.getpid():  # a forked child would share its parent's lock
            self._open()
        with self._lock:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                state = self._read()
                if self._num_answered:
                    _turn_window(state, self._clock())
                    state.answered += self._num_answered
                    self._num_answered = 0
                yield state
                self._memory[:] = _LAYOUT.pack(*(getattr(state, name) for name in _NAMES))
            finally:
                if self._descriptor is not None:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _read(self) -> _State:
        state, now = _State(**dict(zip(_NAMES, _LAYOUT.unpack(self._memory[:]), strict=True))), self._clock()
        times = (state.next_request, state.next_byte, state.seen, state.cut, state.paused_until, state.window)
        is_sound = all(time <= now + LOST_CLOCK_SECONDS for time in times) and state.seen <= now + 1  # not so for NaN
        return state if is_sound and now - state.seen < FORGET_SECONDS else _State()


def _turn_window(state: _State, now: float) -> None:
    if now - state.window >= 1:
        state.answered_before = state.answered if now - state.window < 2 else 0.0
        state.answered, state.window = 0.0, now


def _served_per_second(state: _State, now: float) -> float:
    """Return the rate of answers over about the last second; of a shorter history, over what there is of it."""
    _turn_window(state, now)
    age = max(now - state.window, 0.1)
    if not state.answered_before:
        return state.answered / age
    return state.answered + state.answered_before * (1 - min(age, 1.0))


@lru_cache(maxsize=64)
def shared_budget(
    requests_per_second: float | None,
    bytes_per_second: float | None,
    folder: Path,
    clock: Callable[[], float] = time.monotonic,
) -> Budget:
    """Return this process's budget of these limits and this folder, so that many stores open its file once."""
    return Budget(requests_per_second, bytes_per_second, folder, clock=clock)


def budget_folder(*store: str) -> Path:
    """Return where this user's processes on this machine share the budget of a store, named by what tells it apart."""
    return Path(tempfile.gettempdir()) / f"k25-budgets-{os.getuid()}" / digest("budget", *store)


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
    attempt = 0
    while True:
        try:
            return operation()
        except Exception as error:
            attempt += 1
            now = policy()
            if attempt >= now.attempts or not is_transient(error):
                raise
            sleep(random.uniform(0, min(now.cap_seconds, now.base_seconds * 2 ** (attempt - 1))))
