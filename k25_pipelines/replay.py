"""Rebuild what a run was fed, from the store, and compare it with the digests that were logged when it was trained on.

A replay leaves no trace: what it would write, such as a newly unreadable sample in the run's journal, stays with it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k25_pipelines.catalog.manifest import Manifest, read_manifest
from k25_pipelines.errors import ObjectChangedError, ObjectNotFoundError
from k25_pipelines.loader import Batch, PlanLoader, Provenance
from k25_pipelines.planning import Plan, open_plan, tombstones
from k25_pipelines.run_log import consumed, sample_digests
from k25_pipelines.runs import read_pointer
from k25_pipelines.sample.journal import Journal
from k25_pipelines.storage.store import ObjectInfo, Store, open_store

Sample = tuple[str, int]
"""Dataset and line."""

OVERWRITTEN = "its object was overwritten since"
ANY_NUMBER = 2**62
"""A replay tells of bad samples, however many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A sample, or what of a pack belongs to none, that is not what the run was fed."""

    pack: int
    sample: str | None
    """`dataset:line`; None: the samples agree and what lies between them does not."""
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReplay:
    """One step, rebuilt and compared."""

    step: int
    plan: str
    num_packs: int
    num_samples: int
    num_masked: int
    """Samples that were masked when the step was trained on, and are again."""
    differences: tuple[Difference, ...]
    withheld: tuple[str, ...]
    """Samples that may not be read any more; the rest of their packs is compared."""

    @property
    def agrees(self) -> bool:
        """Whether all that may be read is what it was."""
        return not self.differences


def replay(
    lake: Store,
    run: str,
    steps: range,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    withheld: Collection[Sample] | None = None,
) -> Iterator[StepReplay]:
    """Yield each step of a run as it comes out now, compared with the log.

    Args:
        lake: where plans, manifests and runs are.
        run: its name.
        steps: which; each must be in the run's log.
        threads: that decode; None is the number of cores.
        cache: folder of chunks that were fetched before; None reads all from the store.
        withheld: samples that are not read, their spans stay empty; None: those that the lake says are forgotten.

    Raises:
        RunError: there is no such run, or a step is not in its log.
        StoreError: the store failed.
    """
    read_pointer(lake, run)  # an unknown run is told with the nearest name
    log = consumed(lake, run, steps=steps).to_pylist()
    spared = frozenset(tombstones(lake) if withheld is None else withheld)
    for plan_id in dict.fromkeys(row["plan"] for row in log):
        plan, shadow = open_plan(lake, plan_id), _Shadow(lake)
        mine = [row for row in log if row["plan"] == plan_id]
        _mask_known(shadow, run, plan, mine)
        rebuild = _Rebuild(plan, shadow, run, threads=threads, cache=cache, withheld=spared)
        try:
            for row in mine:
                yield _compared(row, rebuild.batch(row["step"]), rebuild.changed, spared)
        finally:
            rebuild.close()


class _Shadow:
    """The lake as a replay sees it: what is written stays here and hides what stands in the lake."""

    def __init__(self, lake: Store) -> None:
        self._lake, self._own = lake, dict[str, bytes]()

    @property
    def url(self) -> str:
        return self._lake.url

    def get(self, key: str) -> bytes:
        return self._own[key] if key in self._own else self._lake.get(key)

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        return self._lake.get_range(key, offset, num_bytes, etag=etag)

    def head(self, key: str) -> ObjectInfo:
        return self._lake.head(key)

    def put(self, key: str, data: bytes) -> None:
        self._own[key] = data

    put_new = put

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        own = {key: ObjectInfo(key=key, num_bytes=len(data), etag="") for key, data in self._own.items()}
        found = {info.key: info for info in self._lake.list(prefix)} | own
        return iter([found[key] for key in sorted(found) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        self._own.pop(key, None)


class _Rebuild:
    """Batches of a plan as a run saw them; a sample whose object was overwritten is left out and named."""

    def __init__(self, plan: Plan, shadow: _Shadow, run: str, **options: Any) -> None:
        self.plan, self.shadow, self.run = plan, shadow, run
        self.changed: set[Sample] = set()
        self._open = lambda: PlanLoader(plan, shadow, run=run, max_bad_samples=ANY_NUMBER, **options)
        self._loader = self._open()

    def batch(self, step: int) -> Batch:
        try:
            return self._loader.batch(step)
        except ObjectChangedError:
            rows = self.plan.rows(step).to_pylist()
            found = _overwritten(self.shadow, self.plan, rows) - self.changed
            if not found:
                raise
        self.changed |= found
        journal = Journal(self.shadow, self.run)
        for row in rows:
            if (row["dataset"], row["line"]) in found:
                journal.write(row, OVERWRITTEN)
        self._loader.close()
        self._loader = self._open()
        return self.batch(step)

    def close(self) -> None:
        self._loader.close()


def _mask_known(shadow: _Shadow, run: str, plan: Plan, log: Sequence[Mapping[str, Any]]) -> None:
    """Write what was masked into the run's journal as the replay sees it."""
    journal = Journal(shadow, run)
    for entry in log:
        masked = {(each["pack"], each["slot"]): each["reason"] for each in entry["masked"]}
        for row in plan.rows(entry["step"]).to_pylist() if masked else ():
            if reason := masked.get((row["pack"], row["slot"])):
                journal.write(row, reason)


def _overwritten(lake: Store, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> set[Sample]:
    """Return the samples whose objects are other ones than when they were indexed."""
    manifests: dict[str, Manifest] = {}
    etags: dict[tuple[str, str], str | None] = {}
    found = set()
    for row in rows:
        name = row["dataset"]
        if name not in manifests:
            manifests[name] = read_manifest(lake, name, plan.datasets[name])
        for part in manifests[name].line(row["line"]).parts:
            if (place := (name, part.shard)) not in etags:
                etags[place] = _etag(open_store(manifests[name].uri), part.shard)
            if etags[place] not in (None, part.etag):
                found.add((name, row["line"]))
    return found


def _etag(store: Store, key: str) -> str | None:
    try:
        return store.head(key).etag
    except ObjectNotFoundError:  # the loader masks its samples, and says so
        return None


def _compared(
    row: Mapping[str, Any], batch: Batch, changed: Collection[Sample], withheld: Collection[Sample]
) -> StepReplay:
    """Compare a step with its row of the log, pack by pack, and where a pack differs, sample by sample."""
    masked = {(each["pack"], each["slot"]) for each in row["masked"]}
    spared = [_name(place) for place in batch.provenance if (place.dataset, place.line) in withheld]
    places = dict[int, list[tuple[Provenance, str, str]]]()
    for place, now, then in zip(batch.provenance, sample_digests(batch), row["samples"], strict=True):
        places.setdefault(place.pack, []).append((place, now, then))
    differences = list[Difference]()
    for pack, (now, then) in enumerate(zip(batch.digests, row["packs"], strict=True)):
        if now != then:
            differing = [place for place, new, old in places[pack] if new != old]
            differences += [
                Difference(pack=pack, sample=_name(place), why=_why(place, changed, masked))
                for place in differing
                if (place.dataset, place.line) not in withheld
            ]
            if not differing:
                differences.append(Difference(pack=pack, sample=None, why="its samples agree, their places do not"))
    return StepReplay(
        step=row["step"],
        plan=row["plan"],
        num_packs=len(row["packs"]),
        num_samples=len(batch.provenance),
        num_masked=len(masked),
        differences=tuple(differences),
        withheld=tuple(spared),
    )


def _why(place: Provenance, changed: Collection[Sample], masked: Collection[tuple[int, int]]) -> str:
    if (place.dataset, place.line) in changed:
        return OVERWRITTEN
    if (place.pack, place.slot) in masked:
        return "it was masked then and is not now"
    return f"it cannot be read now: {place.masked}" if place.masked else "it has other bytes now"


def _name(place: Provenance) -> str:
    return f"{place.dataset}:{place.line}"


def as_plain(replayed: StepReplay) -> dict[str, Any]:
    """Return a step's comparison as JSON-like data."""
    names = ("step", "plan", "num_packs", "num_samples", "num_masked")
    differences = [{"pack": each.pack, "sample": each.sample, "why": each.why} for each in replayed.differences]
    plain = {name: getattr(replayed, name) for name in names}
    return {**plain, "agrees": replayed.agrees, "differences": differences, "withheld": list(replayed.withheld)}
