"""Step to batch: a plan, a store and a rank in; batches out, and the few names from which to go on."""

import functools
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Self

import numpy as np

from k25_pipelines.catalog.manifest import Manifest, read_manifest
from k25_pipelines.errors import ObjectChangedError, ObjectNotFoundError, PlanError, SampleError
from k25_pipelines.plan.balance import rank_packs
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.planning import Plan, open_plan
from k25_pipelines.sample.augment import Draws, draws_of_row
from k25_pipelines.sample.batch import Batch, PlacedSample, Provenance, assembled, step_digest
from k25_pipelines.sample.example import Example, as_planned, example
from k25_pipelines.sample.journal import Journal
from k25_pipelines.sample.read import Extent, Fetch, Tables, extents_of_chunk, inside, read_line
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.store import Store, open_store

__all__ = ["Batch", "PlanLoader", "Provenance", "step_digest"]

STEPS_AHEAD = 2
"""Steps that are decoded while one is trained on."""
BYTES_AHEAD = 512 * 2**20
"""Patches of steps decoded ahead, at most [bytes]."""
FETCH_THREADS = 8
"""Chunks fetched ahead at once."""
DOCUMENTS_KEPT = 16
"""Tokenized texts that are split over packs and kept for their next pieces."""
STATE_FIELDS = ("run", "plan", "segment", "step")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """One dataset version of the plan, open for reading."""

    manifest: Manifest
    store: Store
    tables: Tables = field(default_factory=Tables)


class PlanLoader:
    """Executes a plan: builds any step's packs of one rank, in threads that it owns until closed.

    What a batch holds depends on plan and step alone; rank and number of ranks only choose which
    of the step's packs. Threads, cache and machine change nothing.
    """

    def __init__(
        self,
        plan: Plan | str,
        store: Store,
        *,
        run: str | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        threads: int | None = None,
        cache: Path | None = None,
    ) -> None:
        """Open a plan.

        Args:
            plan: a plan or its id.
            store: the lake, in which plan, manifests and the run's journal stand.
            run: under which masked samples are journaled; None journals nothing.
            rank: this process's place in [0, num_ranks).
            num_ranks: processes that share a step.
            threads: that decode; None is the number of cores.
            cache: folder that keeps chunks on disk; None keeps them in memory only.
        """
        self.plan = open_plan(store, plan) if isinstance(plan, str) else plan
        self.run, self.rank, self.num_ranks = run, rank, num_ranks
        rank_packs(1, rank, num_ranks)  # refuses a rank out of range before any work
        self._store = store
        self._tokenizer = load_tokenizer(self.plan.tokenizer, store)
        self._profile = profile_named(self.plan.profile)
        self._cache = ChunkCache(cache)
        self._source = functools.cache(self._opened)
        self._extents = functools.lru_cache(maxsize=4096)(self._chunk_extents)
        self._document = functools.lru_cache(maxsize=DOCUMENTS_KEPT)(self._whole_document)
        self._document_locks = [threading.Lock() for _ in range(DOCUMENTS_KEPT)]
        self._journal = Journal(store, run)
        self._pending: dict[int, list[tuple[dict, Future[Example | str]]]] = {}
        self._fetched: set[tuple[str, int]] = set()
        self._newest: tuple[int, Batch] | None = None
        self._next_step, self._is_closed = 0, False
        self._decoders = ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step; calls in ascending order are decoded ahead.

        Raises:
            PlanError: the plan has no such step.
            StoreError: the store failed, retries included; the same call may be repeated.
            ObjectChangedError: an object is not the one that was indexed.
            ValueError: the loader is closed.
        """
        step = index(step)
        ahead = STEPS_AHEAD if step == self._next_step else 0
        for late in [number for number in self._pending if not step <= number <= step + ahead]:
            for _, future in self._pending.pop(late):
                future.cancel()
        self._submit(step)
        for coming in range(step + 1, min(step + 1 + ahead, self.plan.num_steps)):
            if self._bytes_pending() < BYTES_AHEAD:
                self._submit(coming)
        batch = self._assembled(step, self._pending.pop(step))
        self._newest, self._next_step = (step, batch), step + 1
        return batch

    def pack_digests(self, step: int) -> list[tuple[int, int, str]]:
        """Return (step, pack, SHA-256) of each of this rank's packs; the newest batch is not built again."""
        if self._newest is None or self._newest[0] != step:
            self.batch(step)
        assert self._newest is not None
        packs = self._packs(step)
        return [(step, pack, hexadecimal) for pack, hexadecimal in zip(packs, self._newest[1].digests, strict=True)]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the state's step to the plan's end."""
        while self._next_step < self.plan.num_steps:
            yield self.batch(self._next_step)

    def state_dict(self) -> dict:
        """Return what to resume from: run, plan, segment digest, and the step that comes next."""
        return {
            "run": self.run,
            "plan": self.plan.id,
            "segment": self._segment(self._next_step),
            "step": self._next_step,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on at the state's step.

        Raises:
            PlanError: the state is of another run or plan, or the plan's segment has changed.
        """
        if sorted(state) != sorted(STATE_FIELDS):
            raise PlanError(f"a loader state has the fields {', '.join(STATE_FIELDS)}, not {', '.join(state)}")
        step = state["step"]
        if type(step) is not int or not 0 <= step <= self.plan.num_steps:
            raise PlanError(f"the state's step is {step!r}, the plan {self.plan.id} has {self.plan.num_steps}")
        own = {"run": self.run, "plan": self.plan.id, "segment": self._segment(step)}
        for name, value in own.items():
            if state[name] != value:
                raise PlanError(f"the state's {name} is {state[name]}, this loader's is {value}; open the one it names")
        self._next_step = step

    def close(self) -> None:
        """End the threads; what was decoded ahead is dropped. Closing twice is fine."""
        self._is_closed = True
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        """Return the loader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _segment(self, step: int) -> str:
        """Return the digest of the segment read last before a step: it stays what it is when the plan is extended."""
        return self.plan.segment_of(max(0, step - 1)).digest

    def _packs(self, step: int) -> range:
        rows = self.plan.rows(step)
        return rank_packs(int(np.max(rows["pack"].to_numpy())) + 1, self.rank, self.num_ranks)

    def _submit(self, step: int) -> None:
        if self._is_closed:
            raise ValueError(f"this loader of plan {self.plan.id} is closed; open another")
        if step in self._pending:
            return
        if not 0 <= step < self.plan.num_steps:
            raise PlanError(f"the plan {self.plan.id} has steps 0 to {self.plan.num_steps - 1}, not {step}; extend it")
        packs = self._packs(step)
        rows = [row for row in self.plan.rows(step).to_pylist() if row["pack"] in packs]
        for row in rows:
            self._fetch_ahead(row["dataset"], row["line"])
        self._pending[step] = [(row, self._decoders.submit(self._load, row)) for row in rows]

    def _bytes_pending(self) -> int:
        patch_bytes = 3 * self._profile.patch**2 * 4
        return sum(row["patches"] * patch_bytes for rows in self._pending.values() for row, _ in rows)

    def _fetch_ahead(self, dataset: str, line: int) -> None:
        source = self._source(dataset)
        chunk = line // source.manifest.chunk_lines
        if (dataset, chunk) in self._fetched:
            return
        if len(self._fetched) > 4096:
            self._fetched.clear()
        self._fetched.add((dataset, chunk))
        for shard, offset, num_bytes, etag in self._extents(dataset, chunk):
            self._fetchers.submit(self._cache.read, source.store, shard, offset, num_bytes, etag)

    def _opened(self, dataset: str) -> _Source:
        manifest = read_manifest(self._store, dataset, self.plan.datasets[dataset])
        return _Source(manifest=manifest, store=open_store(manifest.uri))

    def _chunk_extents(self, dataset: str, chunk: int) -> list[Extent]:
        return extents_of_chunk(self._source(dataset).manifest, chunk)

    def _fetch(self, dataset: str, chunk: int) -> Fetch:
        source, ranges = self._source(dataset), self._extents(dataset, chunk)

        def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
            whole = inside(ranges, (shard, offset, num_bytes, etag)) or (shard, offset, num_bytes, etag)
            try:
                data = self._cache.read(source.store, *whole)
            except ObjectChangedError as error:
                raise ObjectChangedError(f"{dataset}: {error}") from error
            return data[offset - whole[1] : offset - whole[1] + num_bytes]

        return fetch

    def _load(self, row: dict) -> Example | str:
        """Return a row's sample, or why it is bad. Runs in a thread."""
        if reason := self._journal.reason(row):
            return reason
        tokens = self.plan.recipe.pack_tokens
        is_piece = not row["media"] and (row["token_start"] > 0 or row["num_tokens"] == tokens)
        try:
            if is_piece:
                with self._document_locks[row["line"] % len(self._document_locks)]:
                    made = self._document(row["dataset"], row["line"])
            else:
                made = self._made(row["dataset"], row["line"], draws_of_row(row), max_tokens=row["num_tokens"])
            return as_planned(made, row, name=self._key(row), pack_tokens=tokens)
        except (SampleError, ObjectNotFoundError) as error:
            return str(error)

    def _made(self, dataset: str, line: int, draws: Draws, *, max_tokens: int = 0) -> Example:
        source = self._source(dataset)
        fetch = self._fetch(dataset, line // source.manifest.chunk_lines)
        raw = read_line(source.manifest, line, fetch, tables=source.tables)
        return example(raw, draws, tokenizer=self._tokenizer, profile=self._profile, max_tokens=max_tokens)

    def _whole_document(self, dataset: str, line: int) -> Example:
        """Return all of a text that is split over packs, so that it is tokenized once for its pieces."""
        return self._made(dataset, line, Draws(crop=(0, 0, 1, 1), width=1, height=1))

    def _assembled(self, step: int, loaded: list[tuple[dict, Future[Example | str]]]) -> Batch:
        samples, column, pack = [], 0, None
        for row, future in loaded:
            found = future.result()
            found = self._journal.reason(row) or found
            if isinstance(found, str):
                self._journal.write(row, found)
            column = column if row["pack"] == pack else 0
            samples.append(self._placed(row, found, start=column))
            column, pack = column + row["num_tokens"], row["pack"]
        packs, tokens = self._packs(step), self.plan.recipe.pack_tokens
        return assembled(samples, packs, pack_tokens=tokens, pad=self._tokenizer.special["pad"])

    def _placed(self, row: dict, found: Example | str, *, start: int) -> PlacedSample:
        names = ("pack", "slot", "dataset", "line", "epoch", "num_tokens")
        provenance = Provenance(
            **{name: row[name] for name in names},
            key=self._key(row),
            start=start,
            masked=found if isinstance(found, str) else None,
        )
        return PlacedSample(provenance=provenance, example=None if isinstance(found, str) else found)

    def _key(self, row: dict) -> str:
        return self._source(row["dataset"]).manifest.line(row["line"]).key
