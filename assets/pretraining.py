"""Checkpoints as assets: each stage of pre-training is a trainer of its own, started through Dagster Pipes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg

from assets import plans, policies
from assets.data_layer import DEMO
from assets.launcher import run_trainer
from assets.outputs import MAIN, checkpoint_record, edition_of, read_output, write_output
from assets.pages import checkpoint_metadata
from assets.reporting import materialized, picture, table
from assets.resources import LakeResource, TrainerResource
from assets.training import read_training, spike_rows, training_figures, training_pictures
from k25_pipelines.errors import CheckpointError
from k25_pipelines.storage.store import Store
from trainers.config import TrainConfig, plain, run_name
from trainers.recipes import PARENTS, stage_config

GROUP = "pretraining"
COMMON: dict[str, Any] = {
    "group_name": GROUP,
    "pool": policies.GPU,
    "owners": ["team:training"],
    "kinds": {"pytorch", "deepspeed"},
    "tags": DEMO,
    "code_version": "2",
}
ASSET_OF_STAGE = {
    "warmup": "language_checkpoint",
    "vit": "vit_checkpoint",
    "projector": "projector_checkpoint",
    "joint": "joint_checkpoint",
    "long_context": "long_context_checkpoint",
    "longest_context": "longest_context_checkpoint",
}
"""Stage -> the asset that is its checkpoint."""


@dg.asset(deps=[plans.warmup_plan], **COMMON)
def language_checkpoint(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """The language model, warmed up on text: what pre-training of vision starts from."""
    return train_stage(context, lake, trainer, "warmup")


@dg.asset(deps=[plans.vit_plan], **COMMON)
def vit_checkpoint(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 1a: the vision tower, trained to caption and to tell captions apart."""
    return train_stage(context, lake, trainer, "vit")


@dg.asset(deps=[plans.projector_plan, vit_checkpoint, language_checkpoint], **COMMON)
def projector_checkpoint(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 1b: the projector between the trained vision tower and the language model, both frozen."""
    return train_stage(context, lake, trainer, "projector")


@dg.asset(deps=[plans.joint_plan, projector_checkpoint], **COMMON)
def joint_checkpoint(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 2: the whole model, trained on text, images and video together."""
    return train_stage(context, lake, trainer, "joint")


@dg.asset(deps=[plans.long_context_plan, joint_checkpoint], **COMMON)
def long_context_checkpoint(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 3, first stretch: the joint model, its context stretched and trained on long packs."""
    return train_stage(context, lake, trainer, "long_context")


@dg.asset(deps=[plans.longest_context_plan, long_context_checkpoint], **COMMON)
def longest_context_checkpoint(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 3, second stretch: the context stretched again; what pre-training ends with."""
    return train_stage(context, lake, trainer, "longest_context")


@policies.retry_the_store
def train_stage(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource, stage: str
) -> dg.MaterializeResult:
    """Train a stage on its plan, or find the checkpoint of a finished run with the same config."""
    objects, edition = lake.open(), edition_of(context)
    config = edition_config(objects, stage, scale=trainer.scale, edition=edition)
    run = run_name(config)
    record = finished_record(objects, run, config)
    cached = record is not None
    if record is None:
        run_file = {"config": plain(config), "store": objects.url, "run": run, **trainer.layout()}
        run_trainer(context, trainer, "trainers.pretrain", [], run_file=run_file, num_ranks=trainer.num_ranks)
        record = finished_record(objects, run, config)
    if record is None:
        raise CheckpointError(f"the trainer of {run} ended well and left no checkpoint of step {config.steps}")
    context.add_asset_metadata(checkpoint_metadata(objects, record))
    output = {"checkpoint": record["key"], "digest": record["digest"], "run": run, "stage": stage, "plan": config.plan}
    write_output(objects, ASSET_OF_STAGE[stage], output, scale=trainer.scale, edition=edition)
    shown = {**record_metadata(record), **training_metadata(objects, record["key"])}
    return materialized(record["digest"], metadata={"cached": cached, "edition": edition, **shown})


def edition_config(lake: Store, stage: str, *, scale: str, edition: str) -> TrainConfig:
    """Return the config of a stage: on the plan and from the checkpoints that the edition made last."""
    plan = read_output(lake, f"{stage}_plan", scale=scale, edition=edition)["plan"]
    initial = {
        module: read_output(lake, ASSET_OF_STAGE[parent], scale=scale, edition=edition)["checkpoint"]
        for module, parent in PARENTS[stage].items()
    }
    config = stage_config(stage, scale, plan=plan, initial=initial)
    return config if edition == MAIN else replace(config, seed=plans.edition_seed(edition))


def finished_record(lake: Store, run: str, config: TrainConfig) -> dict[str, Any] | None:
    """Return the record of the run's last step, if it is published and was made by the same config."""
    record = checkpoint_record(lake, f"k25/checkpoints/{run}/{config.steps:08d}")
    return record if record and record["config"] == plain(config) else None


def record_metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Dagster shows of a checkpoint record."""
    metrics = record["metrics"]
    shown = ("probe_before", "probe_after", "first_loss", "last_loss", "tokens", "vision_share", "vision_share_std")
    lineage = [{"what": name, "value": record[name]} for name in ("run", "step", "plan", "parent", "code_version")]
    return {
        "checkpoint": record["key"],
        "plan": record["plan"],
        "steps": record["step"],
        **{name: metrics[name] for name in shown if metrics.get(name) is not None},
        "lineage": table(lineage),
    }


def training_metadata(lake: Store, checkpoint: str) -> dict[str, Any]:
    """Return what Dagster shows of the steps that led to a checkpoint: figures, pictures and loss spikes."""
    told = read_training(lake, checkpoint)
    pictures = {name: picture(image) for name, image in training_pictures(told).items()}
    return {**training_figures(told), **pictures, "spikes": table(spike_rows(told))}
