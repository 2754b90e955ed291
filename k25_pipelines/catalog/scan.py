"""What the scan of a dataset is given, and how it spreads over threads without changing the order of its lines."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from k25_pipelines.catalog.manifest import Line, Manifest, Part
from k25_pipelines.catalog.probe import MediaHeader
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.storage.store import ObjectInfo, Store, read_url

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""
Item = TypeVar("Item")


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
    objects: Mapping[str, ObjectInfo]
    """Every object of the kind's suffixes, in the order of their keys."""
    new: Sequence[ObjectInfo]
    """Those of `objects` that no earlier version was made from."""
    previous: Manifest | None = None
    """The version before, whose lines stay as they are."""
    threads: int = 4
    progress: Progress | None = None

    def lines(self, work: Callable[[Item], Iterable[Line]], items: Sequence[Item]) -> Iterator[Line]:
        """Yield the lines that `work` finds in each item, in the items' order, from several threads at once."""
        for done, lines in enumerate(_ordered(lambda item: list(work(item)), items, threads=self.threads), start=1):
            if self.progress:
                self.progress(done, len(items), f"indexing {self.registration.name}")
            yield from lines

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


def media_part(
    kind: str, info: ObjectInfo, header: MediaHeader | None, *, offset: int = 0, num_bytes: int = -1
) -> Part:
    """Return a part for the bytes of an object, all of them unless told otherwise; sizes are 0 without a header."""
    return Part(
        kind=kind,
        shard=info.key,
        offset=offset,
        num_bytes=info.num_bytes if num_bytes < 0 else num_bytes,
        etag=info.etag,
        shard_bytes=info.num_bytes,
        width=header.width if header else 0,
        height=header.height if header else 0,
        frames=header.frames if header else 0,
        fps=header.fps if header else 0.0,
        orientation=header.orientation if header else 1,
    )


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


def _ordered(work: Callable[[Item], list[Line]], items: Sequence[Item], *, threads: int) -> Iterator[list[Line]]:
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 4 * threads:  # what is found and not yet taken stays small
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
