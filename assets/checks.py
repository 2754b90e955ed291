"""What must hold of what was made: each check reads the lake and says pass or fail, with the numbers."""

from typing import Any

import dagster as dg

from assets.outputs import checkpoint_record, edition_of, read_output
from assets.pretraining import ASSET_OF_STAGE
from assets.resources import LakeResource, TrainerResource
from k25_pipelines.errors import CheckpointError
from k25_pipelines.storage.store import Store

MIN_FILL = 0.97
"""Share of a plan's places that hold real tokens."""
SHARE_TOLERANCE = 0.005
"""How far the vision share that trainers counted may lie from the recipe's: half a point."""

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@dg.asset_check(asset="joint_plan")
def joint_packs_are_full(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Few places of stage 2's packs are padding."""
    return fill_check(_output(context, lake, trainer, "joint_plan"), severity=severity(trainer))


@dg.asset_check(asset="long_context_plan")
def long_packs_are_full(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Few places of stage 3's packs are padding."""
    return fill_check(_output(context, lake, trainer, "long_context_plan"), severity=severity(trainer))


@dg.asset_check(asset="longest_context_plan")
def longest_packs_are_full(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Few places of the longest packs are padding."""
    return fill_check(_output(context, lake, trainer, "longest_context_plan"), severity=severity(trainer))


@dg.asset_check(asset="joint_checkpoint")
def joint_vision_share_is_the_recipes(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """The share of vision tokens, counted by the trainer in the batches it was fed, is the recipe's."""
    planned = _output(context, lake, trainer, "joint_plan")["recipe_vision_share"]
    return share_check(_record(context, lake, trainer, "joint"), planned, severity=severity(trainer))


@dg.asset_check(asset="language_checkpoint")
def language_loss_fell(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """The language model learnt: its loss on steps not trained on fell."""
    return loss_check(_record(context, lake, trainer, "warmup"), severity=severity(trainer))


@dg.asset_check(asset="vit_checkpoint")
def vit_loss_fell(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Stage 1a learnt: its loss on steps not trained on fell."""
    return loss_check(_record(context, lake, trainer, "vit"), severity=severity(trainer))


@dg.asset_check(asset="projector_checkpoint")
def projector_loss_fell(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Stage 1b learnt: its loss on steps not trained on fell."""
    return loss_check(_record(context, lake, trainer, "projector"), severity=severity(trainer))


@dg.asset_check(asset="joint_checkpoint")
def joint_loss_fell(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Stage 2 learnt: its loss on steps not trained on fell."""
    return loss_check(_record(context, lake, trainer, "joint"), severity=severity(trainer))


@dg.asset_check(asset="long_context_checkpoint")
def long_context_loss_fell(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Stage 3 learnt on its first stretch: its loss on steps not trained on fell."""
    return loss_check(_record(context, lake, trainer, "long_context"), severity=severity(trainer))


@dg.asset_check(asset="longest_context_checkpoint")
def longest_context_loss_fell(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Stage 3 learnt on its second stretch: its loss on steps not trained on fell."""
    return loss_check(_record(context, lake, trainer, "longest_context"), severity=severity(trainer))


@dg.asset_check(asset="vit_caption_evaluation")
def tower_sees_its_images(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """The vision tower looks: held-out captions are likelier with their own image than with another's."""
    return sight_check(_output(context, lake, trainer, "vit_caption_evaluation"), severity=severity(trainer))


@dg.asset_check(asset="projector_caption_evaluation")
def true_images_beat_shuffled_ones(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """The model looks: held-out captions are likelier with their own image than with another's."""
    return sight_check(_output(context, lake, trainer, "projector_caption_evaluation"), severity=severity(trainer))


@dg.asset_check(asset="longest_context_checkpoint")
def lineage_is_complete(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.AssetCheckResult:
    """Every ancestor of the last checkpoint is in the lake, and so is every plan they were trained on."""
    return lineage_check(lake.open(), _output(context, lake, trainer, "longest_context_checkpoint")["checkpoint"])


def severity(trainer: TrainerResource) -> dg.AssetCheckSeverity:
    """Return how much a failure says: at toy scale nobody learns anything in six steps."""
    return WARN if trainer.scale == "toy" else ERROR


def fill_check(plan: dict[str, Any], *, severity: dg.AssetCheckSeverity = ERROR) -> dg.AssetCheckResult:
    """Return whether a plan's mean fill reaches the floor."""
    fill = float(plan["fill"])
    return dg.AssetCheckResult(
        passed=fill >= MIN_FILL, severity=severity, metadata={"fill": fill, "at least": MIN_FILL}
    )


def share_check(
    record: dict[str, Any], planned: float | None, *, severity: dg.AssetCheckSeverity = ERROR
) -> dg.AssetCheckResult:
    """Return whether the vision share counted from batches is the planned one, within half a point."""
    counted, spread = (float(record["metrics"][name]) for name in ("vision_share", "vision_share_std"))
    passed = planned is None or abs(counted - planned) <= SHARE_TOLERANCE
    return dg.AssetCheckResult(
        passed=passed,
        severity=severity,
        metadata={
            "counted": counted,
            "spread from step to step": spread,
            "recipe": planned or 0.0,
            "tolerance": SHARE_TOLERANCE,
        },
    )


def loss_check(record: dict[str, Any], *, severity: dg.AssetCheckSeverity = ERROR) -> dg.AssetCheckResult:
    """Return whether the loss on planned steps that were not trained on is lower after training than before."""
    before, after = float(record["metrics"]["probe_before"]), float(record["metrics"]["probe_after"])
    return dg.AssetCheckResult(passed=after < before, severity=severity, metadata={"before": before, "after": after})


def sight_check(metrics: dict[str, Any], *, severity: dg.AssetCheckSeverity = ERROR) -> dg.AssetCheckResult:
    """Return whether captions cost less with their own image than with another's."""
    true, shuffled = float(metrics["true_loss"]), float(metrics["shuffled_loss"])
    return dg.AssetCheckResult(passed=true < shuffled, severity=severity, metadata={"true": true, "shuffled": shuffled})


def lineage_check(lake: Store, checkpoint: str) -> dg.AssetCheckResult:
    """Return whether each ancestor of `checkpoint`, and the plan of each, is in the lake."""
    plan_of: dict[str, str] = {}
    missing: list[str] = []
    ahead = [checkpoint]
    while ahead:
        key = ahead.pop()
        record = checkpoint_record(lake, key)
        if record is None:
            missing.append(key)
            continue
        plan_of[key] = record["plan"]
        ahead += sorted(set(record["config"]["initial"].values()) - set(plan_of) - set(missing))
    plans = sorted(set(plan_of.values()))
    missing += [plan for plan in plans if not any(lake.list(f"k25/plans/{plan}/plan.json"))]
    return dg.AssetCheckResult(
        passed=not missing,
        metadata={"checkpoints": dg.MetadataValue.json(plan_of), "missing": dg.MetadataValue.json(missing)},
    )


def _output(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource, asset: str
) -> dict[str, Any]:
    return read_output(lake.open(), asset, scale=trainer.scale, edition=edition_of(context))


def _record(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource, stage: str
) -> dict[str, Any]:
    checkpoint = _output(context, lake, trainer, ASSET_OF_STAGE[stage])["checkpoint"]
    record = checkpoint_record(lake.open(), checkpoint)
    if record is None:
        raise CheckpointError(f"{checkpoint} is not in the lake any more; materialise {ASSET_OF_STAGE[stage]} again")
    return record
