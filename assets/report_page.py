"""The report of a run: what the lake says was made in, one self-contained HTML page out."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from assets.data_layer import sample_pictures
from assets.outputs import MAIN, NotMadeError, checkpoint_record, read_output
from assets.pictures import bars, curves
from assets.plans import step_table
from assets.pretraining import ASSET_OF_STAGE
from assets.reporting import data_url, in_words
from assets.summary import caption_rows, needle_rows
from assets.training import read_training, spike_rows, training_pictures
from k25_pipelines.catalog.registry import dataset_names, load_manifest
from k25_pipelines.storage.store import Store

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5f6f80; --line: #d9e0e7; --paper: #ffffff; --card: #f5f7f9 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa8b5; --line: #35414d; --paper: #14191f;
  --card: #1d242c } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1060px;
  margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.4rem; font-size: 1.15rem }
p { color: var(--soft); max-width: 46rem }
table { border-collapse: collapse; font-size: .88rem; display: block; overflow-x: auto }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 1rem }
.pictures img { width: 100%; background: #fff; border-radius: 6px; border: 1px solid var(--line) }
h3 { font-size: 1rem; margin-bottom: .4rem }
.sheets { columns: 2; column-gap: 1rem } .sheets > div { break-inside: avoid }
"""


def page(lake: Store, *, scale: str, edition: str) -> str:
    """Return the page of an edition, as it stands in the lake."""
    made = {stage: _record(lake, stage, scale, edition) for stage in ASSET_OF_STAGE}
    records = {stage: record for stage, record in made.items() if record}
    sections = [
        ("What was trained", "Every stage reads its own plan, and starts from the stage before.", _stages(records)),
        ("Training", "What was seen of each step, a row of pictures a stage.", _training(lake, records)),
        ("Plans", "Fill and vision share of each step, as planned before a byte was read.", _plans(lake, records)),
        (
            "Evaluations",
            "Captions that no plan holds, with their own and with another's image; a number told far back in a text.",
            _evaluations(lake, scale, edition),
        ),
        ("Samples", "As stored, with their boxes.", _samples(lake)),
        ("Lineage", "Each checkpoint, what it was trained on, and what it descends from.", _lineage(records)),
    ]
    body = "".join(
        f"<h2>{html.escape(title)}</h2><p>{html.escape(words)}</p>{content}" for title, words, content in sections
    )
    title = "Kimi K2.5 pre-training, reproduced" + ("" if edition == MAIN else f": edition {edition}")
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"<head>{meta}<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body><h1>{html.escape(title)}</h1>{body}</body></html>'


def _record(lake: Store, stage: str, scale: str, edition: str) -> dict[str, Any] | None:
    try:
        checkpoint = read_output(lake, ASSET_OF_STAGE[stage], scale=scale, edition=edition)["checkpoint"]
    except NotMadeError:
        return None
    return checkpoint_record(lake, checkpoint)


def _stages(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        {
            "stage": stage,
            "steps": record["step"],
            "tokens": record["metrics"]["tokens"],
            "vision share": record["metrics"]["vision_share"],
            "spread over steps": record["metrics"]["vision_share_std"],
            "loss before": record["metrics"]["probe_before"],
            "loss after": record["metrics"]["probe_after"],
            "trains": ", ".join(record["config"]["trainable"]),
        }
        for stage, record in records.items()
    ]
    return html_table(rows)


def _training(lake: Store, records: Mapping[str, Mapping[str, Any]]) -> str:
    shown = []
    for stage, record in records.items():
        told = read_training(lake, record["key"])
        spikes = html_table(spike_rows(told)) if told.spikes else ""
        shown.append(f"<h3>{html.escape(stage)}</h3>{_pictures(training_pictures(told).values())}{spikes}")
    return "".join(shown)


def _plans(lake: Store, records: Mapping[str, Mapping[str, Any]]) -> str:
    from k25_pipelines.planning import open_plan  # loads the codecs, which the definitions do without

    plans = {stage: open_plan(lake, record["plan"]) for stage, record in records.items()}
    return _pictures(
        curves(step_table(plan), title=stage, unit="share", level=plan.recipe.vision_share)
        for stage, plan in plans.items()
    )


def _evaluations(lake: Store, scale: str, edition: str) -> str:
    captions = caption_rows(lake, scale=scale, edition=edition)
    pictures = [
        bars(
            {name: row[name] for name in ("own image", "another's image")},
            title=row["held-out caption loss"],
            unit="held-out caption loss, nats a token",
        )
        for row in captions
    ]
    needle = needle_rows(lake, scale=scale, edition=edition)
    return f"{html_table(captions)}<br>{_pictures(pictures)}<br>{html_table(needle)}"


def _samples(lake: Store) -> str:
    manifests = [load_manifest(lake, name) for name in dataset_names(lake)]
    sheets = {manifest.dataset: sample_pictures(lake, manifest) for manifest in manifests}
    shown = {name: _pictures([sheet]) for name, sheet in sheets.items() if sheet}
    cards = "".join(f"<div><h3>{html.escape(name)}</h3>{images}</div>" for name, images in shown.items())
    return f'<div class="sheets">{cards}</div>'


def _lineage(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        {
            "checkpoint": record["key"],
            "digest": record["digest"],
            "plan": record["plan"],
            "starts from": ", ".join(sorted(set(record["config"]["initial"].values()))) or "random",
            "code": record["code_version"],
        }
        for record in records.values()
    ]
    return html_table(rows)


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows, all with the same columns, as an HTML table; numbers stand to the right."""
    if not rows:
        return "<p>(not made yet)</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(in_words(value))}</td>"


def _pictures(pngs: Iterable[bytes]) -> str:
    images = "".join(f'<img alt="" src="{data_url(png)}">' for png in pngs)
    return f'<div class="pictures">{images}</div>'
