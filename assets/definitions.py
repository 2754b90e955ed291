"""The code location: all assets, checks, jobs, schedules and resources in one object. Loading it loads no torch."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets import blocking, checks, data_layer, evaluation, ingestion, plans, pretraining
from assets.automation import follow_changed_data
from assets.resources import resources_from_env
from assets.schedules import JOBS, SCHEDULES, SENSORS


def definitions(resources: Mapping[str, Any]) -> dg.Definitions:
    """Return the whole graph over the given resources.

    Steps run inside the run's process: trainers are processes of their own, and a step costs 0.3 s, not 5.
    """
    graph = dg.Definitions(
        assets=dg.load_assets_from_modules([data_layer, ingestion, plans, pretraining, evaluation]),
        asset_checks=[*dg.load_asset_checks_from_modules([checks]), *blocking.CHECKS],
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources=resources,
        executor=dg.in_process_executor,
    )
    return follow_changed_data(graph)


defs = definitions(resources_from_env())
"""What the environment describes: Dagster loads this."""
