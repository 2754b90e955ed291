"""What a trainer says while it works: metrics lines to a file, a progress line to the terminal, messages to Dagster.

The only door to Pipes: a trainer that Dagster started says there what it would say on a terminal.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trainers.spikes import named
from trainers.tracking import Tracker, figures, open_trackers

SPIKES = "spikes.jsonl"
LINES_PER_RUN = 10
"""Progress lines in a log that is no terminal, and in Dagster's."""
MESSAGES_PER_RUN = 200
"""Custom messages to Dagster: each step of a short run."""


class Report:
    """Says what one rank has to say: rank 0 everything, the others nothing."""

    def __init__(self, pipes: Any, *, file: Path | None, num_steps: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open the report.

        Args:
            pipes: Dagster's context, or None.
            file: metrics are appended here, a JSON line a step; None says nothing at all.
            num_steps: of the whole run.
            trackers: who else is told the figures of each step.
        """
        self._pipes, self._file, self._num_steps, self._trackers = pipes, file, num_steps, trackers
        quiet = file is None or not sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, unit="step", dynamic_ncols=True, disable=quiet, file=sys.stderr)

    def resume(self, history: list[dict], spikes: Sequence[Mapping] = ()) -> None:
        """Begin the files of metrics and spikes with those of the steps that are done."""
        if self._file is not None:
            self._file.write_text("".join(f"{json.dumps(line)}\n" for line in history))
            (self._file.parent / SPIKES).write_text("".join(f"{json.dumps(line)}\n" for line in spikes))
            self._bar.update(len(history) - self._bar.n)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Report one step; `metrics` holds `step`, `loss`, `tokens` and whatever else is known."""
        if self._file is None:
            return
        with self._file.open("a") as file:
            file.write(f"{json.dumps(metrics)}\n")
        for tracker in self._trackers:
            if trouble := tracker.log(metrics["step"], figures(metrics)):
                self.say(trouble)
        number = metrics["step"] + 1
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
        self._bar.update()
        if self._pipes and self._is_due(number, MESSAGES_PER_RUN):
            self._pipes.report_custom_message(dict(metrics))
        if self._is_due(number, LINES_PER_RUN):
            self.say(f"step {number}/{self._num_steps}, loss {metrics['loss']:.4f}, tokens {metrics['tokens']}")

    def say(self, line: str) -> None:
        """Say one line of plain words."""
        if self._file is None:
            return
        if self._pipes:
            self._pipes.log.info(line)
        if self._bar.disable:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def spike(self, spike: Mapping[str, Any], *, out: str) -> None:
        """Report a step whose loss stands out, a line in spikes.jsonl, and the commands that lead out of it."""
        if self._file is None:
            return
        with (self._file.parent / SPIKES).open("a") as file:
            file.write(f"{json.dumps(spike)}\n")
        self.say(
            f"loss spike at step {spike['step']}: {spike['loss']:.4f}, where the median is {spike['median']:.4f} and "
            f"the limit {spike['limit']:.4f}; most lost {named(spike['samples'])}; to train without one: {out}"
        )

    def close(self) -> None:
        """End the progress line."""
        self._bar.close()
        for tracker in self._trackers:
            if trouble := tracker.close():
                self.say(trouble)

    def _is_due(self, number: int, times: int) -> bool:
        every = max(1, self._num_steps // times)
        return number % every == 0 or number in (1, self._num_steps)


@contextmanager
def open_report(work: Path, *, rank: int, num_steps: int, run: str = "", tensorboard: bool = False) -> Iterator[Report]:
    """Yield the report of this rank; its files, `metrics.jsonl` and `spikes.jsonl`, lie in `work`."""
    with _pipes(rank) as pipes:
        trackers = open_trackers(work, run=run, tensorboard=tensorboard) if rank == 0 and run else ()
        file = work / "metrics.jsonl" if rank == 0 else None
        report = Report(pipes, file=file, num_steps=num_steps, trackers=trackers)
        try:
            yield report
        finally:
            report.close()


def _pipes(rank: int) -> AbstractContextManager[Any]:
    if rank != 0 or "DAGSTER_PIPES_CONTEXT" not in os.environ:
        return nullcontext()
    from dagster_pipes import open_dagster_pipes

    return open_dagster_pipes()
