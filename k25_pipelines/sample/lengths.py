"""Token counts of a dataset version: manifest and tokenizer in, one number a line out, kept as a column file."""

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from k25_pipelines.catalog.manifest import MEDIA_KINDS, Manifest
from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, SampleError
from k25_pipelines.plan.size import Profile
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.sample.chat import RENDERING, Span
from k25_pipelines.sample.example import candidate_spans
from k25_pipelines.sample.mask import tokenized
from k25_pipelines.sample.read import Extent, Tables, extents, inside, lines_of_chunk, read_line
from k25_pipelines.sample.tokens import Tokenizer
from k25_pipelines.storage.store import Store, open_store

UNREADABLE = 1
"""Tokens planned for words that cannot be read: the sample is met, masked and counted by the loader."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkTokens:
    """What the words of a chunk are in tokens."""

    lengths: np.ndarray
    """int64 [lines of the chunk], 0 where a line is quarantined."""
    documents: dict[int, np.ndarray]
    """Line of the dataset -> int64 ids of all of it, for lines that are nothing but a document to be predicted."""


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
    try:
        return _column(lake.get(lengths_key(manifest, tokenizer, profile)))
    except ObjectNotFoundError:
        chunks = tokenized_chunks(manifest, tokenizer, profile, threads=threads, progress=progress)
        pieces = [chunk.lengths for chunk in chunks]
    return write_lengths(lake, manifest, tokenizer, profile, np.concatenate([np.zeros(0, dtype=np.int64), *pieces]))


def lengths_key(manifest: Manifest, tokenizer: Tokenizer, profile: Profile) -> str:
    """Return the lake's key of a column file; another way to render words is another column."""
    column = f"{tokenizer.digest}-{profile.name}-{RENDERING}"
    return f"k25/datasets/{manifest.dataset}/lengths/{manifest.digest}/{column}.parquet"


def write_lengths(
    lake: Store, manifest: Manifest, tokenizer: Tokenizer, profile: Profile, lengths: np.ndarray
) -> np.ndarray:
    """Write a column file once and return what stands there, int64 [lines]."""
    key = lengths_key(manifest, tokenizer, profile)
    try:
        lake.put_new(key, _file(lengths))
    except ObjectExistsError:  # another process wrote the same numbers first, perhaps with another Parquet writer
        return _column(lake.get(key))
    return lengths


def tokenized_chunks(
    manifest: Manifest, tokenizer: Tokenizer, profile: Profile, *, threads: int = 2, progress: Progress | None = None
) -> Iterator[ChunkTokens]:
    """Yield the tokens of each chunk of a dataset version, in order; at most a few chunks are held at once.

    Args:
        manifest: the dataset version.
        tokenizer: words to ids.
        profile: as for `text_lengths`.
        threads: chunks read and tokenized at once.
        progress: told chunks done, chunks in all, and what.
    """
    store, tables = open_store(manifest.uri), Tables()
    with ThreadPoolExecutor(threads, thread_name_prefix="lengths") as pool:
        waiting: deque[Future[ChunkTokens]] = deque()
        for chunk in range(manifest.num_chunks + 2 * threads):
            if chunk < manifest.num_chunks:
                lines = lines_of_chunk(manifest, chunk)
                waiting.append(pool.submit(_chunk_tokens, manifest, lines, store, tables, tokenizer, profile))
            done = chunk + 1 - 2 * threads
            if done > 0 and waiting:
                yield waiting.popleft().result()
                if progress:
                    progress(done, manifest.num_chunks, f"tokenizing {manifest.dataset}")


def _chunk_tokens(
    manifest: Manifest, lines: range, store: Store, tables: Tables, tokenizer: Tokenizer, profile: Profile
) -> ChunkTokens:
    lengths, documents = np.zeros(len(lines), dtype=np.int64), {}
    for place, candidates in enumerate(_renderings(manifest, lines, store, tables, profile)):
        if len(candidates) == 1 and all(span.is_target and span.media < 0 for span in candidates[0]):
            ids = tokenized(candidates[0], tokenizer).ids
            documents[lines[place]], lengths[place] = ids, len(ids)
        else:
            lengths[place] = max((_num_tokens(spans, tokenizer) for spans in candidates), default=0)
    return ChunkTokens(lengths=lengths, documents=documents)


def _num_tokens(spans: list[Span], tokenizer: Tokenizer) -> int:
    """Return the tokens of a rendering, media pads not counted."""
    words = sum(len(tokenizer.encode(span.words)) for span in spans if span.words)
    return words + sum(bool(span.special) for span in spans)


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
