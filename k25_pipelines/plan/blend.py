"""Which source the next sample comes from: weights and debts in, a source out; by samples or by tokens."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import gcd

import numpy as np

LARGEST_PERIOD = 1 << 22


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

    weights: dict[int, int]
    """Weight of each source that still has samples."""
    multimodal: frozenset[int]
    """The sources whose samples have media; they form a group when there is a vision share."""
    share: Fraction | None = None
    """Vision tokens over all tokens; None: one group, no share."""
    by_samples: bool = False
    """Count samples instead of tokens."""
    vision_debt: int = 0
    """How far vision tokens are behind [tokens times the share's denominator]."""
    debts: dict[int, int] = field(default_factory=dict)
    """How far each source is behind in its group [tokens times the group's weight]."""
    turn: int = 0
    """Place in the period of the blend by samples."""
    longest: int = 0
    """Longest sample so far [tokens]."""
    worst: float = 0.0
    """Largest error so far, ahead or behind, of a source or of vision [tokens]."""


def next_source(blend: Blend) -> int | None:
    """Return the source of the next sample, or None when the group that must give it is dry.

    By tokens: the multimodal group when vision is behind its share, else the text-only one;
    in the group the source furthest behind; ties by name.
    """
    if blend.by_samples:
        live = sorted(blend.weights)
        order = source_order(tuple(blend.weights[source] for source in live)) if live else None
        return None if order is None else live[int(order[blend.turn % len(order)])]
    group = _group(blend, blend.vision_debt > 0)
    if not group:
        return None
    return min(group, key=lambda source: (-blend.debts.get(source, 0), source))


def charge(blend: Blend, source: int, *, num_tokens: int, vision_tokens: int) -> None:
    """Book one sample of a source; every debt is exact, in whole numbers."""
    blend.longest = max(blend.longest, num_tokens)
    if blend.by_samples:
        blend.turn += 1
        return
    group = _group(blend, source in blend.multimodal)
    weight = sum(blend.weights[member] for member in group)
    for member in group:
        blend.debts[member] = blend.debts.get(member, 0) + blend.weights[member] * num_tokens
    blend.debts[source] -= weight * num_tokens
    if blend.share is not None:
        blend.vision_debt += blend.share.numerator * num_tokens - blend.share.denominator * vision_tokens


def error_tokens(blend: Blend) -> float:
    """Return the largest error now, ahead or behind, of a source in its group or of vision [tokens]."""
    errors = [0.0]
    for multimodal in (False, True) if blend.share is not None else (False,):
        group = _group(blend, multimodal)
        weight = sum(blend.weights[member] for member in group)
        errors.extend(abs(blend.debts.get(member, 0)) / weight for member in group)
    if blend.share is not None:
        errors.append(abs(blend.vision_debt) / blend.share.denominator)
    return max(errors)


def drop(blend: Blend, source: int) -> None:
    """Take out a source that has no more samples; the weights left in its group are a new blend from here."""
    for member in _group(blend, source in blend.multimodal):
        blend.debts.pop(member, None)
    del blend.weights[source]
    blend.turn = 0


def _group(blend: Blend, multimodal: bool) -> list[int]:
    """Return the live sources that compete with each other: one group of all where there is no share."""
    if blend.share is None:
        return list(blend.weights)
    return [source for source in blend.weights if (source in blend.multimodal) == multimodal]
