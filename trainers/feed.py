"""What a run trains on: a run file and its ranks in; batches out, step by step, and the log of those trained on.

At a boundary rank 0 reads the run's plan pointer, logs the segment it takes, and tells the others: a plan that is
amended while a run is going on is taken up exactly at its step. Collective: every rank makes the same calls.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from k25_pipelines.loader import Batch, PlanLoader, step_digest
from k25_pipelines.planning import Plan, open_plan, tombstones
from k25_pipelines.run_log import LOG_STEPS, log_steps, sample_digests
from k25_pipelines.runs import Stretch, start_run, take_stretch
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store
from trainers.checks import check_plan
from trainers.config import Run
from trainers.inputs import Inputs, inputs_of

RAM_BYTES = 2**30
"""Chunks kept in memory by a rank [bytes]: less is fetched and read again than with the loader's default."""


class Ranks(Protocol):
    """The group of processes that share the packs of a step: those of one pipeline are one of them."""

    @property
    def rank(self) -> int:
        """Return which of them this is."""
        ...

    @property
    def num_ranks(self) -> int:
        """Return how many they are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain value, in the order of the ranks."""
        ...


class Feed:
    """A run's batches on this rank."""

    def __init__(
        self, run: Run, store: Store, ranks: Ranks, *, ranks_per_node: int = 1, writes: bool | None = None
    ) -> None:
        """Start the run or find it, and stand before its step 0.

        Args:
            run: the run file.
            store: the lake.
            ranks: among whom packs are dealt out.
            ranks_per_node: of them, neighbours that share a machine.
            writes: whether this process writes pointer and log; None: the first of `ranks` does.

        Raises:
            RunError: the run was started on another plan.
            ValueError: a plan does not fit the config.
        """
        self._run, self._store, self._ranks = run, store, ranks
        self._ranks_per_node = ranks_per_node
        self._writes = ranks.rank == 0 if writes is None else writes
        self._log: list[dict] = []
        self._held: _Loaded | None = None
        self._coming: dict[int, Future[_Loaded]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="k25-feed")
        self.reads: list[Stretch] = []
        """What was taken, in order; the last one may reach beyond the steps that are done."""
        if self._writes:
            start_run(store, run.run, run.config.plan, steps=run.config.steps, stage=run.config.stage)
        self._loader = self._opened(run.config.plan)

    @property
    def plan(self) -> Plan:
        """The plan that was read last."""
        return self._loader.plan

    @property
    def inputs(self) -> Inputs:
        """The tensors of the batch that was given last, made by the same thread."""
        assert self._held is not None, "tensors are asked for after a batch"
        return self._held.inputs

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step, and have a thread begin with the next one.

        Raises:
            ValueError: the plan that is followed now ends before the run does, or needs another model.
        """
        if not self.reads or step >= self.reads[-1].end_step:
            self._take(step)
        coming = self._coming.pop(step, None) or self._thread.submit(_loaded, self._loader, step, self._pad)
        self._held = coming.result()
        if step + 1 < min(self.reads[-1].end_step, self._run.stop_at or self._run.config.steps):
            if self._ranks.num_ranks > 1:
                self._ranks.gather(None)  # the loader wants all to have a step before one asks for the next
            self._coming[step + 1] = self._thread.submit(_loaded, self._loader, step + 1, self._pad)
        return self._held.batch

    def trained(self, step: int, batch: Batch) -> str:
        """Log a step that was trained on, the one whose batch was given last, and return its digest."""
        held = self._held
        assert held is not None, "a step is logged after its batch was given"
        assert held.step == step, "a step is logged before the next is asked for"
        assert held.batch is batch, "a step is logged with the batch that was given"
        parts = self._ranks.gather(held.facts)
        packs = [sha256 for _, sha256 in sorted(pair for part in parts for pair in part["packs"])]
        samples = sorted((pair for part in parts for pair in part["samples"]), key=lambda pair: pair[0])
        masked = [each for part in parts for each in part["masked"]]
        row = {
            "step": step,
            "plan": self.reads[-1].plan,
            "segment": self.reads[-1].segment,
            "digest": step_digest(packs),
            "packs": packs,
            "samples": [digest for _, digest in samples],
            "masked": sorted(masked, key=lambda each: (each["pack"], each["slot"])),
        }
        self._log.append(row)
        if len(self._log) >= LOG_STEPS:
            self.write_log()
        return row["digest"]

    def write_log(self) -> None:
        """Write the steps logged so far to the lake: before a checkpoint's record, which claims them.

        Raises:
            RunError: a step that was done again is not what it was.
        """
        if self._writes:
            log_steps(self._store, self._run.run, self._log)
        self._log = []

    def state_dict(self) -> dict:
        """Return what to resume from: run, plan, segment, and the step that comes next."""
        return self._held.state if self._held else self._loader.state_dict()

    def resume(self, record: Mapping[str, Any]) -> None:
        """Go on after a checkpoint's steps, by its record."""
        self.reads = stretches_of(record["reads"])
        if record["step"] < self._run.config.steps:
            self._open(record["loader"]["plan"])
            self._loader.load_state_dict(record["loader"])

    def begin_at(self, step: int) -> None:
        """Go on after another run's steps: those of this run's plan before `step` are the same."""
        segment = self.plan.segment_of(max(0, step - 1)).digest
        self._loader.load_state_dict({**self._loader.state_dict(), "segment": segment, "step": step})

    def close(self) -> None:
        """Stop the threads; what was not written of the log is of steps that will be done again."""
        self._loader.close()  # first: what is coming then comes to nothing
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        """Return the feed."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write the log where all went well, and close."""
        try:
            if error is None:
                self.write_log()
        finally:
            self.close()

    def _take(self, step: int) -> None:
        own = asdict(take_stretch(self._store, self._run.run, step)) if self._writes else None
        taken = Stretch(**self._ranks.gather(own)[0])
        self._open(taken.plan)
        self.reads.append(taken)

    def _open(self, plan: str) -> None:
        if plan != self.plan.id:
            self._drop_coming()
            self._loader.close()
            self._loader = self._opened(plan)

    def _drop_coming(self) -> None:
        """Let no thread be at work on the loader."""
        wait(self._coming.values())
        self._coming.clear()

    def _opened(self, plan: str) -> PlanLoader:
        """Return the loader of a plan; what is withheld is what the writer finds, for all ranks alike."""
        run, ranks, opened = self._run, self._ranks, open_plan(self._store, plan)
        tokenizer = load_tokenizer(opened.tokenizer, self._store)
        check_plan(run.config, opened, num_tokens=tokenizer.num_tokens)
        self._pad = tokenizer.special["pad"]
        withheld = ranks.gather(tombstones(self._store) if self._writes else None)[0]
        return PlanLoader(
            opened,
            self._store,
            run=run.run,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
            ranks_per_node=self._ranks_per_node,
            threads=run.threads,
            cache=Path(run.work) / "cache",
            ram_bytes=RAM_BYTES,
            withheld=withheld,
            cached_tokens=True,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """A step's batch, and what is said of it."""

    step: int
    batch: Batch
    inputs: Inputs
    facts: dict[str, Any]
    """Digests of packs and samples, and what was masked."""
    state: dict
    """The loader's, once it has given the batch."""


def _loaded(loader: PlanLoader, step: int, pad: int) -> _Loaded:
    batch = loader.batch(step)
    facts = {
        "packs": [(pack, sha256) for _, pack, sha256 in loader.pack_digests(step)],
        "samples": list(zip([place.pack for place in batch.provenance], sample_digests(batch), strict=True)),
        "masked": [
            {"pack": place.pack, "slot": place.slot, "reason": place.masked}
            for place in batch.provenance
            if place.masked is not None
        ],
    }
    inputs = inputs_of(batch, pad)
    return _Loaded(step=step, batch=batch, inputs=inputs, facts=facts, state=loader.state_dict())


def reads_until(reads: list[Stretch], step: int) -> list[dict[str, Any]]:
    """Return what was read before a step, as plain data: each plan with its steps, and its segments with theirs.

    Where the boundaries lay does not show: neighbours of one segment are joined.
    """
    plans: list[dict[str, Any]] = []
    for taken in reads:
        first, end = taken.first_step, min(taken.end_step, step)
        if first >= end:
            continue
        if not plans or plans[-1]["plan"] != taken.plan:
            plans.append({"plan": taken.plan, "steps": [first, end], "segments": []})
        last = plans[-1]
        last["steps"][1] = end
        if last["segments"] and last["segments"][-1]["digest"] == taken.segment:
            last["segments"][-1]["steps"][1] = end
        else:
            last["segments"].append({"digest": taken.segment, "steps": [first, end]})
    return plans


def stretches_of(plans: list[Mapping[str, Any]]) -> list[Stretch]:
    """Return the stretches that `reads_until` told of."""
    return [
        Stretch(
            plan=plan["plan"],
            segment=segment["digest"],
            first_step=segment["steps"][0],
            num_steps=segment["steps"][1] - segment["steps"][0],
        )
        for plan in plans
        for segment in plan["segments"]
    ]
