"""Plan rows to examples: what a thread does for one sample, from its bytes to tokens and patches in their place."""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from k25_pipelines.errors import ObjectNotFoundError, SampleError
from k25_pipelines.loader.prefetch import Reader
from k25_pipelines.plan.size import Profile
from k25_pipelines.sample.augment import Draws, draws_of_row
from k25_pipelines.sample.example import Example, as_planned, example
from k25_pipelines.sample.mask import TokenizedSample
from k25_pipelines.sample.read import read_line
from k25_pipelines.sample.tokens import Tokenizer

DOCUMENTS_KEPT = 16
"""Tokenized texts that are split over packs and kept for their next pieces."""

Loaded = tuple[str, Example | str]
"""A sample's key, and the sample or why it is bad."""


class SampleLoader:
    """Makes the examples of plan rows; threads may share it."""

    def __init__(
        self,
        reader: Reader,
        *,
        tokenizer: Tokenizer,
        profile: Profile,
        max_image_tokens: int,
        pack_tokens: Callable[[int], int],
        reason: Callable[[Mapping], str | None],
    ) -> None:
        """Set up.

        Args:
            reader: gives the bytes.
            tokenizer: words to ids.
            profile: what the model wants of media.
            max_image_tokens: the recipe's, for the media after the first of a sample [tokens].
            pack_tokens: T of a step.
            reason: why a row is masked, where that is known before it is read.
        """
        self._reader, self._tokenizer, self._profile = reader, tokenizer, profile
        self._max_image_tokens = max_image_tokens
        self._pack_tokens, self._reason = pack_tokens, reason
        self._document = functools.lru_cache(maxsize=DOCUMENTS_KEPT)(self._whole_document)
        self._document_locks = [threading.Lock() for _ in range(DOCUMENTS_KEPT)]
        self.source_of_thread: dict[int, str] = {}
        """On which dataset each thread works."""

    def load_all(self, rows: list[dict], slices: list[np.ndarray]) -> list[Loaded]:
        """Return the keys of some rows and their samples, or why they are bad.

        Args:
            rows: of the plan.
            slices: of each row, float32 [planned patches, 3, patch, patch], where its patches are put.
        """
        return [self._load(row, patches) for row, patches in zip(rows, slices, strict=True)]

    def key(self, row: Mapping) -> str:
        """Return what the dataset calls a row's sample."""
        return self._reader.source(row["dataset"]).manifest.line(row["line"]).key

    def _load(self, row: dict, patches: np.ndarray) -> Loaded:
        self.source_of_thread[threading.get_ident()] = row["dataset"]
        if reason := self._reason(row):
            return self.key(row), reason
        pack_tokens = self._pack_tokens(row["step"])
        try:
            key, made = self._whole(row, patches, pack_tokens)
            made = as_planned(made, row, name=key, pack_tokens=pack_tokens)
        except (SampleError, ObjectNotFoundError) as error:
            return self.key(row), str(error)
        if made.patches is not patches and len(patches):
            patches[...] = made.patches
            made = replace(made, patches=patches)
        return key, made

    def _whole(self, row: dict, patches: np.ndarray, pack_tokens: int) -> tuple[str, Example]:
        """Return all of a row's sample, also where the row is a piece of it."""
        dataset, line = row["dataset"], row["line"]
        if not row["media"]:
            if not row.get("noise") and (cached := self._from_ids(dataset, line)) is not None:
                return cached
            if row["token_start"] > 0 or row["num_tokens"] == pack_tokens:
                with self._document_locks[line % len(self._document_locks)]:
                    return self._document(dataset, line)
        return self._made(dataset, line, draws_of_row(row), max_tokens=row["num_tokens"], out=patches)

    def _from_ids(self, dataset: str, line: int) -> tuple[str, Example] | None:
        """Return a document whose ids are kept in the lake."""
        source = self._reader.source(dataset)
        if source.token_cache is None or not source.token_cache.has(line):
            return None
        ids = source.token_cache.ids(line, self._reader.fetch(dataset, self._reader.chunk_of(dataset, line)))
        tokens = TokenizedSample(ids=ids, is_target=np.ones(len(ids), dtype=bool), media=_NO_MEDIA)
        side = self._profile.patch
        none = np.zeros((0, 3, side, side), dtype=np.float32)
        return source.manifest.line(line).key, Example(tokens=tokens, patches=none, grid_thw=_NO_GRID)

    def _made(
        self, dataset: str, line: int, draws: Draws, *, max_tokens: int = 0, out: np.ndarray | None = None
    ) -> tuple[str, Example]:
        source = self._reader.source(dataset)
        fetch = self._reader.fetch(dataset, self._reader.chunk_of(dataset, line))
        raw = read_line(source.manifest, line, fetch, tables=source.tables)
        made = example(
            raw,
            draws,
            tokenizer=self._tokenizer,
            profile=self._profile,
            max_tokens=max_tokens,
            max_image_tokens=self._max_image_tokens,
            out=out,
        )
        return raw.line.key, made

    def _whole_document(self, dataset: str, line: int) -> tuple[str, Example]:
        """Return all of a text that is split over packs, so that it is tokenized once for its pieces."""
        return self._made(dataset, line, Draws(crop=(0, 0, 1, 1), width=1, height=1))


_NO_MEDIA, _NO_GRID = np.zeros((0, 2), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
