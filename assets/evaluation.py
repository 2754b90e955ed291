"""Evaluations as assets, and the page that tells the whole run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets import pretraining, report_page
from assets.data_layer import DEMO
from assets.launcher import run_trainer
from assets.outputs import edition_of, read_output, write_output
from assets.pictures import bars
from assets.policies import GPU, retry_the_store
from assets.pretraining import ASSET_OF_STAGE
from assets.reporting import materialized, picture, table
from assets.resources import LakeResource, TrainerResource
from k25_pipelines.errors import CheckpointError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

GROUP = "evaluation"
NEEDLE_STAGES = ("joint", "long_context", "longest_context")
"""The stages after which a number is looked for in long texts."""
COMMON: dict[str, Any] = {
    "group_name": GROUP,
    "pool": GPU,
    "owners": ["team:training"],
    "kinds": {"pytorch"},
    "tags": DEMO,
    "code_version": "2",
}


@dg.asset(deps=[pretraining.vit_checkpoint], **COMMON)
def vit_caption_evaluation(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Does the vision tower see? Held-out caption loss after stage 1a, with the true image and with another's."""
    return evaluate_captions(context, lake, trainer, "vit")


@dg.asset(deps=[pretraining.projector_checkpoint], **COMMON)
def projector_caption_evaluation(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Does the language model see? Held-out caption loss after stage 1b, with the true image and with another's."""
    return evaluate_captions(context, lake, trainer, "projector")


@dg.asset(
    deps=[pretraining.joint_checkpoint, pretraining.long_context_checkpoint, pretraining.longest_context_checkpoint],
    **COMMON,
)
def needle_evaluation(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Does the longer context reach? Finding a sentence far back, before stage 3 and after each of its stretches."""
    objects, edition = lake.open(), edition_of(context)
    metrics = {}
    for stage in NEEDLE_STAGES:
        metrics[stage] = evaluation(context, objects, trainer, "needle", stage=stage)
    write_output(objects, "needle_evaluation", metrics, scale=trainer.scale, edition=edition)
    rows = [{"after": stage, **numbers(values)} for stage, values in metrics.items()]
    return materialized(digest(metrics), metadata={"needle": table(rows), "edition": edition})


@dg.asset(
    deps=[
        vit_caption_evaluation,
        projector_caption_evaluation,
        needle_evaluation,
        pretraining.longest_context_checkpoint,
    ],
    **{**COMMON, "kinds": {"html"}},
)
def run_report(context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource) -> dg.MaterializeResult:
    """One page that needs no server: losses, shares of vision tokens, evaluations, pictures and lineage."""
    objects, edition = lake.open(), edition_of(context)
    page = report_page.page(objects, scale=trainer.scale, edition=edition)
    key = f"k25/reports/{trainer.scale}/{edition}/index.html"
    objects.put(key, page.encode())
    local = Path(trainer.work).resolve().parent / "report" / "index.html"
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text(page)
    metadata = {"page": dg.MetadataValue.path(str(local)), "key": key, "num_bytes": len(page), "edition": edition}
    return materialized(digest(page), metadata=metadata)


@retry_the_store
def evaluate_captions(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource, stage: str
) -> dg.MaterializeResult:
    """Measure a stage's checkpoint on held-out captions, with their images and with shuffled ones."""
    objects, edition = lake.open(), edition_of(context)
    metrics = evaluation(context, objects, trainer, "captions", stage=stage)
    write_output(objects, f"{stage}_caption_evaluation", metrics, scale=trainer.scale, edition=edition)
    losses = {name: metrics[name] for name in ("true_loss", "shuffled_loss")}
    shown = picture(bars(losses, title=f"{stage}: held-out caption loss", unit="nats a token"))
    return materialized(digest(metrics), metadata={**numbers(metrics), "losses": shown, "edition": edition})


def evaluation(
    context: dg.AssetExecutionContext, lake: Store, trainer: TrainerResource, name: str, *, stage: str
) -> dict[str, Any]:
    """Return the metrics of an evaluation of a stage's checkpoint, from the lake or from a new evaluator."""
    made = read_output(lake, ASSET_OF_STAGE[stage], scale=trainer.scale, edition=edition_of(context))
    key = f"k25/evaluations/{made['digest']}/{name}.json"
    found = _stored(lake, key)
    if found is None:
        run_file = {
            "checkpoint": made["checkpoint"],
            "store": lake.url,
            "run": f"evaluate-{made['run']}",
            "threads": trainer.threads,
        }
        run_trainer(context, trainer, "trainers.evaluate", [name], run_file=run_file)
        found = _stored(lake, key)
    if found is None:
        raise CheckpointError(f"the evaluation {name} of {made['checkpoint']} ended well and left no {key}")
    return found


def numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of metrics that are numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _stored(lake: Store, key: str) -> dict[str, Any] | None:
    try:
        return json.loads(lake.get(key))
    except ObjectNotFoundError:
        return None
