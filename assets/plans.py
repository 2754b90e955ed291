"""Plans as assets: which samples, under which draws, fill which pack of which step of each stage."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from assets.data_layer import DEMO, OWNERS, lake_catalog
from assets.outputs import MAIN, edition_of, write_output
from assets.pages import plan_metadata
from assets.pictures import curves
from assets.policies import STORE, retry_the_store
from assets.reporting import materialized, picture, table
from assets.resources import LakeResource, TrainerResource
from k25_pipelines.keys import digest, random_key
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.segment import PLAN_VERSION
from trainers.recipes import stage_recipe

if TYPE_CHECKING:
    from k25_pipelines.planning import Plan

GROUP = "plans"
COMMON: dict[str, Any] = {
    "deps": [lake_catalog],
    "group_name": GROUP,
    "pool": STORE,
    "owners": OWNERS,
    "kinds": {"arrow", "parquet"},
    "tags": DEMO,
    "code_version": str(PLAN_VERSION),
}


@dg.asset(**COMMON)
def warmup_plan(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """What the language model reads while it warms up: text alone."""
    return plan_stage(context, lake, trainer, "warmup")


@dg.asset(**COMMON)
def vit_plan(context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource) -> dg.MaterializeResult:
    """Stage 1a: images with captions, for the vision tower."""
    return plan_stage(context, lake, trainer, "vit")


@dg.asset(**COMMON)
def projector_plan(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 1b: images with captions, for the projector between the two towers."""
    return plan_stage(context, lake, trainer, "projector")


@dg.asset(**COMMON)
def joint_plan(context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource) -> dg.MaterializeResult:
    """Stage 2: text, images, boxes and video together, at the recipe's share of vision tokens."""
    return plan_stage(context, lake, trainer, "joint")


@dg.asset(**COMMON)
def long_context_plan(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 3, first stretch: longer packs with long documents and video."""
    return plan_stage(context, lake, trainer, "long_context")


@dg.asset(**COMMON)
def longest_context_plan(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource
) -> dg.MaterializeResult:
    """Stage 3, second stretch: the longest packs, each about one long document."""
    return plan_stage(context, lake, trainer, "longest_context")


@retry_the_store
def plan_stage(
    context: dg.AssetExecutionContext, lake: LakeResource, trainer: TrainerResource, stage: str
) -> dg.MaterializeResult:
    """Plan a stage from the lake's current datasets; an unchanged plan is found, not made again."""
    from k25_pipelines.planning import make_plan, open_plan  # loads the codecs, which the definitions do without

    objects, edition = lake.open(), edition_of(context)
    recipe = parse_recipe(edition_recipe(stage, scale=trainer.scale, edition=edition))
    plan = open_plan(objects, make_plan(objects, recipe))
    summary, steps = plan.summary(), step_table(plan)
    last_segment = plan.segment_of(plan.num_steps - 1).digest
    output = {"plan": plan.id, "segment": last_segment, "steps": plan.num_steps}
    output |= {"recipe_vision_share": recipe.vision_share, **summary}
    write_output(objects, f"{stage}_plan", output, scale=trainer.scale, edition=edition)
    return materialized(
        digest(plan.id, last_segment),
        metadata={
            "plan": plan.id,
            **plan_metadata(objects, plan, trainer),
            "edition": edition,
            "dagster/row_count": int(summary["samples"]),
            **{name: value for name, value in summary.items() if isinstance(value, int | float)},
            "epochs": table([{"source": name, "epochs": value} for name, value in summary["epochs"].items()]),
            "datasets": plan.datasets,
            "shares": picture(_shares_picture(stage, steps, recipe.vision_share)),
        },
    )


def edition_recipe(stage: str, *, scale: str, edition: str) -> dict[str, Any]:
    """Return a stage's recipe; an edition other than the main one has a name and a seed of its own."""
    recipe = stage_recipe(stage, scale)
    if edition == MAIN:
        return recipe
    return {**recipe, "name": f"{recipe['name']}-{edition}", "seed": edition_seed(edition)}


def edition_seed(edition: str) -> int:
    """Return the seed that an edition's name stands for."""
    return random_key("edition", edition) >> 33


def step_table(plan: "Plan") -> dict[str, np.ndarray]:
    """Return fill and vision share of each step of a plan, float64 [steps]."""
    capacity = plan.recipe.pack_tokens * plan.recipe.packs_per_step
    tokens, vision = np.zeros(plan.num_steps), np.zeros(plan.num_steps)
    for step in range(plan.num_steps):
        rows = plan.rows(step)
        tokens[step] = np.sum(rows["num_tokens"].to_numpy())
        vision[step] = np.sum(rows["vision_tokens"].to_numpy())
    return {"fill": tokens / capacity, "vision share": vision / np.maximum(1, tokens)}


def _shares_picture(stage: str, steps: dict[str, np.ndarray], vision_share: float | None) -> bytes:
    return curves(steps, title=f"{stage}: fill and vision share of each step", unit="share", level=vision_share)
