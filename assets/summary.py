"""The closing words of the demo: what was trained, what it learnt, where to look. The lake in, text out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.outputs import MAIN, checkpoint_record, read_output
from assets.pretraining import ASSET_OF_STAGE
from assets.reporting import in_words
from assets.resources import TrainerResource
from k25_pipelines.catalog.registry import dataset_names, load_manifest
from k25_pipelines.catalog.statistics import statistics
from k25_pipelines.storage.store import Store

NEEDLE_LINES = {
    "digits right, at the first stretch": "digit_accuracy_extended",
    "digits right, at the second stretch": "digit_accuracy_longest",
    "loss of the digits, at the first stretch": "digit_nll_extended",
    "loss of the digits, at the second stretch": "digit_nll_longest",
    "loss of text within the first context": "text_nll_within_context",
    "loss of text from there to the first stretch": "text_nll_beyond_context",
    "loss of text from there to the second": "text_nll_beyond_extended",
}

LOSSES = """Losses are in nats a token. Before and after are of planned steps that are not trained on, whose samples may
have come up in an earlier epoch; held-out captions never did. Spread: of the vision share, from step to step."""


def summary(lake: Store, trainer: TrainerResource) -> str:
    """Return the tables of stages and evaluations of the main edition, and where report and web page are."""
    main = {"scale": trainer.scale, "edition": MAIN}
    tables = [_datasets(lake), _stages(lake, trainer.scale), caption_rows(lake, **main), needle_rows(lake, **main)]
    report = Path(trainer.work).resolve().parent / "report" / "index.html"
    where = f"lake       {lake.url}\nreport     {report}\nweb page   make ui\n"
    return "\n" + "\n".join(map(aligned, tables)) + f"\n{LOSSES}\n\n{where}"


def aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows, all with the same columns, as lines of text; numbers stand to the right."""
    words = [list(rows[0]), *([in_words(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in words) for column in range(len(rows[0]))]
    is_number = [isinstance(value, int | float) for value in rows[0].values()]
    lines = [
        "  ".join(
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(line, widths, is_number, strict=True)
        )
        for line in words
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"


def _datasets(lake: Store) -> list[dict[str, Any]]:
    rows = []
    for name in dataset_names(lake):
        facts = statistics(load_manifest(lake, name))
        sizes = {"samples": facts["num_lines"], "quarantined": facts["num_quarantined"], "bytes": facts["num_bytes"]}
        rows.append({"dataset": name, **sizes, "version": facts["digest"]})
    return rows


def _stages(lake: Store, scale: str) -> list[dict[str, Any]]:
    rows = []
    for stage, asset in ASSET_OF_STAGE.items():
        record = checkpoint_record(lake, read_output(lake, asset, scale=scale, edition=MAIN)["checkpoint"])
        if record is None:
            continue
        metrics = record["metrics"]
        shares = {"vision share": metrics["vision_share"], "spread": metrics["vision_share_std"]}
        figures = {"tokens": metrics["tokens"], **shares}
        losses = {"loss before": metrics["probe_before"], "loss after": metrics["probe_after"]}
        rows.append({"stage": stage, "steps": record["step"], **figures, **losses, "checkpoint": record["key"]})
    return rows


def caption_rows(lake: Store, *, scale: str, edition: str) -> list[dict[str, Any]]:
    """Return the held-out caption losses of stages 1a and 1b; NotMadeError where one was not measured."""
    rows = []
    for stage in ("vit", "projector"):
        found = read_output(lake, f"{stage}_caption_evaluation", scale=scale, edition=edition)
        losses = {"own image": found["true_loss"], "another's image": found["shuffled_loss"]}
        rows.append({"held-out caption loss": stage, **losses, "samples": found["samples"]})
    return rows


def needle_rows(lake: Store, *, scale: str, edition: str) -> list[dict[str, Any]]:
    """Return what stage 3 changed over a long context; NotMadeError where it was not measured."""
    found = read_output(lake, "needle_evaluation", scale=scale, edition=edition)
    return [
        {"long context": title, **{f"after {stage}": values[name] for stage, values in found.items()}}
        for title, name in NEEDLE_LINES.items()
    ]
