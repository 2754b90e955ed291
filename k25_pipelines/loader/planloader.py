"""Step to batch: a plan, a store and a rank in; batches out, and the few names from which to go on."""

import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Self

import numpy as np

from k25_pipelines.errors import PlanError
from k25_pipelines.loader.prefetch import Chunk, Prefetcher, Reader
from k25_pipelines.loader.rows import plain_column, row_dicts, tasks_of
from k25_pipelines.loader.samples import Loaded, SampleLoader
from k25_pipelines.loader.timing import StageClock
from k25_pipelines.plan.balance import contiguous_packs, pack_costs, rank_packs
from k25_pipelines.plan.recipe import bad_sample_budgets
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.planning import Plan, open_plan, tombstones
from k25_pipelines.sample.batch import Batch, PlacedSample, Provenance, assembled
from k25_pipelines.sample.example import Example
from k25_pipelines.sample.journal import Journal
from k25_pipelines.sample.token_cache import open_token_cache
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.cache import DISK_BYTES, RAM_BYTES, ChunkCache
from k25_pipelines.storage.store import Store

STEPS_AHEAD = 2
"""Steps that are decoded while one is trained on, at most."""
AHEAD_BYTES = 512 * 2**20
"""Arrays of the steps that are decoded ahead, at most [bytes]."""
FETCHED_BYTES = 2**30
"""Chunks on disk that were fetched before their steps, at most [bytes]."""
TOKEN_BYTES = 32
"""What a place of a pack takes in a batch's arrays, and until then [bytes]."""
LEAST_BUDGET, BUDGET_SHARE = 16, 100
"""Bad samples of a source that are let pass: this many, or one line in so many."""
THREADS = "k25-"
"""What the names of all threads begin with."""
WITHHELD = "withheld"
"""Why a sample is masked that was taken down after it was planned."""
STATE_FIELDS = ("run", "plan", "segment", "step")


@dataclass(frozen=True, kw_only=True, slots=True)
class _StepWork:
    """One step of this rank that is being loaded."""

    packs: list[int]
    rows: list[dict]
    patches: np.ndarray
    """[P, 3, patch, patch]: what is decoded goes straight to its place in the batch."""
    num_bytes: int
    tasks: list[Future[list[Loaded]]]
    """The samples of the rows, in order, some to a task."""


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
        ranks_per_node: int = 1,
        threads: int | None = None,
        cache: Path | None = None,
        ram_bytes: int = RAM_BYTES,
        disk_bytes: int = DISK_BYTES,
        ahead_bytes: int = AHEAD_BYTES,
        max_bad_samples: Mapping[str, int] | int | None = None,
        withheld: Collection[tuple[str, int]] | None = None,
        cached_tokens: bool = False,
        normalised: bool = True,
        timed: bool = False,
    ) -> None:
        """Open a plan.

        Args:
            plan: a plan or its id.
            store: the lake, in which plan, manifests and the run's journal stand.
            run: under which masked samples are journaled; None journals nothing.
            rank: this process's place in [0, num_ranks).
            num_ranks: processes that share a step.
            ranks_per_node: of them, neighbours that share a machine and deal its packs out by cost.
            threads: that decode; None is the number of cores.
            cache: folder that keeps chunks on disk; None keeps them in memory only.
            ram_bytes: chunks kept in memory [bytes].
            disk_bytes: chunks kept on disk [bytes].
            ahead_bytes: arrays of steps that are loaded ahead; the step asked for comes on top [bytes].
            max_bad_samples: of each source, or of any, before the run stops; where nothing is said, what the
                recipe says, else 16 or one line in a hundred, whichever is more.
            withheld: dataset and line of samples taken down since they were planned. None looks them up in the lake,
                now and where a segment begins; ranks that load the same packs are to agree, and give them.
            cached_tokens: read the token ids of texts from the lake where they are kept; the same batches.
            normalised: False leaves patches as uint8 levels, a quarter of the bytes to keep and to move, for
                `sample.patches.normalised` or the accelerator; digests are those of the normalised ones.
            timed: count where the time goes, for `timings`.
        """
        self.plan = open_plan(store, plan) if isinstance(plan, str) else plan
        self.run, self.rank, self.num_ranks, self.ranks_per_node = run, rank, num_ranks, ranks_per_node
        contiguous_packs(1, rank, num_ranks)  # refuses a rank out of range before any work
        tokenizer = load_tokenizer(self.plan.tokenizer, store)
        self._pad, self._profile = tokenizer.special["pad"], profile_named(self.plan.profile)
        self._withheld = tombstones(store) if withheld is None else frozenset(withheld)
        self._takedowns, self._heeded = (store if withheld is None else None), ""
        self._journal = Journal(store, run, is_shared=num_ranks > 1)
        self._max_bad_samples = max_bad_samples
        self._reader = Reader(
            store,
            self.plan.datasets,
            ChunkCache(cache, ram_bytes=ram_bytes, disk_bytes=disk_bytes),
            token_cache=lambda manifest: open_token_cache(store, manifest, tokenizer) if cached_tokens else None,
            whole_bytes=(ram_bytes if cache is None else disk_bytes) // 2 if num_ranks <= ranks_per_node else 0,
            prefix=f"{THREADS}fetch",
        )
        self._prefetcher = Prefetcher(
            self._reader,
            chunks_of_step=self._chunks,
            num_steps=self.plan.num_steps,
            limit=ram_bytes if cache is None else max(ram_bytes, min(disk_bytes // 2, FETCHED_BYTES)),
        )
        self._samples = SampleLoader(
            self._reader,
            tokenizer=tokenizer,
            profile=self._profile,
            max_image_tokens=self.plan.recipe.max_image_tokens,
            pack_tokens=self._pack_tokens,
            reason=self._known_reason,
        )
        self._ahead_bytes, self._pixels = ahead_bytes, np.dtype(np.float32 if normalised else np.uint8)
        self._pending: dict[int, _StepWork] = {}
        self._newest: tuple[int, list[int], Batch] | None = None
        self._next_step, self._expected, self._is_closed = 0, -1, False
        self._decoders = ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix=f"{THREADS}decode")
        self._clock = StageClock(prefix=THREADS, source_of_thread=self._samples.source_of_thread) if timed else None

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step; calls in ascending order are decoded ahead.

        Ranks that share a run are to ask for a step after all have got the one before.

        Raises:
            PlanError: the plan has no such step.
            StoreError: the store failed, retries included; the same call may be repeated.
            ObjectChangedError: an object is not the one that was indexed.
            BadSampleBudgetError: a source has more bad samples than it may have.
            ValueError: the loader is closed.
        """
        step = index(step)
        self._check(step)
        is_next, self._expected = step == self._expected, step
        ahead = STEPS_AHEAD if is_next or step == self._next_step else 0
        for late in [number for number in self._pending if not step <= number <= step + ahead]:
            for task in self._pending.pop(late).tasks:
                task.cancel()
        self._heed(step)
        self._follow(step)
        self._submit(step, is_first=not is_next)
        self._prefetcher.begin(step)
        for coming in range(step + 1, min(step + 1 + ahead, self.plan.num_steps)):
            self._submit(coming, room=self._ahead_bytes - self._bytes_pending(step))
        work = self._pending.pop(step)
        batch = self._assembled(step, work)
        self._newest, self._next_step, self._expected = (step, work.packs, batch), step + 1, step + 1
        return batch

    def pack_digests(self, step: int) -> list[tuple[int, int, str]]:
        """Return (step, pack, SHA-256) of each of this rank's packs; the newest batch is not built again."""
        if self._newest is None or self._newest[0] != step:
            self.batch(step)
        assert self._newest is not None
        _, packs, batch = self._newest
        return [(step, pack, hexadecimal) for pack, hexadecimal in zip(packs, batch.digests, strict=True)]

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

    def timings(self) -> dict[str, dict]:
        """Return thread seconds by stage (`stages`) and by source (`sources`), and what the cache counted (`cache`)."""
        if self._clock is None:
            raise ValueError("this loader does not count its time; open it with timed=True")
        counts = self._reader.statistics()
        return {"stages": self._clock.totals(), "sources": self._clock.by_source(), "cache": counts}

    def close(self) -> None:
        """End the threads; what was decoded ahead is dropped. Closing twice is fine."""
        self._is_closed = True
        self._reader.close()
        self._decoders.shutdown(cancel_futures=True)
        if self._clock is not None:
            self._clock.close()
        self._pending.clear()

    def __enter__(self) -> Self:
        """Return the loader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _check(self, step: int) -> None:
        if self._is_closed:
            raise ValueError(f"this loader of plan {self.plan.id} is closed; open another")
        if not 0 <= step < self.plan.num_steps:
            raise PlanError(
                f"plan {self.plan.id} has steps 0 to {self.plan.num_steps - 1}, not {step}; "
                "more: k25 plan RECIPE --steps N"
            )

    def _segment(self, step: int) -> str:
        """Return the digest of the segment read last before a step: it stays what it is when the plan is extended."""
        return self.plan.segment_of(max(0, step - 1)).digest

    def _own(self, step: int) -> tuple[list[int], np.ndarray]:
        """Return this rank's packs of a step and the places of their rows."""
        rows = self.plan.rows(step)
        pack = rows["pack"].to_numpy()
        if self.ranks_per_node == 1:
            own = np.array(contiguous_packs(int(pack[-1]) + 1, self.rank, self.num_ranks), dtype=np.int64)
        else:
            own = rank_packs(pack_costs(rows), self.rank, self.num_ranks, self.ranks_per_node)
        return own.tolist(), np.flatnonzero(np.isin(pack, own))

    def _chunks(self, step: int) -> list[Chunk]:
        """Return the chunks that this rank reads at a step, in the order of its rows."""
        rows, (_, places) = self.plan.rows(step), self._own(step)
        names, lines = plain_column(rows["dataset"])[places].tolist(), rows["line"].to_numpy()[places].tolist()
        return list(
            dict.fromkeys((name, self._reader.chunk_of(name, line)) for name, line in zip(names, lines, strict=True))
        )

    def _follow(self, step: int) -> None:
        """Learn what other ranks recorded, and stop where there is too much of it."""
        if self.run is not None and self.num_ranks > 1:
            rows, (_, places) = self.plan.rows(step), self._own(step)
            samples = list(zip(plain_column(rows["dataset"]).tolist(), rows["line"].to_pylist(), strict=True))
            self._journal.follow(step, all_samples=samples, own=[samples[place] for place in places])
        self._journal.check_budget(self._budget)

    def _submit(self, step: int, *, room: int | None = None, is_first: bool = False) -> None:
        """Begin to load a step; a coming one if there is room for its bytes."""
        if step in self._pending:
            return
        packs, places = self._own(step)
        rows = row_dicts(self.plan.rows(step), places)
        ends = np.cumsum([0, *(row["patches"] for row in rows)]).tolist()
        shape = (ends[-1], 3, self._profile.patch, self._profile.patch)
        num_bytes = self._pixels.itemsize * int(np.prod(shape)) + TOKEN_BYTES * len(packs) * self._pack_tokens(step)
        if room is not None and num_bytes > room:
            return
        if is_first:
            self._reader.read_early((row["dataset"], row["line"]) for row in rows)
        patches, tasks = np.empty(shape, dtype=self._pixels), []
        for task in tasks_of(rows):
            slices = [patches[ends[place] : ends[place + 1]] for place in task]
            tasks.append(self._decoders.submit(self._samples.load_all, rows[task.start : task.stop], slices))
        self._pending[step] = _StepWork(packs=packs, rows=rows, patches=patches, num_bytes=num_bytes, tasks=tasks)

    def _bytes_pending(self, step: int) -> int:
        return sum(work.num_bytes for number, work in self._pending.items() if number != step)

    def _heed(self, step: int) -> None:
        """Learn of takedowns since, at the first step of a segment that is asked for."""
        if self._takedowns is not None and (segment := self.plan.segment_of(step).digest) != self._heeded:
            self._withheld = tombstones(self._takedowns) if self._heeded else self._withheld
            self._heeded = segment

    def _known_reason(self, row: Mapping) -> str | None:
        if len(self._withheld) and (row["dataset"], row["line"]) in self._withheld:
            return WITHHELD
        return self._journal.reason(row)

    def _assembled(self, step: int, work: _StepWork) -> Batch:
        samples, column, pack = [], 0, None
        loaded = (found for task in work.tasks for found in task.result())
        for row, (key, found) in zip(work.rows, loaded, strict=True):
            known = self._known_reason(row)
            if known is None and isinstance(found, str):
                self._journal.write(row, found)
                self._journal.check_budget(self._budget)
            masked = known or (found if isinstance(found, str) else None)
            made = None if masked or isinstance(found, str) else found
            column = column if row["pack"] == pack else 0
            samples.append(_placed(row, key, made, start=column, masked=masked))
            column, pack = column + row["num_tokens"], row["pack"]
        pack_tokens = self._pack_tokens(step)
        return assembled(
            samples,
            work.packs,
            pack_tokens=pack_tokens,
            pad=self._pad,
            patches=work.patches,
            profile=self._profile.name,
        )

    def _pack_tokens(self, step: int) -> int:
        """Return T of a step; a fork may change it."""
        return self.plan.pack_tokens_at(step)

    def _budget(self, dataset: str) -> int:
        """Return how many samples of a source may be bad before the run stops."""
        given = self._max_bad_samples
        given = given.get(dataset) if isinstance(given, Mapping) else given
        if given is None:
            given = bad_sample_budgets(self.plan.recipe).get(dataset)
        if given is None:
            given = max(LEAST_BUDGET, self._reader.source(dataset).manifest.num_lines // BUDGET_SHARE)
        return given


def _placed(row: dict, key: str, made: Example | None, *, start: int, masked: str | None) -> PlacedSample:
    provenance = Provenance(
        pack=row["pack"],
        slot=row["slot"],
        dataset=row["dataset"],
        line=row["line"],
        key=key,
        epoch=row["epoch"],
        start=start,
        num_tokens=row["num_tokens"],
        masked=masked,
    )
    return PlacedSample(provenance=provenance, example=made)
