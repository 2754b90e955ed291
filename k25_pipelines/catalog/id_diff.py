"""Two indexes of ids -> what was added, removed and changed, by licence and source; reads sketches, not records.

A partition of which more changed than its sketch can tell, about 1% of its samples, is read whole.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from k25_pipelines.catalog.id_index import IdIndex, without_lines
from k25_pipelines.catalog.sketch import RECORD, difference
from k25_pipelines.errors import ManifestError

AT_ONCE = 8
Progress = Callable[[int, int, str], None]


@dataclass(kw_only=True, slots=True)
class IdDiff:
    """What is different between two versions."""

    added: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Licence and source -> samples."""
    removed: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of samples that both have and that are others now; the licence and source they have now."""
    read_bytes: int = 0
    total_bytes: int = 0
    """Of both indexes whole [bytes]."""
    partitions_read_whole: int = 0


def diff_ids(before: IdIndex, after: IdIndex, *, progress: Progress | None = None) -> IdDiff:
    """Compare two versions by the ids of their samples; partitions that both have are not read.

    Args:
        before: an index.
        after: another one, in as many partitions.
        progress: told partitions done, partitions in all, and what.

    Raises:
        ManifestError: they are not cut alike.
    """
    if (before.bits, before.cells) != (after.bits, after.cells):
        cuts = [f"{side.digest} has 2^{side.bits} partitions with {side.cells} cells" for side in (before, after)]
        raise ManifestError(f"{', '.join(cuts)}; index the later version with index_ids(like=...)")
    told = IdDiff(read_bytes=before.root_bytes + after.root_bytes)
    told.total_bytes = told.read_bytes + sum(part.num_bytes for side in (before, after) for part in side.partitions)
    pairs = enumerate(zip(before.partitions, after.partitions, strict=True))
    numbers = [number for number, (a, b) in pairs if a.name != b.name]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ids") as pool:
        for done, (gone, new, num_bytes, is_whole) in enumerate(
            pool.map(lambda number: _compared(before, after, number), numbers), start=1
        ):
            told.read_bytes += num_bytes
            told.partitions_read_whole += is_whole
            _count(told, before, after, gone, new)
            if progress:
                progress(done, len(numbers), "partitions that differ")
    return told


def _compared(before: IdIndex, after: IdIndex, number: int) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Return the records that only one version has, what was read for it [bytes], and whether that was all."""
    parts = before.partitions[number], after.partitions[number]
    read = sum(part.sketch[1] for part in parts)
    found = difference(before.sketch(number), after.sketch(number))
    if found is not None:
        return *found, read, False
    gone, new = (without_lines(side.records(number)) for side in (before, after))
    read += sum(part.num_records * RECORD.itemsize for part in parts)
    return np.setdiff1d(gone, new), np.setdiff1d(new, gone), read, True


def _count(told: IdDiff, before: IdIndex, after: IdIndex, gone: np.ndarray, new: np.ndarray) -> None:
    """Sort what is gone and what is new into what was removed, added and changed."""
    changed = np.intersect1d(gone["id"], new["id"])
    is_kept = np.isin(new["id"], changed)
    for index, records, counts in (
        (before, gone[~np.isin(gone["id"], changed)], told.removed),
        (after, new[~is_kept], told.added),
        (after, new[is_kept], told.changed),
    ):
        for number, count in zip(*np.unique(index.terms_of(records), return_counts=True), strict=True):
            counts[index.terms[number]] += int(count)
