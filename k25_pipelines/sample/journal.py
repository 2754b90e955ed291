"""The bad samples of a run: written once in the lake when a sample is first masked, and masked from then on.

A resumed or replayed run masks the same spans although the object may have healed in between.
"""

import json
from collections.abc import Mapping

from k25_pipelines.errors import ObjectExistsError
from k25_pipelines.storage.store import Store, checked_key


class Journal:
    """What a run knows of its bad samples; a run of None keeps them in memory."""

    def __init__(self, store: Store, run: str | None) -> None:
        """Read what stands in the lake of earlier attempts of the run.

        Raises:
            StoreError: the run's name cannot be part of a key.
        """
        self.store, self.run = store, run
        self.records: dict[tuple[str, int], dict] = {}
        if run is not None:
            checked_key(f"k25/runs/{run}/bad_samples")  # now, and not when the first sample is bad
            for found in store.list(f"k25/runs/{run}/bad_samples/"):
                self._keep(json.loads(store.get(found.key)))

    def reason(self, row: Mapping) -> str | None:
        """Return why a plan row is masked, if it was recorded at its step or before."""
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

    def _written(self, record: dict) -> dict:
        key = f"k25/runs/{self.run}/bad_samples/{record['dataset']}-{record['line']}.json"
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
        self.records[record["dataset"], record["line"]] = record
