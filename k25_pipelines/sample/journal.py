"""The bad samples of a run: written once in the lake when a sample is first masked, and masked from then on.

A resumed or replayed run masks the same spans although the object may have healed in between. What
ranks that train together see is the same too: a record is written before its step is trained on, and
`follow` reads the records of others before a sample comes that any rank may have met since.
What is left to chance: a sample that stands twice in one step, on two ranks, and heals between the two.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from k25_pipelines.errors import BadSampleBudgetError, ObjectExistsError
from k25_pipelines.storage.store import Store, checked_key

SAMPLES_REMEMBERED = 2**18
"""Samples seen since the records were last read, after which they are read anyway."""
SAMPLES_NAMED = 20
"""Bad samples that an error lists; all stand in the lake."""


class Journal:
    """What a run knows of its bad samples; a run of None keeps them in memory."""

    def __init__(self, store: Store, run: str | None, *, is_shared: bool = False) -> None:
        """Read what stands in the lake of earlier attempts of the run.

        Args:
            store: the lake.
            run: whose records these are.
            is_shared: other ranks write to it as well.

        Raises:
            StoreError: the run's name cannot be part of a key.
        """
        self.store, self.run = store, run
        self.records: dict[tuple[str, int], dict] = {}
        self._read: set[tuple[str, str]] = set()
        self._seen: set[tuple[str, int]] = set()
        self._is_shared = is_shared and run is not None
        self._next_step: int | None = None
        if run is not None:
            checked_key(f"{self._folder}x")  # now, and not when the first sample is bad
            self.refresh()

    def refresh(self) -> None:
        """Read the records that are new in the lake."""
        self._seen.clear()
        if self.run is None:
            return
        for found in self.store.list(self._folder):
            if (found.key, found.etag) not in self._read:
                self._keep(json.loads(self.store.get(found.key)))
                self._read.add((found.key, found.etag))

    def follow(self, step: int, *, all_samples: Iterable[tuple[str, int]], own: Iterable[tuple[str, int]]) -> None:
        """Make sure, as a step begins, that what other ranks recorded before it of this rank's samples is known.

        The lake is asked only if one of them stood in a step since it was asked last, on any rank, or if steps
        were left out; the ranks are taken to begin a step after all have ended the one before.

        Args:
            step: which begins.
            all_samples: dataset and line of every sample of the step, over all ranks.
            own: those of this rank.
        """
        if not self._is_shared:
            return
        is_next = step == self._next_step
        self._next_step = step + 1
        if not is_next or len(self._seen) > SAMPLES_REMEMBERED or not self._seen.isdisjoint(own):
            self.refresh()
        self._seen.update(all_samples)

    def reason(self, row: Mapping) -> str | None:
        """Return why a plan row is masked, if it was recorded at its step or before."""
        if not self.records:
            return None
        record = self.records.get((row["dataset"], row["line"]))
        return record["reason"] if record and record["step"] <= row["step"] else None

    def write(self, row: Mapping, reason: str) -> None:
        """Record a plan row's sample as bad from its step on, unless it already is."""
        if self.reason(row):
            return
        record = {name: row[name] for name in ("dataset", "line", "epoch", "step", "pack")} | {"reason": reason}
        if self.run is not None:
            record = self._written(record)
        self._keep(record)

    def check_budget(self, budget: Callable[[str], int]) -> None:
        """Compare the number of bad samples of each source with what it may have.

        Raises:
            BadSampleBudgetError: a source has more; its bad samples are listed.
        """
        if not self.records:
            return
        counts = Counter(dataset for dataset, _ in self.records)
        for dataset, count in sorted(counts.items()):
            if count <= (allowed := budget(dataset)):
                continue
            named = [
                f"{dataset}:{line} ({record['reason']})"
                for (other, line), record in sorted(self.records.items())
                if other == dataset
            ]
            more = f", and {count - SAMPLES_NAMED} more" if count > SAMPLES_NAMED else ""
            where = f" (all in {self.store.url}/{self._folder})" if self.run is not None else ""
            raise BadSampleBudgetError(
                f"{dataset} has {count} bad samples, its budget is {allowed}: {'; '.join(named[:SAMPLES_NAMED])}"
                f"{more}{where}; mend the source, take it out by a fork, or raise max_bad_samples"
            )

    @property
    def _folder(self) -> str:
        return f"k25/runs/{self.run}/bad_samples/"

    def _written(self, record: dict) -> dict:
        key = f"{self._folder}{record['dataset']}-{record['line']}.json"
        data = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()
        try:
            self.store.put_new(key, data)
            return record
        except ObjectExistsError:  # another rank met the sample
            other = json.loads(self.store.get(key))
        if other["step"] <= record["step"]:
            return other
        self.store.put(key, data)
        return record

    def _keep(self, record: dict) -> None:
        known = self.records.get((record["dataset"], record["line"]))
        if known is None or record["step"] <= known["step"]:
            self.records[record["dataset"], record["line"]] = record
