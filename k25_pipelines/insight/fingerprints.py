"""What samples are recognised by: bytes of a dataset version in, a row a line out, kept in the lake block by block.

k25/datasets/<name>/fingerprints/<version>-<digest of the block's lines>.parquet   FINGERPRINT_LINES lines; written once

A block is named by its lines: a later version reads the blocks of an earlier one, and what was killed goes on.
"""

import io
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.manifest import Manifest, manifest_digest
from k25_pipelines.catalog.media import content_id
from k25_pipelines.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError, SampleError
from k25_pipelines.insight.words import language, minhash, words_id, words_of
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.perceptual import perceptual_hash
from k25_pipelines.sample.picture import small_pixels
from k25_pipelines.sample.read import Extent, RawSample, Tables, extents, inside, read_line
from k25_pipelines.sample.renderings import media_parts
from k25_pipelines.storage.store import Store, open_store

Progress = Callable[[int, int, str], None]

FINGERPRINTS = "fingerprints-1"
"""Changes whenever the same sample would give another row."""
FINGERPRINT_LINES = 1024
READ_LINES = 32
"""Lines whose bytes are fetched together."""
SCHEMA = pa.schema(
    [
        ("contents", pa.list_(pa.string())),
        ("pictures", pa.list_(pa.string())),
        ("small", pa.binary()),
        ("words", pa.string()),
        ("minhash", pa.list_(pa.uint32())),
        ("language", pa.string()),
        ("fault", pa.string()),
    ]
)
"""A row a line: SHA-256 of each medium; perceptual hash of each image, "" where it shows nothing; the first
image as 8x8 pixels of red, green, blue; `words_id`; MinHash; language; why the line could not be read, else ""."""
NOTHING = {"contents": [], "pictures": [], "small": b"", "words": "", "minhash": None, "language": "", "fault": ""}
FLAT = 4.0
"""Standard deviation of grey below which a picture is as good as one colour, and its hash says nothing [levels]."""


def fingerprints(
    lake: Store,
    manifest: Manifest,
    *,
    without: Collection[int] = (),
    threads: int = 2,
    progress: Progress | None = None,
) -> pa.Table:
    """Return what the samples of a dataset version are recognised by, a row a line; what is not known yet is read.

    Args:
        lake: where blocks are kept.
        manifest: the dataset version.
        without: lines that are not read, and of which nothing is said.
        threads: stretches of lines read at once.
        progress: told lines done, lines in all, and what.
    """
    blocks, skipped = [SCHEMA.empty_table()], frozenset(int(line) for line in without)
    for first in range(0, manifest.num_lines, FINGERPRINT_LINES):
        end = min(first + FINGERPRINT_LINES, manifest.num_lines)
        key = _block_key(manifest, first, end)
        try:
            blocks.append(pq.read_table(io.BytesIO(lake.get(key)), use_threads=False).cast(SCHEMA))
        except ObjectNotFoundError:
            blocks.append(_write(lake, key, _made(manifest, first, end, skipped, threads, progress)))
        if progress:
            progress(end, manifest.num_lines, f"fingerprints of {manifest.dataset}")
    return _silenced(pa.concat_tables(blocks), skipped)


def _block_key(manifest: Manifest, first: int, end: int) -> str:
    name = manifest_digest(manifest.table.slice(first, end - first), kind=manifest.kind)
    return f"k25/datasets/{manifest.dataset}/fingerprints/{FINGERPRINTS}-{name}.parquet"


def _made(
    manifest: Manifest, first: int, end: int, skipped: frozenset[int], threads: int, progress: Progress | None
) -> pa.Table:
    """Return the rows of a block, read stretch by stretch."""
    store, rows = open_store(manifest.uri), []
    stretches = [range(at, min(at + READ_LINES, end)) for at in range(first, end, READ_LINES)]
    with ThreadPoolExecutor(threads, thread_name_prefix="fingerprints") as pool:
        for made in pool.map(lambda lines: list(_rows(manifest, lines, store, skipped)), stretches):
            rows += made
            if progress:
                progress(first + len(rows), manifest.num_lines, f"fingerprints of {manifest.dataset}")
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rows(manifest: Manifest, lines: range, store: Store, skipped: frozenset[int]) -> Iterator[dict]:
    wanted = [line for line in lines if line not in skipped and not manifest.quarantined[line]]
    ranges = extents(part for line in wanted for part in manifest.line(line).parts)
    fetched: dict[Extent, bytes] = {}
    tables = Tables()

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        whole = inside(ranges, (shard, offset, num_bytes, etag)) or (shard, offset, num_bytes, etag)
        if whole not in fetched:
            fetched[whole] = store.get_range(whole[0], whole[1], whole[2], etag=whole[3] or None)
        return fetched[whole][offset - whole[1] : offset - whole[1] + num_bytes]

    for line in lines:
        if line not in wanted:
            yield NOTHING
            continue
        try:
            yield fingerprint(read_line(manifest, line, fetch, tables=tables))
        except (SampleError, ObjectNotFoundError, ObjectChangedError) as error:
            yield {**NOTHING, "fault": str(error)}


def fingerprint(raw: RawSample) -> dict:
    """Return what one sample is recognised by, a row of SCHEMA."""
    text = words_of(raw)
    pictures, small = list[str](), b""
    for part, data in zip(media_parts(raw), raw.media, strict=True):
        if part.kind == "image":
            pixels = decode_image(data, name=raw.line.key)
            pictures.append(perceptual_hash(pixels) if pixels.mean(axis=2).std() >= FLAT else "")
            small = small or small_pixels(pixels)
    return {
        "contents": [content_id(data) for data in raw.media],
        "pictures": pictures,
        "small": small,
        "words": words_id(text),
        "minhash": minhash(text),
        "language": language(text),
        "fault": "",
    }


def _write(lake: Store, key: str, table: pa.Table) -> pa.Table:
    """Write a block once and return what stands there."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    try:
        lake.put_new(key, sink.getvalue())
    except ObjectExistsError:  # another process was first
        return pq.read_table(io.BytesIO(lake.get(key)), use_threads=False).cast(SCHEMA)
    return table


def _silenced(table: pa.Table, skipped: frozenset[int]) -> pa.Table:
    """Return rows without what was known of lines that are skipped now."""
    places = sorted(line for line in skipped if line < table.num_rows)
    if not places:
        return table
    blank = pa.Table.from_pylist([NOTHING], schema=SCHEMA)
    order = np.arange(table.num_rows)
    order[places] = table.num_rows
    return pa.concat_tables([table, blank]).take(pa.array(order))
