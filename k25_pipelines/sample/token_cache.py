"""Token ids of documents, kept in the lake: a dataset version and a tokenizer in, ranges of ids out.

A derived thing: batches are the same bits with and without it, only cheaper. It holds the lines that
are nothing but a document to be predicted; words that a draw changes are tokenized as ever. Beside
the lengths stand, below `k25/datasets/<name>/tokens/<manifest>/<tokenizer>-<rendering>`:

    .json               the index, written last: id type, and of each shard its name, lines and digests
    .<digest>.ids       shards, cut at chunks: int64 [lines + 1] offsets [bytes], uint32 [lines] CRC-32
                        of each line's bytes, then the ids, uint16 or uint32; all little-endian
"""

import bisect
import functools
import json
import zlib
from dataclasses import dataclass, field

import numpy as np

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.errors import ObjectNotFoundError, StoreError
from k25_pipelines.keys import digest
from k25_pipelines.plan.size import Profile
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.sample.chat import RENDERING
from k25_pipelines.sample.lengths import ChunkTokens, Progress, text_lengths, tokenized_chunks, write_lengths
from k25_pipelines.sample.read import Extent, Fetch, lines_of_chunk
from k25_pipelines.sample.tokens import Tokenizer
from k25_pipelines.storage.store import Store

SHARD_BYTES = 32 * 2**20
"""Ids of a shard, about; the last chunk may go over [bytes]."""
SHARD_LINES = 2**16
"""Lines of a shard, about: its table of 12 bytes a line is read at once."""
FRONTS_KEPT = 64
"""Tables of shards that stay in memory."""


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """Where the ids of a dataset version's documents stand."""

    lake: Store
    manifest: Manifest
    prefix: str
    dtype: np.dtype
    """Of the ids as stored: `<u2` or `<u4`."""
    shards: list[dict]
    """name, first_line, num_lines, num_bytes and front (digest of the table) of each, in order."""
    _fronts: "functools._lru_cache_wrapper" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keep the newest tables in memory."""
        object.__setattr__(self, "_fronts", functools.lru_cache(maxsize=FRONTS_KEPT)(self._read_front))

    def has(self, line: int) -> bool:
        """Return whether the line's ids are here: it is a document."""
        return self.extent(line)[2] > 0

    def extent(self, line: int) -> Extent:
        """Return where all ids of a line stand in the lake, no bytes if they do not; no etag: shards never change."""
        shard, offsets, _ = self._place(line)
        place = line - shard["first_line"]
        begin, end = int(offsets[place]), int(offsets[place + 1])
        return self._key(shard), begin, end - begin, ""

    def extents_of_chunk(self, chunk: int) -> list[Extent]:
        """Return the range of all ids of a manifest's chunk: one, or none if it has no documents."""
        lines = lines_of_chunk(self.manifest, chunk)
        shard, offsets, _ = self._place(lines.start)
        begin, end = (int(offsets[line - shard["first_line"]]) for line in (lines.start, lines.stop))
        return [(self._key(shard), begin, end - begin, "")] if end > begin else []

    def ids(self, line: int, fetch: Fetch, *, first: int = 0, num_tokens: int | None = None) -> np.ndarray:
        """Return int64 ids of a document, end of text included.

        Args:
            line: number of the line; one that `has` says is here.
            fetch: what gives the bytes of a range of the lake.
            first: first id that is wanted [tokens].
            num_tokens: how many at most; None is all that follow.

        Raises:
            StoreError: the bytes are not those that were written.
        """
        shard, _, checks = self._place(line)
        data = fetch(*self.extent(line))
        if zlib.crc32(data) != int(checks[line - shard["first_line"]]):
            where = f"{self.lake.url}/{self._key(shard)}"
            raise StoreError(f"{where}: the ids of {self.manifest.dataset}:{line} are damaged; delete and build anew")
        end = None if num_tokens is None else first + num_tokens
        return np.frombuffer(data, dtype=self.dtype)[first:end].astype(np.int64)

    def _place(self, line: int) -> tuple[dict, np.ndarray, np.ndarray]:
        number = bisect.bisect_right(self.shards, line, key=lambda shard: shard["first_line"]) - 1
        return self.shards[number], *self._fronts(number)

    def _key(self, shard: dict) -> str:
        return f"{self.prefix}.{shard['name']}.ids"

    def _read_front(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        shard = self.shards[number]
        num_lines = shard["num_lines"]
        data = self.lake.get_range(self._key(shard), 0, _front_bytes(num_lines))
        if digest(data) != shard["front"]:
            raise StoreError(f"{self.lake.url}/{self._key(shard)}: the table is damaged; delete it and build anew")
        return np.frombuffer(data, "<i8", num_lines + 1), np.frombuffer(data, "<u4", num_lines, 8 * (num_lines + 1))


def open_token_cache(
    lake: Store, manifest: Manifest, tokenizer: Tokenizer, profile: Profile | str | None = None
) -> TokenCache | None:
    """Return the ids of a dataset version under a tokenizer; None if they were not built.

    Args:
        lake: where they are kept.
        manifest: the dataset version.
        tokenizer: words to ids.
        profile: not asked: documents have no media.

    Raises:
        StoreError: the index is damaged.
    """
    prefix = tokens_prefix(manifest, tokenizer)
    try:
        data = lake.get(f"{prefix}.json")
    except ObjectNotFoundError:
        return None
    try:
        index = json.loads(data)
        stated = index.pop("digest")
    except (ValueError, KeyError) as error:
        raise StoreError(f"{lake.url}/{prefix}.json is no index of token ids ({error}); delete it") from error
    if stated != digest(index):
        raise StoreError(f"{lake.url}/{prefix}.json is damaged: it has not the digest it states; delete it")
    dtype = np.dtype(index["dtype"])
    return TokenCache(lake=lake, manifest=manifest, prefix=prefix, dtype=dtype, shards=index["shards"])


def build(
    lake: Store,
    manifest: Manifest,
    tokenizer: Tokenizer,
    profile: Profile | str,
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> np.ndarray:
    """Tokenize a dataset version once, for its lengths and its ids; what is there already is not done again.

    Args:
        lake: where both are kept.
        manifest: the dataset version.
        tokenizer: words to ids.
        profile: the lengths' profile, or its name.
        threads: chunks read and tokenized at once.
        progress: told chunks done, chunks in all, and what.

    Returns:
        int64 [lines] lengths, as `lengths.text_lengths` returns them.
    """
    profile = profile_named(profile) if isinstance(profile, str) else profile
    if open_token_cache(lake, manifest, tokenizer) is not None:
        return text_lengths(lake, manifest, tokenizer, profile, threads=threads, progress=progress)
    prefix, dtype = tokens_prefix(manifest, tokenizer), _dtype(tokenizer)
    lengths, shards, draft = [np.zeros(0, dtype=np.int64)], [], _Draft(first_line=0)
    for chunk in tokenized_chunks(manifest, tokenizer, profile, threads=threads, progress=progress):
        lengths.append(chunk.lengths)
        draft.add(chunk, dtype)
        if draft.num_bytes >= SHARD_BYTES or len(draft.lines) >= SHARD_LINES:
            shards.append(_written(lake, prefix, draft))
            draft = _Draft(first_line=draft.first_line + len(draft.lines))
    if draft.lines:
        shards.append(_written(lake, prefix, draft))
    index = {"dtype": dtype.str, "shards": shards}
    lake.put_new(f"{prefix}.json", json.dumps({**index, "digest": digest(index)}, sort_keys=True).encode())
    return write_lengths(lake, manifest, tokenizer, profile, np.concatenate(lengths))


def tokens_prefix(manifest: Manifest, tokenizer: Tokenizer) -> str:
    """Return what the keys of a dataset version's ids start with."""
    return f"k25/datasets/{manifest.dataset}/tokens/{manifest.digest}/{tokenizer.digest}-{RENDERING}"


@dataclass(kw_only=True)
class _Draft:
    """The lines of a shard so far."""

    first_line: int
    lines: list[bytes] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, chunk: ChunkTokens, dtype: np.dtype) -> None:
        for _ in range(len(chunk.lengths)):
            ids = chunk.documents.get(self.first_line + len(self.lines))
            self.lines.append(b"" if ids is None else ids.astype(dtype).tobytes())
            self.num_bytes += len(self.lines[-1])


def _written(lake: Store, prefix: str, draft: _Draft) -> dict:
    """Write a shard and return its entry in the index."""
    sizes = np.array([len(line) for line in draft.lines], dtype=np.int64)
    offsets = _front_bytes(len(sizes)) + np.concatenate([[0], np.cumsum(sizes)])
    checks = np.array([zlib.crc32(line) for line in draft.lines], dtype="<u4")
    front = offsets.astype("<i8").tobytes() + checks.tobytes()
    data = b"".join([front, *draft.lines])
    name = digest(data)
    lake.put_new(f"{prefix}.{name}.ids", data)
    entry = {"name": name, "first_line": draft.first_line, "num_lines": len(sizes), "num_bytes": len(data)}
    return {**entry, "front": digest(front)}


def _front_bytes(num_lines: int) -> int:
    return 8 * (num_lines + 1) + 4 * num_lines


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.num_tokens <= 2**16 else "<u4")
