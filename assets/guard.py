"""What a scheduled retraining may cost: its stages are quoted before it starts, and its run ends where it overruns."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from assets.plans import edition_recipe
from assets.resources import RetrainingSettings, TrainerResource
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.storage.store import Store

QUOTED_TAG = "k25/quoted_usd"
"""Tag of a retraining's run: what it was quoted at."""
MONTH_SECONDS = 30 * 86400
OVERRUN = 2.0
"""A run is ended after so many times the hours of its quote."""
LEAST_SECONDS = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a retraining is quoted at."""

    usd: float
    hours: float

    def tags(self) -> dict[str, str]:
        """Return the tags of its run; run monitoring enforces the second."""
        seconds = max(LEAST_SECONDS, math.ceil(self.hours * 3600 * OVERRUN))
        return {QUOTED_TAG: f"{self.usd:.2f}", "dagster/max_runtime": str(seconds)}


def price(lake: Store, trainer: TrainerResource, settings: RetrainingSettings, *, edition: str) -> Price:
    """Return what the stages of a retraining take together, one after the other, as `k25 quote` has it."""
    from k25_pipelines.planning import Rates, quote  # loads the codecs, which the definitions do without

    quotes = [
        quote(
            lake,
            parse_recipe(edition_recipe(stage, scale=trainer.scale, edition=edition)),
            gpus=trainer.num_ranks,
            rates=Rates(**settings.rates),
        )
        for stage in settings.stages
    ]
    return Price(usd=sum(each["usd"]["total"] for each in quotes), hours=sum(each["hours"] for each in quotes))


def refusal(asked: Price, settings: RetrainingSettings, *, spent_usd: float) -> str | None:
    """Return why a retraining may not start, in words; None if it may."""
    if settings.most_usd is not None and asked.usd > settings.most_usd:
        return (
            f"the retraining is quoted at ${asked.usd:,.2f}, and K25_RETRAIN_USD allows ${settings.most_usd:,.2f}; "
            "raise it, or name fewer stages in K25_RETRAIN_STAGES"
        )
    most = settings.most_usd_per_month
    if most is not None and spent_usd + asked.usd > most:
        return (
            f"the retrainings of the last 30 days were quoted at ${spent_usd:,.2f}, this one at ${asked.usd:,.2f}, "
            f"and K25_RETRAIN_USD_PER_MONTH allows ${most:,.2f}; raise it, or wait"
        )
    return None


def spent_usd(instance: dg.DagsterInstance, job: str) -> float:
    """Return what the runs of a job of the last 30 days were quoted at together."""
    since = time.time() - MONTH_SECONDS
    runs: Iterable[dg.RunRecord] = instance.get_run_records(dg.RunsFilter(job_name=job))
    quoted = [each.dagster_run.tags.get(QUOTED_TAG) for each in runs if each.create_timestamp.timestamp() >= since]
    return sum(float(told) for told in quoted if told)
