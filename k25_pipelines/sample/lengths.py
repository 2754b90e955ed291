"""Token counts of a dataset version: manifest and tokenizer in, one number a line out, kept as a column file."""

import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.manifest import MEDIA_KINDS, Manifest
from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, SampleError
from k25_pipelines.plan.size import Profile
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.sample.chat import Span
from k25_pipelines.sample.example import candidate_spans
from k25_pipelines.sample.read import Extent, Tables, extents, inside, lines_of_chunk, read_line
from k25_pipelines.sample.tokens import Tokenizer
from k25_pipelines.storage.store import Store, open_store

UNREADABLE = 1
"""Tokens planned for words that cannot be read: the sample is met, masked and counted by the loader."""

Progress = Callable[[int, int, str], None]


def text_lengths(
    lake: Store,
    manifest: Manifest,
    tokenizer: Tokenizer,
    profile: Profile | str,
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return how many tokens each line has besides media pads, from the lake or by reading its words.

    Exact where the draws change no words; else the most that they can give: all boxes, and the
    longer of the plain and the mirrored words. The end of text and the markers of media count.

    Args:
        lake: where the column file is kept.
        manifest: the dataset version.
        tokenizer: words to ids.
        profile: how many volumes, hence markers and times, a video has; a Profile or its name.
        threads: chunks read and tokenized at once.
        progress: told chunks done, chunks in all, and what.

    Returns:
        int64 [lines]; 0 where a line is quarantined.
    """
    profile = profile_named(profile) if isinstance(profile, str) else profile
    key = lengths_key(manifest, tokenizer, profile)
    try:
        return _column(lake.get(key))
    except ObjectNotFoundError:
        lengths = _counted(manifest, tokenizer, profile, threads=threads, progress=progress)
    try:
        lake.put_new(key, _file(lengths))
    except ObjectExistsError:  # another process wrote the same numbers first, perhaps with another Parquet writer
        return _column(lake.get(key))
    return lengths


def lengths_key(manifest: Manifest, tokenizer: Tokenizer, profile: Profile) -> str:
    """Return the lake's key of a column file."""
    return f"k25/datasets/{manifest.dataset}/lengths/{manifest.digest}/{tokenizer.digest}-{profile.name}.parquet"


def span_lengths(renderings: Iterable[list[Span]], tokenizer: Tokenizer) -> np.ndarray:
    """Return int64 tokens of each rendering, media pads not counted, all words encoded in one batch."""
    renderings = list(renderings)
    words = [span.words for spans in renderings for span in spans if span.words]
    counts = iter([len(ids) for ids in tokenizer.encode_batch(words)])
    return np.array(
        [sum(next(counts) if span.words else int(span.media < 0) for span in spans) for spans in renderings],
        dtype=np.int64,
    )


def _counted(
    manifest: Manifest, tokenizer: Tokenizer, profile: Profile, *, threads: int, progress: Progress | None
) -> np.ndarray:
    store, tables = open_store(manifest.uri), Tables()
    num_chunks = -(-manifest.num_lines // manifest.chunk_lines)

    def count(chunk: int) -> np.ndarray:
        return _chunk_lengths(manifest, lines_of_chunk(manifest, chunk), store, tables, tokenizer, profile)

    pieces = [np.zeros(0, dtype=np.int64)]
    with ThreadPoolExecutor(threads, thread_name_prefix="lengths") as pool:
        for done, piece in enumerate(pool.map(count, range(num_chunks)), start=1):
            pieces.append(piece)
            if progress:
                progress(done, num_chunks, f"tokenizing {manifest.dataset}")
    return np.concatenate(pieces)


def _chunk_lengths(
    manifest: Manifest, lines: range, store: Store, tables: Tables, tokenizer: Tokenizer, profile: Profile
) -> np.ndarray:
    owners, candidates = [], []
    for place, spans in enumerate(_renderings(manifest, lines, store, tables, profile)):
        owners += [place] * len(spans)
        candidates += spans
    lengths = np.zeros(len(lines), dtype=np.int64)
    np.maximum.at(lengths, owners, span_lengths(candidates, tokenizer))
    return lengths


def _renderings(manifest: Manifest, lines: range, store: Store, tables: Tables, profile: Profile) -> list:
    """Return the candidate renderings of each line; none of a quarantined one."""
    known = [manifest.line(line) for line in lines]
    wanted = [line for line in known if not line.quarantine]
    ranges = extents(part for line in wanted for part in line.parts if part.kind not in MEDIA_KINDS)
    fetched: dict[Extent, bytes] = {}

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        whole = inside(ranges, (shard, offset, num_bytes, etag)) or (shard, offset, num_bytes, etag)
        if whole not in fetched:
            fetched[whole] = store.get_range(whole[0], whole[1], whole[2], etag=whole[3] or None)
        return fetched[whole][offset - whole[1] : offset - whole[1] + num_bytes]

    found = []
    for number, line in zip(lines, known, strict=True):
        if line.quarantine:
            found.append([])
            continue
        try:
            raw = read_line(manifest, number, fetch, tables=tables, with_media=False)
            found.append(candidate_spans(raw, profile))
        except SampleError:
            found.append([[Span(special="eos")] * UNREADABLE])
    return found


def _column(data: bytes) -> np.ndarray:
    return pq.read_table(io.BytesIO(data), use_threads=False)["text_tokens"].to_numpy()


def _file(lengths: np.ndarray) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text_tokens": pa.array(lengths, pa.int64())}), sink, compression="zstd")
    return sink.getvalue()
