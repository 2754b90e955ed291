"""Everything the lake knows, as tables for one's own questions: a lake in, tables by name out, made when named.

Beside those of `lineage_tables` stand datasets, their versions, samples and media, plans, evaluations, what is
forgotten; and each dataset under its own name.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from k25_pipelines import sql
from k25_pipelines.catalog.columns import one_array
from k25_pipelines.catalog.contents import read_beside
from k25_pipelines.catalog.line import PART_TYPE, SCHEMA
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import dataset_names, dataset_versions, load_manifest
from k25_pipelines.lineage_tables import Known, plan_rows
from k25_pipelines.planning import open_plan, tombstones
from k25_pipelines.storage.store import Store

EVALUATIONS = "k25/evaluations/"
TABLES = {
    "datasets": "a row a dataset: name, newest version, samples, licence, source",
    "versions": "a row a version of a dataset",
    "samples": "a row a line of each dataset's newest version; one dataset alone: its own name as a table",
    "parts": "a row a part of a sample: object, range, etag, size in pixels, content id where it is known",
    "plans": "a row a plan: recipe, steps, packs, tokenizer, parent",
    "plan_rows": "a row a sample of a pack of a step that a run consumed or a checkpoint was trained on",
    "runs": "a row a run: its stage",
    "consumed": "steps that runs logged as trained on, by plan",
    "checkpoints": "a row a checkpoint and plan: run, stage, steps behind it",
    "descent": "each checkpoint with itself and all it descends from",
    "evaluations": "a row a number of an evaluation of a checkpoint",
    "bad_samples": "samples that runs masked, from which step on and why",
    "forgotten": "samples that were taken down",
}
"""Name -> what it holds."""

_DATASETS = {
    "dataset": pa.string(),
    "versions": pa.int64(),
    "digest": pa.string(),
    "num_lines": pa.int64(),
    "num_quarantined": pa.int64(),
    "kind": pa.string(),
    "uri": pa.string(),
    "licence": pa.string(),
    "source": pa.string(),
}
_VERSIONS = {"dataset": pa.string(), "number": pa.int64(), "digest": pa.string(), "parent": pa.string()} | {
    name: _DATASETS[name] for name in ("num_lines", "num_quarantined", "kind", "uri", "licence", "source")
}
_PLANS = {
    "plan": pa.string(),
    "recipe": pa.string(),
    "num_steps": pa.int64(),
    "packs_per_step": pa.int64(),
    "pack_tokens": pa.int64(),
    "seed": pa.int64(),
    "profile": pa.string(),
    "tokenizer": pa.string(),
    "parent": pa.string(),
    "datasets": pa.map_(pa.string(), pa.string()),
}
_EVALUATIONS = {
    "checkpoint": pa.string(),
    "evaluation": pa.string(),
    "metric": pa.string(),
    "value": pa.float64(),
    "key": pa.string(),
}


def ask(lake: Store, question: str, values: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the answer to a question in SQL over `TABLES` and the lake's datasets.

    Raises:
        LineageError: DuckDB does not understand the question.
    """
    return sql.answer(lake_tables(lake), question, values)


def lake_tables(lake: Store) -> dict[str, Callable[[], pa.Table]]:
    """Return what makes each table, the datasets' own names among them; names of `TABLES` go first."""
    made = _Lake(lake)
    tables: dict[str, Callable[[], pa.Table]] = {
        name: lambda name=name: made.samples([name]) for name in made.names if name not in TABLES
    }
    tables |= {
        "datasets": made.datasets,
        "versions": made.versions,
        "samples": lambda: made.samples(made.indexed),
        "parts": lambda: made.parts(made.indexed),
        "plans": made.plans,
        "plan_rows": lambda: plan_rows(made.known.spans(lake)),
        "evaluations": made.evaluations,
        "forgotten": made.forgotten,
    }
    for name in ("runs", "consumed", "checkpoints", "descent", "bad_samples"):
        tables[name] = lambda name=name: made.known.tables[name]
    return tables


def evaluations_of(lake: Store) -> Iterator[dict[str, Any]]:
    """Yield the record of each evaluation with its `key`: checkpoint, evaluation and numbers."""
    for info in lake.list(EVALUATIONS):
        if info.key.endswith(".json"):
            yield {"key": info.key, **json.loads(lake.get(info.key))}


class _Lake:
    """Makes the tables; what several of them need is read once."""

    def __init__(self, lake: Store) -> None:
        self._lake, self._manifests = lake, dict[str, Manifest]()

    @cached_property
    def names(self) -> list[str]:
        """All datasets."""
        return dataset_names(self._lake)

    @cached_property
    def by_name(self) -> dict[str, list[dict]]:
        """The versions of each dataset."""
        return {name: dataset_versions(self._lake, name) for name in self.names}

    @property
    def indexed(self) -> list[str]:
        """The datasets that have a version."""
        return [name for name, versions in self.by_name.items() if versions]

    @cached_property
    def known(self) -> Known:
        """Runs and checkpoints."""
        return Known.of(self._lake, bad=".json")

    def datasets(self) -> pa.Table:
        rows = [
            {"dataset": name, "versions": len(versions), **(versions[-1] if versions else {})}
            for name, versions in self.by_name.items()
        ]
        return _table(rows, _DATASETS)

    def versions(self) -> pa.Table:
        return _table(
            [{"dataset": n, **version} for n, versions in self.by_name.items() for version in versions], _VERSIONS
        )

    def samples(self, names: Sequence[str]) -> pa.Table:
        found = []
        for name in names:
            manifest = self._manifest(name)
            columns = {"dataset": _repeated(name, manifest.num_lines), "line": pa.array(range(manifest.num_lines))}
            columns |= {field: one_array(manifest.table[field]) for field in SCHEMA.names if field != "parts"}
            columns |= {field: pa.array(values) for field, values in manifest.media_table().items() if field != "more"}
            del columns["quarantined"]
            found.append(pa.table(columns))
        return pa.concat_tables(found) if found else pa.table({"dataset": pa.array([], pa.string())})

    def parts(self, names: Sequence[str]) -> pa.Table:
        found = []
        for name in names:
            manifest = self._manifest(name)
            flat = one_array(manifest.table["parts"]).flatten()
            lines = [line for line in range(manifest.num_lines) for _ in manifest.columns.parts_of(line)]
            columns = {"dataset": _repeated(name, len(flat)), "line": pa.array(lines, pa.int64())}
            columns |= {field.name: flat.field(field.name) for field in PART_TYPE}
            contents = one_array(read_beside(self._lake, manifest)["contents"]).flatten()
            found.append(pa.table({**columns, "content": contents}))
        return pa.concat_tables(found) if found else pa.table({"dataset": pa.array([], pa.string())})

    def plans(self) -> pa.Table:
        keys = [info.key.split("/")[2] for info in self._lake.list("k25/plans/") if info.key.endswith("/index.json")]
        return _table([_plan_row(self._lake, plan) for plan in keys], _PLANS)

    def evaluations(self) -> pa.Table:
        rows = [
            {
                "metric": metric,
                "value": float(value),
                **{name: told.get(name) for name in ("checkpoint", "evaluation", "key")},
            }
            for told in evaluations_of(self._lake)
            for metric, value in told.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        return _table(rows, _EVALUATIONS)

    def forgotten(self) -> pa.Table:
        rows = [{"dataset": name, "line": line} for name, line in tombstones(self._lake)]
        return _table(rows, {"dataset": pa.string(), "line": pa.int64()})

    def _manifest(self, name: str) -> Manifest:
        if name not in self._manifests:
            self._manifests[name] = load_manifest(self._lake, name)
        return self._manifests[name]


def _plan_row(lake: Store, plan: str) -> dict[str, Any]:
    opened = open_plan(lake, plan)
    recipe = opened.recipe
    told = {name: getattr(recipe, name) for name in ("packs_per_step", "pack_tokens", "seed")}
    return {
        "plan": plan,
        "recipe": recipe.name,
        "num_steps": opened.num_steps,
        "profile": opened.profile,
        "tokenizer": opened.tokenizer,
        "parent": (opened.parent or {}).get("parent"),
        "datasets": list(opened.datasets.items()),
        **told,
    }


def _repeated(word: str, count: int) -> pa.Array:
    return pa.array([word], pa.string()).take(pa.array([0] * count, pa.int64()))


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(list(columns.items())))
