"""Pages of where things came from and went: a sample to its evaluations, and a checkpoint back to its datasets."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from k25_pipelines.catalog.contents import read_beside
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import LineageError
from k25_pipelines.gallery.flow import Box, flow
from k25_pipelines.gallery.kept import address, checkpoint_name, gallery_name, link, step_name
from k25_pipelines.gallery.page import PALETTE, chip, colours_of, page, table, tiles
from k25_pipelines.gallery.stored import UNREADABLE, read_raw, stored_html, unreadable, whereabouts
from k25_pipelines.lake_tables import evaluations_of
from k25_pipelines.lineage import checkpoint_records, trace_checkpoint, trace_sample
from k25_pipelines.lineage_tables import checkpoint_key
from k25_pipelines.planning import tombstones
from k25_pipelines.storage.store import Store, open_store

PREFIX = "k25/checkpoints/"
MOST_COLUMNS = 3
"""Of checkpoints that a checkpoint descends from; those further back stand in the first."""
MOST_BOXES = 9
"""Of a column; the rest stands in the table below."""


def sample_lineage_page(lake: Store, dataset: str, line: int, *, served: bool = False) -> str:
    """Return the page of a sample: its bytes, what it is, the steps that consumed it, what was made of it.

    Args:
        lake: where everything is.
        dataset: its name.
        line: of the newest version.
        served: link what other pages of the lake's server are about.

    Raises:
        LineageError: the dataset has no such line.
    """
    manifest = load_manifest(lake, dataset)
    if not 0 <= line < manifest.num_lines:
        raise LineageError(f"dataset {dataset} has lines 0 to {manifest.num_lines - 1}, not {line}")
    told = trace_sample(lake, dataset=dataset, line=line)
    is_forgotten = (dataset, line) in tombstones(lake)
    contents = (read_beside(lake, manifest)["contents"][line].as_py() or []) if manifest.num_lines else []
    evaluations = _evaluations(lake, {row["checkpoint"] for row in told["checkpoints"]})
    known, name = manifest.line(line), f"{dataset}:{line}"
    picture = flow(
        [
            ("BYTES", _bytes(manifest, line, contents)),
            ("SAMPLE", [_sample_box(manifest, line, is_forgotten=is_forgotten)]),
            ("STEPS OF RUNS", _runs(told["runs"], name)),
            ("CHECKPOINTS TRAINED ON IT", _checkpoints(told["checkpoints"], served=served)),
            ("EVALUATIONS", evaluations[:MOST_BOXES]),
        ]
    )
    numbers = _sample_numbers(told, len(evaluations))
    under = f"key <code>{escape(known.key)}</code> · {chip(known.licence)}{chip(known.source)}"
    under += "<b class=bad>forgotten: not shown, not trained on again</b>" if is_forgotten else ""
    shown = "" if is_forgotten else _as_stored(manifest, line, contents)
    body = numbers + picture + shown + _places(told["runs"], served=served)
    return page(f"Where {name} went", body, under=under)


def _sample_numbers(told: Mapping[str, Sequence[Mapping[str, Any]]], num_evaluations: int) -> str:
    trained = sum(row["masked"] is None for row in told["runs"])
    return tiles(
        [
            ("runs", len({row["run"] for row in told["runs"]})),
            ("times trained on", trained),
            ("times masked", len(told["runs"]) - trained or None),
            ("checkpoints", len({row["checkpoint"] for row in told["checkpoints"]})),
            ("evaluations of them", num_evaluations),
        ]
    )


def checkpoint_lineage_page(lake: Store, checkpoint: str, *, served: bool = False) -> str:
    """Return the page of a checkpoint: its evaluations, what it descends from, the datasets and licences behind it.

    Raises:
        LineageError: there is no such checkpoint.
    """
    records = {record["key"]: record for record in checkpoint_records(lake)}
    key = checkpoint_key(checkpoint, sorted(records))
    rows = trace_checkpoint(lake, key)
    names = sorted({row["dataset"] for row in rows})
    manifests = {name: load_manifest(lake, name) for name in names}
    evaluations, order = _evaluations(lake, {key}), _by_descent(records, key)
    colours, behind = colours_of(names), order[1:]
    columns = [
        ("DATASETS", [_dataset_box(name, rows, colours[name], manifests[name], served=served) for name in names])
    ]
    for distance in range(MOST_COLUMNS, 0, -1):
        near = [name for name in behind if _distance(records, key, name) == distance]
        there = [_ancestor_box(records[name], rows, served=served) for name in near]
        columns += [("BEFORE IT" if distance > 1 else "STARTED FROM", there[:MOST_BOXES])] if there else []
    columns += [("CHECKPOINT", [_ancestor_box(records[key], rows, is_main=True)])]
    picture = flow([*columns, ("EVALUATIONS", evaluations[:MOST_BOXES])])
    numbers = tiles(
        [
            ("tokens behind it", sum(row["tokens"] for row in rows)),
            ("steps of its run", records[key].get("step")),
            ("datasets", len(names)),
            ("checkpoints before it", len(behind)),
            ("evaluations", len(evaluations)),
        ]
    )
    body = f"{numbers}{picture}<h2>What it was trained on</h2>{_trained_on(rows)}{_licences(rows, manifests)}"
    return page(f"Where {_short(key)} came from", body + _made_with(records[key]), under=f"<code>{escape(key)}</code>")


def _bytes(manifest: Manifest, line: int, contents: Sequence[str | None]) -> list[Box]:
    boxes = []
    for place, part in enumerate(manifest.line(line).parts[:MOST_BOXES]):
        content = contents[place] if place < len(contents) else None
        told = [
            f"{part.kind}, {part.num_bytes:,} bytes at {part.offset:,}",
            f"sha256 {content[:12]}…" if content else f"etag {part.etag[:14]}",
        ]
        boxes.append(Box(name=f"part {place}", title=part.shard, told=told, colour=PALETTE[5]))
    return boxes or [Box(name="part 0", title=manifest.uri, told=["words in the manifest"], colour=PALETTE[5])]


def _sample_box(manifest: Manifest, line: int, *, is_forgotten: bool) -> Box:
    parts = [f"part {place}" for place in range(max(1, len(manifest.line(line).parts)))]
    told = [manifest.line(line).key, "forgotten" if is_forgotten else manifest.line(line).licence]
    name = f"{manifest.dataset}:{line}"
    return Box(
        name=name, title=name, told=told, colour="var(--bad)" if is_forgotten else PALETTE[0], is_main=True, after=parts
    )


def _runs(rows: Sequence[Mapping[str, Any]], sample: str) -> list[Box]:
    by_run = defaultdict[str, list[Mapping[str, Any]]](list)
    for row in rows:
        by_run[row["run"]].append(row)
    boxes = []
    for run, places in by_run.items():
        masked = sum(place["masked"] is not None for place in places)
        steps = ", ".join(str(place["step"]) for place in places)
        told = [f"steps {steps}" if len(places) > 1 else f"step {steps}"]
        told.append(
            f"{places[0]['stage'] or 'run'}, {len(places)} time{'' if len(places) == 1 else 's'}"
            + (f", {masked} masked" if masked else "")
        )
        colour = "var(--hush)" if masked == len(places) else PALETTE[2]
        boxes.append(Box(name=f"run {run}", title=run, told=told, colour=colour, after=[sample], address="#places"))
    return boxes[:MOST_BOXES]


def _checkpoints(rows: Sequence[Mapping[str, Any]], *, served: bool) -> list[Box]:
    """Return the last checkpoint of each run, with what it holds the sample through."""
    through = defaultdict[str, set[str]](set)
    for row in rows:
        through[row["checkpoint"]].add(row["run"])
    last = dict[str, str]()
    for key in sorted(through):
        last[key.removeprefix(PREFIX).split("/")[0]] = key
    count = Counter(key.removeprefix(PREFIX).split("/")[0] for key in through)
    boxes = []
    for run, key in last.items():
        own = run in through[key]
        told = [f"and {count[run] - 1} earlier of this run" if count[run] > 1 else "the only one of this run"]
        told.append("trained on it itself" if own else "descends from one that was")
        sources = [f"run {name}" for name in sorted(through[key])]
        boxes.append(
            Box(name=key, title=_called(key), told=told, colour=PALETTE[3], after=sources, address=_to(key, served))
        )
    return boxes[:MOST_BOXES]


def _evaluations(lake: Store, keys: set[str]) -> list[Box]:
    boxes = []
    for told in evaluations_of(lake):
        if told.get("checkpoint") in keys:
            plain = {n: v for n, v in told.items() if isinstance(v, float)}
            numbers = [f"{name} {value:.4g}" for name, value in plain.items()]
            title = str(told.get("evaluation", "evaluation"))
            boxes.append(
                Box(name=told["key"], title=title, told=numbers[:2], colour=PALETTE[1], after=[told["checkpoint"]])
            )
    return boxes


def _as_stored(manifest: Manifest, line: int, contents: Sequence[str | None]) -> str:
    try:
        shown = stored_html(read_raw(manifest, line, open_store(manifest.uri)))
    except UNREADABLE as error:
        shown = unreadable(error)
    where = whereabouts(manifest, line, manifest.line(line), contents)
    return f"<h2>As stored</h2><div class=card style='max-width:34rem'>{shown}{where}</div>"


def _places(rows: Sequence[Mapping[str, Any]], *, served: bool) -> str:
    told = [
        [
            row["run"],
            row["stage"],
            link(step_name(row["plan"], row["step"]), str(row["step"]), served=True) if served else row["step"],
            *(row[name] for name in ("pack", "slot", "epoch", "num_tokens")),
            row["masked"] or "trained",
        ]
        for row in rows
    ]
    header = ["run", "stage", "step", "pack", "slot", "epoch", "tokens", "outcome"]
    body = table(told, header) if told else "<p>No run has consumed it.</p>"
    return f"<h2 id=places>Every place it had</h2>{body}"


def _parents(record: Mapping[str, Any]) -> list[str]:
    told = record.get("parent") or []
    return [told] if isinstance(told, str) else list(told)


def _by_descent(records: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """Return a checkpoint and those it was started from, one after the other, the nearest first."""
    found, ahead = list[str](), [key]
    while ahead:
        current = ahead.pop(0)
        if current in records and current not in found:
            found.append(current)
            ahead += _parents(records[current])
    return found


def _distance(records: Mapping[str, Mapping[str, Any]], key: str, ancestor: str) -> int:
    """Return how many starts lie between a checkpoint and one that it descends from, MOST_COLUMNS at most."""
    reached, count = {key}, 0
    while ancestor not in reached and count < MOST_COLUMNS:
        reached = {parent for name in reached if name in records for parent in _parents(records[name])}
        count += 1
    return count


def _dataset_box(name: str, rows: Sequence[Mapping[str, Any]], colour: str, manifest: Manifest, *, served: bool) -> Box:
    mine = [row for row in rows if row["dataset"] == name]
    licences = sorted(set(manifest.table["licence"].to_pylist()))
    told = [f"{sum(row['tokens'] for row in mine):,} tokens", ", ".join(licences)]
    where = address(gallery_name(name, manifest.digest)) if served else ""
    return Box(name=f"dataset {name}", title=name, told=told, colour=colour, address=where)


def _ancestor_box(
    record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, is_main: bool = False, served: bool = False
) -> Box:
    """Return the box of a checkpoint, with lines from its parents and from the datasets of its own steps."""
    name = record["key"]
    held = sorted({f"dataset {row['dataset']}" for row in rows if row["checkpoint"] == name})
    told = [f"{record.get('stage') or 'imported'}, {record.get('step', 0)} steps"]
    told.append(f"plan {(record.get('plan') or 'none')[:16]}")
    after = [*held, *_parents(record)]
    where = "" if is_main else _to(name, served)
    return Box(
        name=name, title=_called(name), told=told, colour=PALETTE[3], after=after, is_main=is_main, address=where
    )


def _trained_on(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["checkpoint", "stage", "dataset", "samples", "times", "tokens", "masked"]
    told = [[_short(row["checkpoint"]), *(row[name] for name in header[1:])] for row in rows]
    return table(told, header)


def _licences(rows: Sequence[Mapping[str, Any]], manifests: Mapping[str, Manifest]) -> str:
    """Return which licences the samples of the datasets behind a checkpoint have, and of how many sources they are."""
    told = []
    for name, manifest in manifests.items():
        fine = manifest.table.filter(~manifest.quarantined)
        sources = defaultdict[str, Counter[str]](Counter)
        for licence, source in zip(fine["licence"].to_pylist(), fine["source"].to_pylist(), strict=True):
            sources[licence][source] += 1
        for licence, count in sorted(sources.items()):
            told.append([name, licence, count.total(), len(count), count.most_common(1)[0][0]])
    header = ["dataset", "licence", "samples of the dataset", "sources", "such as"]
    return f"<h2>Licences and sources of those datasets</h2>{table(told, header)}" if rows else ""


def _made_with(record: Mapping[str, Any]) -> str:
    rows = [["code", record.get("code_version")], *sorted((record.get("packages") or {}).items())]
    return f"<h2>Made with</h2>{table([[str(cell) for cell in row] for row in rows], ['', 'version'])}"


def _called(key: str) -> str:
    """Return a name for a box: the stage, the first letters of the run's digest, the step."""
    run, _, step = _short(key).partition("/")
    stage, _, digest = run.rpartition("-")
    name = f"{stage} {digest[:4]}" if stage and len(digest) >= 8 else run
    return f"{name} · {int(step)}" if step.isdecimal() else name


def _to(checkpoint: str, served: bool) -> str:
    return address(checkpoint_name(checkpoint)) if served else ""


def _short(key: str) -> str:
    return key.removeprefix(PREFIX)
