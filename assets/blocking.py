"""The check that stands between a plan and its trainers. What it finds is kept in the lake, where trainers look."""

from typing import Any

import dagster as dg

from assets.checks import MIN_FILL, severity
from assets.outputs import edition_of, read_output
from assets.pretraining import ASSET_OF_STAGE
from assets.resources import LakeResource, TrainerResource
from k25_pipelines.storage.store import Store
from k25_pipelines.verdicts import Verdict, VerdictError, plan_subjects, require_passed, write_verdict

CHECK = "may_be_trained_on"


def plan_check(stage: str) -> dg.AssetChecksDefinition:
    """Return the blocking check of a stage's plan, `may_be_trained_on`."""

    @dg.asset_check(
        name=CHECK,
        asset=f"{stage}_plan",
        blocking=True,
        description="Its packs are full, it is as long as its recipe, and no blocking check of its datasets failed.",
    )
    def check(
        context: dg.AssetCheckExecutionContext, lake: LakeResource, trainer: TrainerResource
    ) -> dg.AssetCheckResult:
        from k25_pipelines.planning import open_plan  # loads the codecs, which the definitions do without

        objects = lake.open()
        made = read_output(objects, f"{stage}_plan", scale=trainer.scale, edition=edition_of(context))
        plan = open_plan(objects, made["plan"])
        figures = {"fill": float(made["fill"]), "refused": refused_datasets(objects, plan)}
        figures |= {"steps": plan.num_steps, "recipe_steps": plan.recipe.steps}
        return judged(objects, plan.id, figures, severity=severity(trainer))

    return check


def refused_datasets(lake: Store, plan: Any) -> str:
    """Return why a plan's datasets may not be used, in words; empty if they may."""
    subjects = {words: subject for words, subject in plan_subjects(plan).items() if subject != plan.id}
    try:
        require_passed(lake, subjects)
    except VerdictError as error:
        return str(error)
    return ""


def judged(lake: Store, plan: str, figures: dict[str, Any], *, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    """Return whether a plan may be trained on, and keep it in the lake; low fill alone is a warning at toy scale."""
    is_whole = figures["steps"] >= figures["recipe_steps"] and not figures["refused"]
    passed = is_whole and figures["fill"] >= MIN_FILL
    weight = dg.AssetCheckSeverity.ERROR if not is_whole else severity
    blocking = weight == dg.AssetCheckSeverity.ERROR
    write_verdict(lake, Verdict(subject=plan, check=CHECK, passed=passed, blocking=blocking, figures=figures))
    return dg.AssetCheckResult(passed=passed, severity=weight, metadata=figures)


CHECKS = [plan_check(stage) for stage in ASSET_OF_STAGE]
"""One a stage."""
