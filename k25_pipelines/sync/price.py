"""What a sync will take: objects in, bytes, requests and money out; and what a budget leaves room for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

from k25_pipelines.storage.store import ObjectInfo
from k25_pipelines.sync.digests import READ_BYTES, reported_md5
from k25_pipelines.sync.rclone import Settings

PAGE_OBJECTS = 1000
"""Objects of one answer to a LIST."""
GB = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What a sync takes for granted; every one can be given."""

    usd_per_gb: float = 0.09
    """Of bytes that leave a store: S3's list price to the internet, which is the dearest; within a region 0."""
    usd_per_1000_gets: float = 0.0004
    usd_per_1000_puts: float = 0.005
    """Also of LISTs."""
    usd_per_gb_month: float = 0.023
    """Of bytes that lie at the destination."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What something takes."""

    num_bytes: int = 0
    """That leave a store, of either side [bytes]."""
    gets: int = 0
    """GETs and HEADs."""
    puts: int = 0
    """PUTs, parts and LISTs."""

    def __add__(self, other: "Cost") -> "Cost":
        """Return both together."""
        return Cost(
            num_bytes=self.num_bytes + other.num_bytes, gets=self.gets + other.gets, puts=self.puts + other.puts
        )

    def usd(self, prices: Prices) -> float:
        """Return it in money."""
        requests = self.gets * prices.usd_per_1000_gets + self.puts * prices.usd_per_1000_puts
        return self.num_bytes / GB * prices.usd_per_gb + requests / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The most that one run may take; None: no limit."""

    num_bytes: int | None = None
    usd: float | None = None

    def holds(self, cost: Cost, prices: Prices) -> bool:
        """Whether a cost lies within it."""
        fits_bytes = self.num_bytes is None or cost.num_bytes <= self.num_bytes
        return fits_bytes and (self.usd is None or cost.usd(prices) <= self.usd)

    def bytes_left(self, spent: Cost, prices: Prices) -> int | None:
        """Return how many bytes may still leave a store; None: any number."""
        left = [] if self.num_bytes is None else [self.num_bytes - spent.num_bytes]
        if self.usd is not None and prices.usd_per_gb > 0:
            left.append(int((self.usd - spent.usd(prices)) / prices.usd_per_gb * GB))
        return max(0, min(left)) if left else None


def copy_cost(info: ObjectInfo, settings: Settings) -> Cost:
    """Return what it takes to copy an object and to compare the copy."""
    is_whole = info.num_bytes < settings.multipart_bytes
    parts = 1 if is_whole else ceil(info.num_bytes / settings.part_bytes)
    sent = Cost(num_bytes=info.num_bytes, gets=1 + parts, puts=1 if is_whole else parts + 2)
    return sent + compare_cost(info, is_whole=is_whole)


def compare_cost(info: ObjectInfo, *, is_whole: bool) -> Cost:
    """Return what it takes to compare a copy with an object: a HEAD, and reading what the stores name no MD5 of.

    Args:
        info: the object.
        is_whole: the copy was sent in one PUT, so its etag is its MD5.
    """
    times = (not is_whole) + (reported_md5(info.etag) is None)
    return Cost(num_bytes=times * info.num_bytes, gets=1 + times * ceil(info.num_bytes / READ_BYTES))


def list_cost(*num_objects: int) -> Cost:
    """Return what it takes to list stores of so many objects."""
    return Cost(puts=sum(max(1, ceil(count / PAGE_OBJECTS)) for count in num_objects))


def total(costs: Iterable[Cost]) -> Cost:
    """Return some costs together."""
    return sum(costs, Cost())


def affordable(infos: Sequence[ObjectInfo], costs: Sequence[Cost], budget: Budget, prices: Prices) -> int:
    """Return how many of the first objects a budget holds."""
    sums = accumulate(costs)
    return next((place for place, cost in enumerate(sums) if not budget.holds(cost, prices)), len(infos))


def remaining(budget: Budget, spent: Cost, prices: Prices) -> Budget:
    """Return what is left of a budget."""
    num_bytes = None if budget.num_bytes is None else max(0, budget.num_bytes - spent.num_bytes)
    usd = None if budget.usd is None else max(0.0, budget.usd - spent.usd(prices))
    return replace(budget, num_bytes=num_bytes, usd=usd)
