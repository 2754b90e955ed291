"""What the scan of a dataset is given, and how it spreads over threads and processes without changing its lines."""

import json
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypedDict

import pyarrow as pa

from k25_pipelines.catalog.line import Line
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.partial import partial_key, partial_table, partials_prefix, read_partial, write_partial
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.store import ObjectInfo, Store, open_store, read_url

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""
PENDING = 4
"""Units under way for each worker: what is found and not yet taken stays small."""


class Terms(TypedDict):
    """Under which terms a sample may be used, and whose it is."""

    licence: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanJob:
    """One run of the indexer over one dataset."""

    registration: Registration
    store: Store
    """Below the dataset's URI."""
    lake: Store
    """Keeps what is found until all of it is."""
    objects: Mapping[str, ObjectInfo]
    """Every object of the kind's suffixes and media, in the order of their keys."""
    new: Sequence[ObjectInfo]
    """Those of `objects` with the kind's suffixes that no earlier version was made from."""
    previous: Manifest | None = None
    """The version before, whose lines stay as they are."""
    threads: int = 4
    processes: int = 1
    progress: Progress | None = None

    def tables(
        self, work: Callable[["ScanJob", Any], Iterable[Line]], items: Sequence, *, unit: int = 1, depends: object = ()
    ) -> Iterator[pa.Table]:
        """Yield the lines that `work` finds in each item, in the items' order, from several workers at once.

        What was found by an indexer that was killed is read from the lake instead of found again.

        Args:
            work: a function of a module, of this job and an item.
            items: plain data or dataclasses of it; with `depends`, all that the lines depend on.
            unit: items that are found, kept and counted together.
            depends: plain data on which the lines of all items depend, besides the registration.
        """
        units = [tuple(items[first : first + unit]) for first in range(0, len(items), unit)]
        named = self.registration.kind, self.registration.uri, self.registration.licence, self.registration.source
        try:
            keys = [partial_key(self.registration.name, named, depends, plain_data(unit)) for unit in units]
        except UnicodeEncodeError as error:
            raise _not_unicode(self, error) from error
        kept = len(units) > 1
        found = {info.key for info in self.lake.list(partials_prefix(self.registration.name))} if kept else set()
        tasks = [(work, unit, key if kept else "", key in found) for unit, key in zip(units, keys, strict=True)]
        start, num_items, num_lines = time.monotonic(), 0, 0
        for table, task in zip(_ordered(self, tasks), tasks, strict=True):
            num_items, num_lines = num_items + len(task[1]), num_lines + table.num_rows
            if self.progress:
                rate = num_lines / max(time.monotonic() - start, 1e-3)
                self.progress(num_items, len(items), f"{num_lines:,} samples, {rate:,.0f}/s")
            yield table

    def annotations(self) -> tuple[str, bytes]:
        """Return the annotation file's URI and bytes; a plain key lies below the dataset's URI."""
        place = self.registration.annotations or ""
        if "://" in place or place.startswith("/"):
            return place, read_url(place)
        return f"{self.registration.uri}/{place}", self.store.get(place)

    def terms(self, record: Mapping) -> Terms:
        """Return `licence` and `source` of a sample: its own, or else the dataset's."""
        licence = field_text(record, "licence", "license") or self.registration.licence
        return Terms(licence=licence, source=field_text(record, "source") or self.registration.source)

    def where(self, shard: str) -> str:
        """Return what an object is called in errors: the dataset's name and the object's URI."""
        return f"{self.registration.name}: {self.registration.uri}/{shard}"


Task = tuple[Callable[[ScanJob, Any], Iterable[Line]], tuple, str, bool]
"""What finds lines, in which items, under which key they are kept ("" if they are not), and whether they are there."""


def field_text(record: Mapping, *names: str) -> str:
    """Return the first of the named fields that says something, as text; "" if none does."""
    for name in names:
        value = record.get(name)
        if value not in (None, ""):
            return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return ""


def compact_json(value: object) -> str:
    """Return `value` as JSON text: one way to write it, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def plain_data(value: object) -> object:
    """Return dataclasses, and what holds them, as lists of their fields' values."""
    if is_dataclass(value) and not isinstance(value, type):
        return [plain_data(getattr(value, field.name)) for field in fields(value)]
    return [plain_data(item) for item in value] if isinstance(value, tuple | list) else value


def _unit_table(job: ScanJob, task: Task) -> pa.Table:
    work, unit, key, is_kept = task
    if is_kept and (table := read_partial(job.lake, key)) is not None:
        return table
    try:
        table = partial_table(line for item in unit for line in work(job, item))
    except UnicodeEncodeError as error:
        raise _not_unicode(job, error) from error
    if key:
        write_partial(job.lake, key, table)
    return table


def _not_unicode(job: ScanJob, error: UnicodeEncodeError) -> DatasetError:
    return DatasetError(f"{job.registration.name}: {error.object!a} is not Unicode; write whole characters")


def _ordered(job: ScanJob, tasks: Sequence[Task]) -> Iterator[pa.Table]:
    is_shared = not job.lake.url.startswith("memory://") and not job.store.url.startswith("memory://")
    if job.processes > 1 and len(tasks) > 1 and is_shared:
        sent = replace(job, previous=None, progress=None, new=(), objects=dict(job.objects), **_NO_STORES)
        start = multiprocessing.get_context("spawn")
        places = (sent, job.store.url, job.lake.url)
        with ProcessPoolExecutor(job.processes, start, initializer=_open_child, initargs=places) as pool:
            yield from _in_order(pool, _child_table, tasks, workers=job.processes)
    else:
        with ThreadPoolExecutor(job.threads, thread_name_prefix="index") as pool:
            yield from _in_order(pool, lambda task: _unit_table(job, task), tasks, workers=job.threads)


def _in_order(pool: Executor, work: Callable[[Task], pa.Table], tasks: Sequence[Task], *, workers: int):
    pending: deque[Future[pa.Table]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) >= PENDING * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


_NO_STORES: dict[str, Any] = {"store": None, "lake": None}
_child_job: list[ScanJob] = []
"""The job of this process, where it is a child of the indexer."""


def _open_child(job: ScanJob, uri: str, lake: str) -> None:
    _child_job[:] = [replace(job, store=open_store(uri), lake=open_store(lake))]


def _child_table(task: Task) -> pa.Table:
    return _unit_table(_child_job[0], task)
