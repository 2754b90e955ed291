"""A sync, from what is there to what was moved: compare, price, copy in batches, compare again, record."""

import fcntl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from k25_pipelines.errors import K25Error, ObjectChangedError, ObjectNotFoundError, StoreError
from k25_pipelines.storage.store import ObjectInfo, Store
from k25_pipelines.sync.digests import Compared, check_unchanged, compared, reported_md5
from k25_pipelines.sync.job import Job
from k25_pipelines.sync.price import (
    Budget,
    Cost,
    Prices,
    affordable,
    compare_cost,
    copy_cost,
    list_cost,
    remaining,
    total,
)
from k25_pipelines.sync.rclone import (
    PARTIAL_SUFFIX,
    Settings,
    SyncError,
    abort_upload,
    copy_objects,
    pending_uploads,
)
from k25_pipelines.sync.targets import write_run, write_target, write_verified

Progress = Callable[[int, int, str], None]
BATCH_OBJECTS = 1000
BATCH_BYTES = 8 * 2**30
THREADS = 16


def run(job: Job, *, budget: Budget | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Copy what a budget holds, compare every copy with its source, and return what was moved.

    Killed at any moment it is simply started again: copies that arrived are compared, not sent anew.

    Raises:
        SyncError: an object cannot be copied, another process does the same, or a key is taken by another object.
        ObjectChangedError: a source was overwritten while it was copied.
        StoreError: a copy does not hold what its source does.
    """
    budget = budget or Budget()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with _exclusive(job.target.id):
        write_target(job.lake, job.target)
        aborted = _clear(job)
        spent = list_cost(len(job.selection.objects), job.num_done + len(job.to_compare))
        try:
            known, others, spent = _compared_batches(job, budget, spent, progress)
            to_copy = (*job.to_copy, *others)
            sent, spent = _copied_batches(job, to_copy, budget, spent, progress)
        finally:
            aborted += _clear(job)
        num_left = len(job.selection.objects) - job.num_done - known - sent
        report = {
            "started": started,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "objects": len(job.selection.objects),
            "there": job.num_done,
            "compared": known,
            "copied": sent,
            "left": num_left,
            "left_bytes": _left_bytes(job, to_copy[sent:], known + len(others)),
            "moved_bytes": spent.num_bytes,
            "usd": round(spent.usd(job.prices), 6),
            "aborted_uploads": aborted,
            "budget": {"bytes": budget.num_bytes, "usd": budget.usd},
        }
        write_run(job.lake, job.target, report)
    return report


def _left_bytes(job: Job, not_sent: Sequence[ObjectInfo], num_compared: int) -> int:
    return sum(info.num_bytes for info in (*not_sent, *job.to_compare[num_compared:]))


def _compared_batches(
    job: Job, budget: Budget, spent: Cost, progress: Progress | None
) -> tuple[int, list[ObjectInfo], Cost]:
    """Compare copies that arrived before; return how many hold, those that are to be sent anew, and the cost so far."""
    costs = [compare_cost(info, is_whole=reported_md5(info.etag) is not None) for info in job.to_compare]
    within = job.to_compare[: affordable(job.to_compare, costs, remaining(budget, spent, job.prices), job.prices)]
    held, others = 0, list[ObjectInfo]()
    for first in range(0, len(within), BATCH_OBJECTS):
        batch = within[first : first + BATCH_OBJECTS]
        found = _compare(job, batch)
        fine = [each for each in found if isinstance(each, Compared)]
        wrong = [(info, each) for info, each in zip(batch, found, strict=True) if not isinstance(each, Compared)]
        write_verified(job.lake, job.target, fine)
        if wrong and not job.overwrite:
            raise wrong[0][1]
        held, others = held + len(fine), others + [info for info, _ in wrong]
        spent += Cost(num_bytes=sum(each.bytes_read for each in fine), gets=len(batch))
        if progress:
            progress(first + len(batch), len(within), "comparing what is there")
    return held, others, spent


def _copied_batches(
    job: Job, to_copy: Sequence[ObjectInfo], budget: Budget, spent: Cost, progress: Progress | None
) -> tuple[int, Cost]:
    """Copy objects in batches as long as the budget holds; return how many were copied and compared, and the cost."""
    sent, moved, all_bytes = 0, 0, sum(info.num_bytes for info in to_copy)
    while sent < len(to_copy):
        left = remaining(budget, spent, job.prices)
        batch = _batch(to_copy[sent:], job.settings, left, job.prices)
        if not batch:
            break
        limit = budget.bytes_left(spent, job.prices)
        told = partial(_tell, progress, moved, all_bytes, batch[0].key)
        num_bytes, stopped = _copy(job, batch, limit, told)
        found = _compare(job, batch)
        fine = [each for each in found if isinstance(each, Compared)]
        write_verified(job.lake, job.target, fine)
        requests = total(copy_cost(info, job.settings) for info in batch)
        spent += replace(requests, num_bytes=num_bytes + sum(each.bytes_read for each in fine))
        sent, moved = sent + len(fine), moved + sum(each.num_bytes for each in fine)
        _check_arrived(found, stopped, is_limited=limit is not None)
        if len(fine) < len(batch):  # the budget ended it
            break
    return sent, spent


def _check_arrived(found: Sequence[Compared | K25Error], stopped: SyncError | None, *, is_limited: bool) -> None:
    """Raise what is wrong with a batch; that some of it has not arrived is in order where a budget ended it."""
    wrong = [each for each in found if not isinstance(each, Compared | ObjectNotFoundError)]
    missing = [each for each in found if isinstance(each, ObjectNotFoundError)]
    if wrong:
        raise wrong[0]
    if stopped is not None:
        raise stopped
    if missing and not is_limited:
        raise SyncError(f"{missing[0]}, though it was sent: is it deleted there as it arrives?") from missing[0]


def _copy(
    job: Job, batch: Sequence[ObjectInfo], max_bytes: int | None, told: Callable[[int], None]
) -> tuple[int, SyncError | None]:
    """Copy a batch; return bytes moved, and what stopped it: what arrived before is compared and recorded first."""
    keys, how = [info.key for info in batch], {"settings": job.settings, "max_bytes": max_bytes, "moved": told}
    try:
        return copy_objects(*job.places, keys, **how), None
    except SyncError as error:
        return 0, error


def _tell(progress: Progress | None, before: int, whole: int, key: str, num_bytes: int) -> None:
    if progress:
        progress(min(before + num_bytes, whole), whole, key)


def _batch(infos: Sequence[ObjectInfo], settings: Settings, left: Budget, prices: Prices) -> list[ObjectInfo]:
    """Return the first objects that one call copies: what the budget holds, and no more than a batch."""
    first = infos[:BATCH_OBJECTS]
    count = affordable(first, [copy_cost(info, settings) for info in first], left, prices)
    size, batch = 0, list[ObjectInfo]()
    for info in first[:count]:
        if batch and size + info.num_bytes > BATCH_BYTES:
            break
        batch.append(info)
        size += info.num_bytes
    return batch


def _compare(job: Job, batch: Sequence[ObjectInfo]) -> list[Compared | K25Error]:
    """Return for each object what was found out about its copy, or the error that tells what is wrong."""
    source, destination = job.stores

    def one(info: ObjectInfo) -> Compared | K25Error:
        try:
            return _compared_now(source, info, destination)
        except K25Error as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, batch))


def _compared_now(source: Store, info: ObjectInfo, destination: Store) -> Compared:
    copy = destination.head(info.key)
    try:
        return compared(source, info, destination, copy)
    except (StoreError, ObjectChangedError):
        check_unchanged(source, info)  # which would be why
        raise


def _clear(job: Job) -> int:
    """Abort uploads of our keys that were begun and never ended, remove files half written, and return how many."""
    place, store = job.places[1], job.stores[1]
    if not place.is_s3:
        parts = [info.key for info in store.list() if info.key.endswith(PARTIAL_SUFFIX)]
        for key in parts:
            store.delete(key)
        return len(parts)
    prefix = place.url.removeprefix("s3://").partition("/")[2]
    ours = {f"{prefix}/{info.key}".lstrip("/") for info in job.selection.objects}
    try:
        found = [upload for upload in pending_uploads(place) if upload.key in ours]
    except SyncError:
        if any(info.num_bytes >= job.settings.multipart_bytes for info in job.selection.objects):
            raise
        return 0  # a store that does not let us look, and nothing is sent in parts
    for upload in found:
        abort_upload(place, upload)
    return len(found)


@contextmanager
def _exclusive(name: str) -> Iterator[None]:
    """Let one process of this machine at a time do a sync; the lock of a killed one is free."""
    with (Path(tempfile.gettempdir()) / f"k25-sync-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SyncError("another process of this machine does this sync now; wait for it, or end it") from None
        yield
