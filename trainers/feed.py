"""What a run trains on: a run file and its ranks in; batches out, step by step, and the log of those trained on.

At a boundary rank 0 reads the run's plan pointer, logs the segment it takes, and tells the others: a plan that is
amended while a run is going on is taken up exactly at its step. Collective: every rank makes the same calls.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from k25_pipelines.errors import K25Error
from k25_pipelines.loader import Batch, PlanLoader, step_digest
from k25_pipelines.planning import Plan
from k25_pipelines.run_log import LOG_STEPS, log_steps, sample_digests
from k25_pipelines.runs import Stretch, start_run, take_stretch
from k25_pipelines.storage.store import Store
from trainers.config import Run


class Ranks(Protocol):
    """The group of processes that share the steps; `engine.Engine` is one."""

    rank: int
    num_ranks: int

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain value, in the order of the ranks."""
        ...


class Feed:
    """A run's batches on this rank."""

    def __init__(self, run: Run, store: Store, ranks: Ranks) -> None:
        """Start the run or find it, and stand before its step 0.

        Raises:
            RunError: the run was started on another plan.
        """
        self._run, self._store, self._ranks = run, store, ranks
        self._log: list[dict] = []
        self.reads: list[Stretch] = []
        """What was taken, in order; the last one may reach beyond the steps that are done."""
        if ranks.rank == 0:
            start_run(store, run.run, run.config.plan, steps=run.config.steps, stage=run.config.stage)
        self._loader = self._opened(run.config.plan)

    @property
    def plan(self) -> Plan:
        """The plan that was read last."""
        return self._loader.plan

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step.

        Raises:
            K25Error: the plan ends before the run does.
        """
        if not self.reads or step >= self.reads[-1].end_step:
            self._take(step)
        return self._loader.batch(step)

    def trained(self, step: int, batch: Batch) -> str:
        """Log a step that was trained on, and return its digest."""
        own = {
            "packs": [(pack, sha256) for _, pack, sha256 in self._loader.pack_digests(step)],
            "samples": list(zip([place.pack for place in batch.provenance], sample_digests(batch), strict=True)),
            "masked": [
                {"pack": place.pack, "slot": place.slot, "reason": place.masked}
                for place in batch.provenance
                if place.masked is not None
            ],
        }
        parts = self._ranks.gather(own)
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
        if self._ranks.rank == 0:
            log_steps(self._store, self._run.run, self._log)
        self._log = []

    def state_dict(self) -> dict:
        """Return what to resume from: run, plan, segment, and the step that comes next."""
        return self._loader.state_dict()

    def resume(self, record: Mapping[str, Any]) -> None:
        """Go on after a checkpoint's steps, by its record."""
        self.reads = stretches_of(record["reads"])
        if record["step"] < self._run.config.steps:
            self._open(record["loader"]["plan"])
            self._loader.load_state_dict(record["loader"])

    def close(self) -> None:
        """Stop the threads; what was not written of the log is of steps that will be done again."""
        self._loader.close()

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
        own = asdict(take_stretch(self._store, self._run.run, step)) if self._ranks.rank == 0 else None
        taken = Stretch(**self._ranks.gather(own)[0])
        self._open(taken.plan)
        steps = self._run.config.steps
        if steps > self.plan.num_steps:
            raise K25Error(f"plan {self.plan.id} has {self.plan.num_steps} steps, the config {steps}; extend it")
        self.reads.append(taken)

    def _open(self, plan: str) -> None:
        if plan != self.plan.id:
            self._loader.close()
            self._loader = self._opened(plan)

    def _opened(self, plan: str) -> PlanLoader:
        run, ranks = self._run, self._ranks
        return PlanLoader(
            plan,
            self._store,
            run=run.run,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
            threads=run.threads,
            cache=Path(run.work) / "cache",
        )


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
