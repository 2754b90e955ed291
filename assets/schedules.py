"""What starts runs: jobs for hand and backfill, the scheduled retraining, the sensor of new datasets."""

import dagster as dg

from assets import automation, data_layer, guard, ingestion, openlineage, plans, pretraining
from assets.alerts import failed_runs, tell_failure
from assets.outputs import EDITION_TAG
from assets.partitions import DATASETS, PARTITION_SET
from assets.pretraining import ASSET_OF_STAGE
from assets.resources import LakeResource, lake_from_env, retraining_from_env, trainer_from_env
from k25_pipelines.catalog.registry import dataset_names, dataset_versions

RUNNING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
RETRAINING = retraining_from_env(tuple(ASSET_OF_STAGE))
HOOKS = {tell_failure}

index_datasets = dg.define_asset_job(
    "index_datasets",
    selection=[data_layer.dataset_manifest, data_layer.dataset_lengths, data_layer.dataset_insight],
    description="Index a registered dataset, count its tokens and look at it; a partition a dataset.",
    hooks=HOOKS,
)
pretraining_job = dg.define_asset_job(
    "pretraining",
    selection=dg.AssetSelection.groups(plans.GROUP, pretraining.GROUP)
    | dg.AssetSelection.assets(data_layer.lake_catalog),
    description="Plan and train every stage on the datasets as they are indexed.",
    hooks=HOOKS,
)
demo = dg.define_asset_job(
    "demo",
    selection=dg.AssetSelection.tag("k25/demo", "")
    - dg.AssetSelection.assets(data_layer.dataset_manifest, data_layer.dataset_lengths, data_layer.dataset_insight),
    description="The main job from the catalog to the report; `index_datasets` comes before it.",
    hooks=HOOKS,
)
retraining = dg.define_asset_job(
    "retraining",
    selection=dg.AssetSelection.assets(
        data_layer.lake_catalog,
        *(name for stage in RETRAINING.stages for name in (f"{stage}_plan", ASSET_OF_STAGE[stage])),
    ),
    description="Train the stages anew on today's datasets, as an edition of its own.",
    hooks=HOOKS,
)


@dg.schedule(
    cron_schedule=RETRAINING.cron,
    job=retraining,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING if RETRAINING.is_on else dg.DefaultScheduleStatus.STOPPED,
)
def nightly_retraining(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Retrain on what the datasets are now: a new edition, named by the scheduled time, with a seed of its own.

    Plans, checkpoints and outputs of an edition are new objects: no older run is touched. The same tick
    asked for twice is the same edition, and Dagster launches a run key once. With K25_RETRAIN_USD or
    K25_RETRAIN_USD_PER_MONTH it is quoted first, and not started where it would cost more.
    """
    edition = context.scheduled_execution_time.strftime("%Y%m%dT%H%MZ")
    busy = context.instance.get_run_records(dg.RunsFilter(job_name="retraining", statuses=RUNNING), limit=1)
    if busy:
        return dg.SkipReason(f"retraining run {busy[0].dagster_run.run_id} has not ended yet")
    tags = {EDITION_TAG: edition}
    if RETRAINING.most_usd is not None or RETRAINING.most_usd_per_month is not None:
        price = guard.price(lake_from_env().open(), trainer_from_env(), RETRAINING, edition=edition)
        if refused := guard.refusal(price, RETRAINING, spent_usd=guard.spent_usd(context.instance, "retraining")):
            return dg.SkipReason(refused)
        tags |= price.tags()
    return dg.RunRequest(run_key=edition, tags=tags)


@dg.sensor(job=index_datasets, minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def registered_datasets(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """Make a partition of each dataset that is new to the lake; index, once, those that somebody registered.

    Datasets that only lie ready (`raw/datasets.json`) get their partition and wait for a hand.
    """
    objects = lake.open()
    names, known = data_layer.known_datasets(objects), context.instance.get_dynamic_partitions(PARTITION_SET)
    new = sorted(set(names) - set(known))
    unindexed = [name for name in dataset_names(objects) if not dataset_versions(objects, name)]
    if not new and not unindexed:
        return dg.SkipReason(f"all {len(names)} datasets are known, and the registered ones indexed")
    return dg.SensorResult(
        dynamic_partitions_requests=[DATASETS.build_add_request(new)],
        run_requests=[dg.RunRequest(run_key=f"index-{name}", partition_key=name) for name in unindexed],
    )


JOBS = [index_datasets, ingestion.index_day, pretraining_job, demo, retraining]
"""Every job, for the definitions."""
SCHEDULES = [nightly_retraining, ingestion.index_every_day]
"""Every schedule."""
SENSORS = [registered_datasets, ingestion.arrivals, failed_runs, automation.changed_data, *openlineage.sensors()]
"""Every sensor."""
