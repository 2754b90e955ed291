"""The code location: all assets, checks, jobs, schedules and resources in one object. Loading it loads no torch."""

import dagster as dg

from assets import checks, data_layer, evaluation, plans, pretraining
from assets.resources import resources_from_env
from assets.schedules import JOBS, SCHEDULES, SENSORS

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([data_layer, plans, pretraining, evaluation]),
    asset_checks=dg.load_asset_checks_from_modules([checks]),
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources=resources_from_env(),
    executor=dg.in_process_executor,
)
"""Steps run inside the run's process: trainers are processes of their own, and a step costs 0.3 s, not 5."""
