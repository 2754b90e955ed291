"""What stands beside a manifest: content ids of its media, counts of its annotations. A version keeps its name without.

The file is `k25/datasets/<name>/beside/<manifest digest>.parquet`, a row a line (`line.BESIDE`). It is
written with the version, from what the indexer read anyway, and filled by `k25 index NAME --deep`.
"""

import io
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.columns import one_array
from k25_pipelines.catalog.line import BESIDE, MEDIA_KINDS, Part
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.media import content_id
from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.storage.store import Store, open_store

Progress = Callable[[int, int, str], None]
MAX_GAP = 64 * 2**10
"""Media of one shard that lie closer than this are fetched together [bytes]."""
RANGE_BYTES = 8 * 2**20
"""Media that start within this of the first are fetched with it [bytes]."""
CellReader = Callable[[Part], bytes]
"""Gives the bytes of a part that is a cell of a Parquet table."""


def beside_key(manifest: Manifest) -> str:
    """Return the lake's key of what stands beside a manifest."""
    return f"k25/datasets/{manifest.dataset}/beside/{manifest.digest}.parquet"


def read_beside(lake: Store, manifest: Manifest) -> pa.Table:
    """Return what stands beside a manifest as a table of `BESIDE`, all null where nothing was written."""
    try:
        table = pq.read_table(io.BytesIO(lake.get(beside_key(manifest))), use_threads=False)
    except ObjectNotFoundError:
        table = BESIDE.empty_table()
    if table.num_rows == manifest.num_lines:
        return table.cast(BESIDE)
    return _beside([None] * manifest.columns.first_part[-1], pa.nulls(manifest.num_lines, pa.string()), manifest)


def write_beside(lake: Store, manifest: Manifest, table: pa.Table) -> None:
    """Write what stands beside a manifest; later knowledge replaces it, so it only ever grows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    lake.put(beside_key(manifest), sink.getvalue())


def content_ids(lake: Store, manifest: Manifest) -> list[str | None]:
    """Return the SHA-256 of each medium as 64 hexadecimal characters, in the order of the manifest's parts.

    None stands for words, and for media whose bytes nobody has read whole yet. The part's line is
    `part_columns(manifest)["line"]`.
    """
    return one_array(read_beside(lake, manifest)["contents"]).flatten().to_pylist()


def lines_of_content(lake: Store, manifest: Manifest, content: str) -> np.ndarray:
    """Return the lines that hold a medium of this content id, int64, ascending; as far as contents are known."""
    found = [place for place, known in enumerate(content_ids(lake, manifest)) if known == content]
    first_part = np.asarray(manifest.columns.first_part)
    return np.unique(np.searchsorted(first_part, np.array(found, np.int64), side="right") - 1).astype(np.int64)


def annotation_totals(lake: Store, manifest: Manifest) -> dict[str, int]:
    """Return how many annotations of each kind the lines that are used have together."""
    used = read_beside(lake, manifest)["annotations"].filter(pa.array(~manifest.quarantined))
    totals: Counter[str] = Counter()
    for entry in used.value_counts().to_pylist():
        for name, number in json.loads(entry["values"] or "{}").items():
            totals[name] += number * entry["counts"]
    return dict(sorted(totals.items()))


def fill_contents(
    lake: Store,
    manifest: Manifest,
    *,
    cells: CellReader,
    threads: int = 8,
    progress: Progress | None = None,
) -> int:
    """Read every medium whose content id is not known yet, write the ids, and return how many were found.

    Args:
        lake: where the ids are kept.
        manifest: the dataset version.
        cells: gives the bytes of a part of a Parquet table.
        threads: shards read at once.
        progress: told media done, media in all, and what.
    """
    store, known = open_store(manifest.uri), content_ids(lake, manifest)
    wanted = _unknown_media(manifest, known)

    def ids(places: list[tuple[int, Part]]) -> list[tuple[int, str]]:
        if places[0][1].row >= 0:
            return [(place, content_id(cells(part))) for place, part in places]
        return _range_ids(store, places)

    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="contents") as pool:
        for found in pool.map(ids, _neighbours(wanted)):
            done += len(found)
            for place, content in found:
                known[place] = content
            if progress:
                progress(done, len(wanted), "content ids")
    if wanted:
        write_beside(lake, manifest, _beside(known, read_beside(lake, manifest)["annotations"], manifest))
    return len(wanted)


def _unknown_media(manifest: Manifest, known: list[str | None]) -> list[tuple[int, Part]]:
    """Return place and part of the media that are used and have no content id, shard by shard."""
    columns, quarantined = manifest.columns, manifest.quarantined
    found = []
    for line in np.flatnonzero(~quarantined).tolist():
        places = range(columns.first_part[line], columns.first_part[line + 1])
        if all(known[place] or columns.parts["kind"][place] not in MEDIA_KINDS for place in places):
            continue
        for place, part in zip(places, columns.parts_of(line), strict=True):
            if part.kind in MEDIA_KINDS and not known[place]:
                found.append((place, part))
    return sorted(found, key=lambda item: (item[1].shard, item[1].offset, item[0]))


def _neighbours(media: list[tuple[int, Part]]) -> list[list[tuple[int, Part]]]:
    """Return media in runs that are worth one request: of one row group, or near each other in one shard."""
    runs: list[list[tuple[int, Part]]] = []
    for item in media:
        part, run = item[1], runs[-1] if runs else []
        first, last = (run[0][1], run[-1][1]) if run else (part, part)
        near = part.offset - (last.offset + last.num_bytes) <= MAX_GAP and part.offset - first.offset < RANGE_BYTES
        if run and part.shard == last.shard and (part.offset == last.offset if part.row >= 0 else near):
            run.append(item)
        else:
            runs.append([item])
    return runs


def _range_ids(store: Store, places: list[tuple[int, Part]]) -> list[tuple[int, str]]:
    first = places[0][1]
    end = max(part.offset + part.num_bytes for _, part in places)
    data = memoryview(store.get_range(first.shard, first.offset, end - first.offset, etag=first.etag or None))
    starts = [(place, part.offset - first.offset, part.num_bytes) for place, part in places]
    return [(place, content_id(data[start : start + size])) for place, start, size in starts]


def _beside(contents: list[str | None], annotations, manifest: Manifest) -> pa.Table:
    offsets = pa.array(np.asarray(manifest.columns.first_part), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(contents, pa.string()))
    return pa.Table.from_arrays([lists, annotations], schema=BESIDE)
