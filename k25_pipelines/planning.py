"""Manifests and a recipe -> the segments of a plan in the lake, and back: all the I/O of `plan`."""

import io
import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, PlanError, RecipeError
from k25_pipelines.plan.planner import first_start, plan_segments
from k25_pipelines.plan.recipe import Recipe, parse_recipe, recipe_dict, source_names
from k25_pipelines.plan.segment import PLAN_VERSION, SCHEMA, Segment, plan_id, segment_digest, table_digest
from k25_pipelines.plan.source import SourceTable
from k25_pipelines.plan.summary import plan_summary
from k25_pipelines.sample.lengths import text_lengths
from k25_pipelines.sample.tokens import Tokenizer, load_tokenizer, publish_tokenizer
from k25_pipelines.storage.store import Store

PLANS = "k25/plans/"
SEGMENTS_IN_MEMORY = 3

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentInfo:
    """One segment as the index shows it."""

    digest: str
    first_step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A plan in the lake, as far as it was planned when it was opened. Safe to share between threads."""

    id: str
    recipe: Recipe
    """With `steps` as far as the plan goes."""
    datasets: Mapping[str, str]
    """Manifest digest of each dataset."""
    tokenizer: str
    """Digest of the tokenizer."""
    profile: str
    segments: tuple[SegmentInfo, ...]
    store: Store
    _tables: dict[int, pa.Table] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def num_steps(self) -> int:
        """Steps planned so far."""
        return self.recipe.steps

    def segment_of(self, step: int) -> SegmentInfo:
        """Return the segment that holds a step. Raises PlanError."""
        return self.segments[self._number(step)]

    def rows(self, step: int) -> pa.Table:
        """Return the rows of one step, a sample each, sorted by pack and slot (`plan.segment.SCHEMA`).

        Raises:
            PlanError: the plan has no such step, or the segment's object holds other rows than its name says.
        """
        number = self._number(step)
        table = self._table(number)
        steps = table["step"].to_numpy()
        first, end = np.searchsorted(steps, [step, step + 1]).tolist()
        return table.slice(first, end - first)

    def summary(self) -> dict[str, Any]:
        """Return what the plan amounts to: counts, fill, vision share and its spread, epochs of each source."""
        segments = (
            (_read_header(self.store, self.id, number, info), self._table(number))
            for number, info in enumerate(self.segments)
        )
        return plan_summary(segments, num_steps=self.num_steps, pack_tokens=self.recipe.pack_tokens)

    def _number(self, step: int) -> int:
        if not 0 <= step < self.num_steps:
            raise PlanError(f"plan {self.id} has steps 0 to {self.num_steps - 1}, not {step}; extend it")
        return bisect_right([info.first_step for info in self.segments], step) - 1

    def _table(self, number: int) -> pa.Table:
        with self._lock:
            if number not in self._tables:
                while len(self._tables) >= SEGMENTS_IN_MEMORY:
                    del self._tables[next(iter(self._tables))]
                self._tables[number] = _read_table(self.store, self.id, number, self.segments[number])
            return self._tables[number]


def read_recipe(source: str | Path) -> Recipe:
    """Return the recipe in a YAML file, or in YAML text (a string of several lines).

    Raises:
        RecipeError: no such file, no YAML, or not a recipe.
    """
    text = str(source)
    if isinstance(source, Path) or "\n" not in source:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"recipe {source}: {error.strerror}; give the path of a YAML file") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {source}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        return parse_recipe(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe is not YAML: {' '.join(str(error).split())}") from error


def make_plan(
    lake: Store,
    recipe: Recipe,
    *,
    steps: int | None = None,
    datasets: Mapping[str, str] | None = None,
    segment_steps: int | None = None,
    progress: Progress | None = None,
) -> str:
    """Plan a recipe up to a step, write the segments that are missing, and return the plan's id.

    The same recipe over the same dataset versions is the same plan: what exists is kept, more
    steps extend it, and a planner that was killed is simply started again.

    Args:
        lake: where manifests are and the plan goes.
        recipe: what to plan.
        steps: how far; the recipe's by default [steps].
        datasets: manifest digest of each dataset; the newest by default.
        segment_steps: length of new segments; changes no pack [steps].
        progress: told steps done, steps in all, and what.

    Raises:
        RecipeError: the recipe cannot be met by its sources.
        DatasetError: it names an unknown dataset.
        PlanError: the lake holds a segment that this planner would have made otherwise.
    """
    steps = recipe.steps if steps is None else steps
    tokenizer = load_tokenizer(recipe.tokenizer, lake)
    publish_tokenizer(lake, tokenizer)
    manifests = {name: load_manifest(lake, name, (datasets or {}).get(name)) for name in source_names(recipe)}
    sources = [source_table(lake, manifest, tokenizer, recipe, progress=progress) for manifest in manifests.values()]
    start = first_start(sources, recipe, tokenizer=tokenizer.digest)
    plan = plan_id(start)
    _write_plan(lake, plan, recipe, manifests, tokenizer)
    known = _index(lake, plan)
    if known and known[-1].first_step + known[-1].num_steps >= steps:
        return plan
    resume = _read_header(lake, plan, len(known) - 1, known[-1]) if known else None
    segments = plan_segments(
        sources, recipe, tokenizer=tokenizer.digest, steps=steps, segment_steps=segment_steps, resume=resume
    )
    for number, segment in enumerate(segments, start=max(0, len(known) - 1)):
        if number < len(known) and segment.digest != known[number].digest:
            raise PlanError(f"plan {plan}: segment {number} would be made otherwise now; plan under another name")
        _write_segment(lake, plan, number, segment)
        if progress:
            progress(segment.first_step + segment.num_steps, steps, f"planning {recipe.name}")
    return plan


def extend_plan(lake: Store, plan: str, steps: int, *, progress: Progress | None = None) -> str:
    """Plan more steps of an existing plan, over the dataset versions it was made from, and return its id.

    Raises:
        PlanError: the recipe's tokenizer or the planner is another one by now.
    """
    opened = open_plan(lake, plan)
    if load_tokenizer(opened.recipe.tokenizer, lake).digest != opened.tokenizer:
        raise PlanError(f"plan {plan} was made with tokenizer {opened.tokenizer}; {opened.recipe.tokenizer} is another")
    made = make_plan(lake, opened.recipe, steps=steps, datasets=opened.datasets, progress=progress)
    if made != plan:
        raise PlanError(f"plan {plan} was made by another planner than {PLAN_VERSION}; {made} is what it would be now")
    return made


def open_plan(lake: Store, plan: str) -> Plan:
    """Return a plan of the lake.

    Raises:
        PlanError: there is no such plan, or nothing of it is planned yet.
    """
    try:
        facts = json.loads(lake.get(f"{PLANS}{plan}/plan.json"))
    except ObjectNotFoundError as error:
        raise PlanError(f"no plan {plan!r} in {lake.url}; make one with: k25 plan RECIPE.yaml") from error
    segments = _index(lake, plan)
    if not segments:
        raise PlanError(f"plan {plan} has no segment yet; run its planner again")
    num_steps = segments[-1].first_step + segments[-1].num_steps
    return Plan(
        id=plan,
        recipe=parse_recipe({**facts["recipe"], "steps": num_steps}),
        datasets={name: version["digest"] for name, version in facts["datasets"].items()},
        tokenizer=facts["tokenizer"],
        profile=facts["profile"],
        segments=tuple(segments),
        store=lake,
    )


def source_table(
    lake: Store, manifest: Manifest, tokenizer: Tokenizer, recipe: Recipe, *, progress: Progress | None = None
) -> SourceTable:
    """Return the columns of a dataset version that a plan depends on."""
    media = manifest.media_table()
    if (media["num_media"] > 1).any():
        raise RecipeError(f"recipe {recipe.name}: {manifest.dataset} has samples of several media; only one is packed")
    fine = manifest.table.filter(pa.array(~media["quarantined"]))["licence"]
    counts = {str(entry["values"]): entry["counts"] for entry in fine.value_counts().to_pylist()}
    has_media = bool(media["num_media"].any())
    return SourceTable(
        name=manifest.dataset,
        digest=manifest.digest,
        chunk_lines=manifest.chunk_lines,
        text_tokens=text_lengths(lake, manifest, tokenizer, recipe.profile, progress=progress),
        quarantined=media["quarantined"],
        licences=counts,
        **({name: media[name] for name in ("width", "height", "frames", "fps")} if has_media else {}),
    )


def _write_plan(
    lake: Store, plan: str, recipe: Recipe, manifests: Mapping[str, Manifest], tokenizer: Tokenizer
) -> None:
    facts = {
        "plan": plan,
        "recipe": recipe_dict(recipe, steps=False),
        "datasets": {name: {"digest": manifest.digest} for name, manifest in manifests.items()},
        "tokenizer": tokenizer.digest,
        "profile": recipe.profile,
        "plan_version": PLAN_VERSION,
        "parent": None,
    }
    lake.put_new(f"{PLANS}{plan}/plan.json", _json(facts))


def _write_segment(lake: Store, plan: str, number: int, segment: Segment) -> None:
    """Write rows, header and, last, the index entry that makes the segment exist."""
    name = f"{PLANS}{plan}/segments/{number:06}-{segment.digest}"
    sink = io.BytesIO()
    pq.write_table(segment.table, sink, compression="zstd")
    with suppress(ObjectExistsError):  # rows from another Parquet writer: their digest is compared when they are read
        lake.put_new(f"{name}.parquet", sink.getvalue())
    lake.put_new(f"{name}.json", _json(segment.header))
    entry = {"first_step": segment.first_step, "num_steps": segment.num_steps, "digest": segment.digest}
    lake.put_new(f"{PLANS}{plan}/index/{number:06}.json", _json(entry))


def _index(lake: Store, plan: str) -> list[SegmentInfo]:
    """Return the segments of a plan in the order of their steps."""
    entries = [json.loads(lake.get(info.key)) for info in lake.list(f"{PLANS}{plan}/index/")]
    segments = [SegmentInfo(**entry) for entry in entries]
    ends = np.cumsum([0, *(info.num_steps for info in segments)]).tolist()
    for number, (info, first_step) in enumerate(zip(segments, ends, strict=False)):
        if info.first_step != first_step:
            raise PlanError(f"plan {plan}: segment {number} starts at step {info.first_step}, expected {first_step}")
    return segments


def _read_header(lake: Store, plan: str, number: int, info: SegmentInfo) -> dict[str, Any]:
    """Return a segment's header, compared with its name."""
    key = f"{PLANS}{plan}/segments/{number:06}-{info.digest}.json"
    header = json.loads(lake.get(key))
    if segment_digest(header) != info.digest:
        raise PlanError(f"{lake.url}/{key} is not the header it is named for; restore it")
    return header


def _read_table(lake: Store, plan: str, number: int, info: SegmentInfo) -> pa.Table:
    """Return a segment's rows, compared with its name."""
    body = _read_header(lake, plan, number, info)["body"]
    key = f"{PLANS}{plan}/segments/{number:06}-{info.digest}.parquet"
    table = pq.read_table(io.BytesIO(lake.get(key)), use_threads=False)
    if table.schema.names != SCHEMA.names or table_digest(table) != body:
        raise PlanError(f"{lake.url}/{key} holds other rows than its name says; restore it")
    return table


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
