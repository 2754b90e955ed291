"""The index of a plan: which segment holds a step, in one small object and immutable pages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, PlanError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

PLANS = "k25/plans/"
PAGE_SEGMENTS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentInfo:
    """One segment as the index shows it."""

    digest: str
    first_step: int
    num_steps: int
    plan: str
    """The plan in whose folder its objects lie: a fork shares those of its parent."""

    @property
    def end_step(self) -> int:
        """The first step after it."""
        return self.first_step + self.num_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Some segments in a row whose entries lie in an object of their own."""

    digest: str
    first_step: int
    num_steps: int
    plan: str
    """The plan in whose folder the page lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The chain of segments of a plan, as far as it is planned."""

    pages: tuple[Page, ...] = ()
    tail: tuple[SegmentInfo, ...] = ()
    """The segments after the pages."""
    budgets: Mapping[str, int] = field(default_factory=dict)
    """Most bad samples of a source that a run puts up with: no part of the plan, so kept here."""

    @property
    def num_steps(self) -> int:
        """Steps planned so far."""
        if self.tail:
            return self.tail[-1].end_step
        return self.pages[-1].first_step + self.pages[-1].num_steps if self.pages else 0


def read_index(lake: Store, plan: str) -> Index | None:
    """Return the index of a plan, in one GET; None where nothing of it is planned yet."""
    try:
        told = json.loads(lake.get(f"{PLANS}{plan}/index.json"))
    except ObjectNotFoundError:
        return None
    pages = (Page(digest=d, first_step=first, num_steps=steps, plan=owner) for first, steps, d, owner in told["pages"])
    return Index(pages=tuple(pages), tail=_segments(told["segments"]), budgets=told["budgets"])


def write_index(lake: Store, plan: str, index: Index) -> None:
    """Publish an index, unless one that goes further stands there already."""
    standing = read_index(lake, plan)
    if standing and (standing.num_steps > index.num_steps or standing == index):
        return
    told = {
        "pages": [[page.first_step, page.num_steps, page.digest, page.plan] for page in index.pages],
        "segments": _plain(index.tail),
        "budgets": dict(index.budgets),
    }
    lake.put(f"{PLANS}{plan}/index.json", _json(told))


def appended(lake: Store, plan: str, index: Index, info: SegmentInfo) -> Index:
    """Return an index with one more segment; full pages are written as objects of their own."""
    tail = (*index.tail, info)
    if len(tail) < PAGE_SEGMENTS:
        return replace(index, tail=tail)
    entries = _plain(tail)
    first, end = tail[0].first_step, tail[-1].end_step
    page = Page(digest=digest("page", entries), first_step=first, num_steps=end - first, plan=plan)
    lake.put_new(_page_key(page), _json(entries))
    return replace(index, pages=(*index.pages, page), tail=())


def read_page(lake: Store, page: Page) -> tuple[SegmentInfo, ...]:
    """Return the segments of a page, compared with its name."""
    entries = json.loads(lake.get(_page_key(page)))
    if digest("page", entries) != page.digest:
        raise PlanError(f"{lake.url}/{_page_key(page)} is not the page it is named for; restore it")
    return _segments(entries)


def cut(lake: Store, index: Index, step: int) -> tuple[Index, SegmentInfo | None]:
    """Return the index up to a step, and the segment that the step lies in the middle of, if it does."""
    pages = tuple(page for page in index.pages if page.first_step + page.num_steps <= step)
    rest = [info for page in index.pages[len(pages) :] for info in read_page(lake, page)] + list(index.tail)
    tail = tuple(info for info in rest if info.end_step <= step)
    split = next((info for info in rest if info.first_step < step < info.end_step), None)
    return Index(pages=pages, tail=tail, budgets=index.budgets), split


def claim(lake: Store, plan: str, info: SegmentInfo) -> None:
    """Put a segment in the chain. Raises ObjectExistsError: another planner put another one there."""
    lake.put_new(_claim_key(plan, info.first_step), _json(_plain([info])[0]))


def followed(lake: Store, plan: str, index: Index | None) -> Index | None:
    """Return the index with the segments that the chain has beyond it, of a planner that was killed or overtaken."""
    with suppress(ObjectNotFoundError):
        while True:
            at = index.num_steps if index else 0
            [info] = _segments([json.loads(lake.get(_claim_key(plan, at)))])
            index = appended(lake, plan, index or Index(), info)
    return index


def segments_of(lake: Store, plan: str) -> list[SegmentInfo]:
    """Return all segments of a plan in the order of their steps; empty where nothing is planned."""
    index = read_index(lake, plan)
    return list(all_segments(lake, index)) if index else []


def all_segments(lake: Store, index: Index) -> Iterable[SegmentInfo]:
    """Yield the segments of an index in the order of their steps."""
    at = 0
    for infos in (*(read_page(lake, page) for page in index.pages), index.tail):
        for info in infos:
            if info.first_step != at:
                raise PlanError(f"segment {info.digest} starts at step {info.first_step}, expected {at}; plan again")
            at = info.end_step
            yield info


def last_segment(lake: Store, index: Index) -> SegmentInfo:
    """Return the last segment of an index."""
    return index.tail[-1] if index.tail else read_page(lake, index.pages[-1])[-1]


def is_taken(lake: Store, plan: str, info: SegmentInfo) -> bool:
    """Whether another segment stands in the chain where this one would."""
    try:
        claim(lake, plan, info)
    except ObjectExistsError:
        return True
    return False


def _page_key(page: Page) -> str:
    return f"{PLANS}{page.plan}/pages/{page.digest}.json"


def _claim_key(plan: str, first_step: int) -> str:
    return f"{PLANS}{plan}/chain/{first_step:012}.json"


def _plain(infos: Sequence[SegmentInfo]) -> list[list]:
    return [[info.first_step, info.num_steps, info.digest, info.plan] for info in infos]


def _segments(entries: Iterable[list]) -> tuple[SegmentInfo, ...]:
    return tuple(
        SegmentInfo(digest=name, first_step=first, num_steps=steps, plan=owner) for first, steps, name, owner in entries
    )


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
