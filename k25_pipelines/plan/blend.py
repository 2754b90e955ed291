"""Which source the next sample comes from: weights and debts in, a source out; by samples or by tokens."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np
from numba import njit

LARGEST_PERIOD = 1 << 22
LARGEST_DEBT = 1 << 61
"""Debts are exact in 64 bits as long as they stay below this."""
VISION_DEBT, TURN, LONGEST = range(3)
"""Places in a blend's totals."""


def source_counts(position: int, weights: Sequence[int]) -> np.ndarray:
    """Return how many of the first `position` samples come from each source.

    At every prefix each count lies less than one sample from position * weight / sum(weights),
    and a step of one position adds exactly one sample to exactly one source.

    Args:
        position: length of the prefix, at least 0 [samples].
        weights: a positive whole number for each source.

    Returns:
        int64 [sources]; sums to `position`.

    Raises:
        ValueError: a negative position, no weights, or a weight below 1 or not whole.

    Source: Tijdeman 1980, "The chairman assignment problem": each source's next sample has a
        release and a deadline; the earliest deadline among the released is always in time.
        Nested floors and the largest remainder both leave the bound.
    """
    if position < 0:
        raise ValueError(f"position is {position}; a prefix has at least 0 samples")
    order = source_order(tuple(weights))
    cycles, rest = divmod(int(position), len(order))
    in_period = np.bincount(order, minlength=len(weights)).astype(np.int64)
    return in_period * cycles + np.bincount(order[:rest], minlength=len(weights))


@lru_cache(maxsize=64)
def source_order(weights: tuple[int, ...]) -> np.ndarray:
    """Return one period of the blend by samples: int64 [sum of weights over their divisor], a source a place.

    Sample k of source i (counted from 0) is released at place floor(k R / w) and due before
    place ceil((k + 1) R / w), with R the sum of the weights w: between these the count stays
    within one of its share. Ties go to the source named first.

    Raises:
        ValueError: no weights, one below 1 or not whole, or a period beyond LARGEST_PERIOD.
    """
    if not weights or any(isinstance(w, bool) or int(w) != w or w < 1 for w in weights):
        raise ValueError(f"weights are {list(weights)}; each is a whole number of at least 1")
    shares = [int(w) // gcd(*(int(w) for w in weights)) for w in weights]
    period = sum(shares)
    if period > LARGEST_PERIOD:
        raise ValueError(f"weights sum to {period} without a common divisor; round them to at most {LARGEST_PERIOD}")
    waiting = [(0, source, 0) for source in range(len(shares))]
    ready: list[tuple[int, int, int]] = []
    order = np.empty(period, dtype=np.int64)
    for place in range(period):
        while waiting and waiting[0][0] <= place:
            _, source, count = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(count + 1) * period // shares[source]), source, count))
        _, source, count = heapq.heappop(ready)
        order[place] = source
        heapq.heappush(waiting, ((count + 1) * period // shares[source], source, count + 1))
    order.setflags(write=False)
    return order


@dataclass(kw_only=True, slots=True)
class Blend:
    """The blend of one lane: what it has been fed, as debts. Sources are numbers in the order of their names."""

    weights: np.ndarray
    """int64 [sources], 0 of those that have no more samples or do not take part."""
    multimodal: np.ndarray
    """bool [sources], whose samples have media; they form a group when there is a vision share."""
    share: Fraction | None = None
    """Vision tokens over all tokens; None: one group, no share."""
    by_samples: bool = False
    """Count samples instead of tokens."""
    debts: np.ndarray
    """int64 [sources], how far each is behind in its group [tokens times the group's weight]."""
    totals: np.ndarray
    """int64 [3]: how far vision is behind [tokens times the share's denominator], the place in the
    period of the blend by samples, the longest sample so far [tokens]."""
    worst: float = 0.0
    """Largest error so far, ahead or behind, of a source or of vision [tokens]."""

    @property
    def share_terms(self) -> tuple[int, int]:
        """The share's numerator and denominator; (0, 0) without one."""
        return (0, 0) if self.share is None else (self.share.numerator, self.share.denominator)


def blend_of(
    weights: Mapping[int, int],
    *,
    num_sources: int | None = None,
    multimodal: Iterable[int] = (),
    share: Fraction | None = None,
    by_samples: bool = False,
) -> Blend:
    """Return a blend before any sample.

    Args:
        weights: of each source that takes part, by its number.
        num_sources: how many numbers there are; by default up to the largest.
        multimodal: the sources whose samples have media.
        share: vision tokens over all tokens.
        by_samples: count samples instead of tokens.
    """
    num = max(weights) + 1 if num_sources is None else num_sources
    divisor = gcd(*weights.values())
    blend = Blend(
        weights=np.zeros(num, dtype=np.int64),
        multimodal=np.zeros(num, dtype=np.bool_),
        share=share,
        by_samples=by_samples,
        debts=np.zeros(num, dtype=np.int64),
        totals=np.zeros(3, dtype=np.int64),
    )
    for source, weight in weights.items():
        blend.weights[source] = weight // divisor
    blend.multimodal[list(multimodal)] = True
    return blend


def longest_allowed(blend: Blend) -> int:
    """Return the longest sample whose debts stay exact in 64 bits [tokens]."""
    return LARGEST_DEBT // (8 * max(int(blend.weights.sum()), blend.share_terms[1], 1))


def next_source(blend: Blend) -> int | None:
    """Return the source of the next sample, or None when the group that must give it is dry.

    By tokens: the multimodal group when vision is behind its share, else the text-only one;
    in the group the source furthest behind; ties by name.
    """
    if blend.by_samples:
        source = scheduled(sample_order(blend), blend.totals)
    else:
        source = furthest_behind(blend.weights, blend.multimodal, blend.debts, blend.totals, blend.share is not None)
    return None if source < 0 else int(source)


def charge(blend: Blend, source: int, *, num_tokens: int, vision_tokens: int) -> None:
    """Book one sample of a source; every debt is exact, in whole numbers."""
    share = np.array(blend.share_terms)
    book(
        blend.weights, blend.multimodal, blend.debts, blend.totals,
        share, blend.by_samples, source, num_tokens, vision_tokens,
    )  # fmt: skip


def error_tokens(blend: Blend) -> float:
    """Return the largest error now, ahead or behind, of a source in its group or of vision [tokens]."""
    return float(largest_error(blend.weights, blend.multimodal, blend.debts, blend.totals, np.array(blend.share_terms)))


def drop(blend: Blend, source: int) -> None:
    """Take out a source that has no more samples; the weights left in its group are a new blend from here."""
    group = blend.weights > 0
    if blend.share is not None:
        group &= blend.multimodal == blend.multimodal[source]
    blend.debts[group] = 0
    blend.weights[source] = 0
    blend.totals[TURN] = 0


def sample_order(blend: Blend) -> np.ndarray:
    """Return one period of the blend by samples, of the sources that are left; empty by tokens or without any."""
    live = np.flatnonzero(blend.weights)
    if not blend.by_samples or not live.size:
        return np.empty(0, dtype=np.int64)
    return live[source_order(tuple(blend.weights[live].tolist()))]


@njit(cache=True, nogil=True)
def scheduled(order: np.ndarray, totals: np.ndarray) -> Any:
    """Return the source of the next sample by the order, or -1."""
    return order[totals[TURN] % order.size] if order.size else -1


@njit(cache=True, nogil=True)
def furthest_behind(
    weights: np.ndarray, multimodal: np.ndarray, debts: np.ndarray, totals: np.ndarray, shared: bool
) -> int:
    """Return the source of the next sample by the debts, or -1."""
    wanted = totals[VISION_DEBT] > 0
    best = -1
    for source in range(weights.size):
        in_group = weights[source] > 0 and (not shared or multimodal[source] == wanted)
        if in_group and (best < 0 or debts[source] > debts[best]):
            best = source
    return best


@njit(cache=True, nogil=True)
def book(
    weights: np.ndarray,
    multimodal: np.ndarray,
    debts: np.ndarray,
    totals: np.ndarray,
    share: np.ndarray,
    by_samples: bool,
    source: int,
    num_tokens: int,
    vision_tokens: int,
) -> None:
    """Book one sample."""
    totals[LONGEST] = max(totals[LONGEST], num_tokens)
    if by_samples:
        totals[TURN] += 1
        return
    for member in range(weights.size):
        if weights[member] > 0 and (share[1] == 0 or multimodal[member] == multimodal[source]):
            debts[member] += weights[member] * num_tokens
            debts[source] -= weights[member] * num_tokens
    totals[VISION_DEBT] += share[0] * num_tokens - share[1] * vision_tokens


@njit(cache=True, nogil=True)
def largest_error(
    weights: np.ndarray, multimodal: np.ndarray, debts: np.ndarray, totals: np.ndarray, share: np.ndarray
) -> float:
    """Return the largest error [tokens]."""
    error = 0.0
    for group in range(2 if share[1] else 1):
        weight, debt = 0, 0
        for source in range(weights.size):
            if weights[source] > 0 and (share[1] == 0 or multimodal[source] == (group == 1)):
                weight += weights[source]
                debt = max(debt, abs(debts[source]))
        if weight:
            error = max(error, debt / weight)
    if share[1]:
        error = max(error, abs(totals[VISION_DEBT]) / share[1])
    return error
