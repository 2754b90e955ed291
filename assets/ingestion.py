"""What arrives: the daily incremental index, a partition a day, and the sensor of a bucket prefix."""

from datetime import timedelta

import dagster as dg

from assets.alerts import tell_failure
from assets.data_layer import GROUP, OWNERS, index_one, log_progress
from assets.partitions import DATASETS, DAYS, PARTITION_SET
from assets.policies import STORE, retry_the_store
from assets.reporting import materialized, table
from assets.resources import LakeResource, inbox_from_env, is_on
from k25_pipelines.ingestion import day_rows, ingest, take_in
from k25_pipelines.keys import digest

VERSION_TAG = "dagster/data_version"


@dg.asset(
    partitions_def=DAYS,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"s3", "parquet"},
    code_version="1",
    pool=STORE,
)
@retry_the_store
def daily_index(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """What every registered dataset gained on a day: only objects that are new are read.

    A dataset that changed is told to the graph as `dataset_manifest` of its partition, with its check.
    """
    objects, day = lake.open(), context.partition_key

    def index(name: str) -> None:
        made = index_one(objects, name)
        if not (made.metadata or {}).get("cached"):
            tell_manifest(context, name, made)

    ingest(objects, day, index=index, progress=log_progress(context))
    rows = day_rows(objects, day)
    total = {name: sum(row[name] for row in rows) for name in ("lines", "bytes", "objects", "quarantined")}
    shown = {"dagster/row_count": total["lines"], **total, "datasets": table(rows)}
    return materialized(digest(day, rows), metadata=shown)


def tell_manifest(context: dg.AssetExecutionContext, name: str, made: dg.MaterializeResult) -> None:
    """Log the materialisation of a dataset's manifest, and what its checks found, from another asset's run."""
    key, version = dg.AssetKey("dataset_manifest"), made.data_version
    context.instance.add_dynamic_partitions(PARTITION_SET, [name])
    tags = {VERSION_TAG: version.value} if version else {}
    context.log_event(dg.AssetMaterialization(key, partition=name, metadata=made.metadata, tags=tags))
    for check in made.check_results or []:
        if not check.passed:
            context.log.error(f"{name}: {check.check_name} failed; k25 checks {name} says why")
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=str(check.check_name),
                passed=check.passed,
                metadata={**check.metadata, "dataset": dg.MetadataValue.text(name)},
                blocking=True,
            )
        )


index_day = dg.define_asset_job(
    "index_day",
    selection=[daily_index],
    description="Index what is new in every dataset; a partition a day.",
    tags={"dagster/max_runtime": str(12 * 3600)},
    hooks={tell_failure},
)


@dg.schedule(
    cron_schedule="30 0 * * *",
    job=index_day,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING if is_on("K25_DAILY") else dg.DefaultScheduleStatus.STOPPED,
)
def index_every_day(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Index yesterday's arrivals, half an hour after midnight (UTC)."""
    yesterday = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
    return dg.RunRequest(run_key=yesterday, partition_key=yesterday)


@dg.sensor(minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def arrivals(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """Register datasets that announce themselves below K25_INBOX by a card; `registered_datasets` has them indexed."""
    inbox = inbox_from_env()
    if not inbox:
        return dg.SkipReason("K25_INBOX names no bucket prefix; new datasets are registered by hand: k25 register")
    taken, wrong = take_in(lake.open(), inbox)
    for name, words in wrong.items():
        context.log.error(f"card of {name}: {words}")
    new = sorted(set(taken) - set(context.instance.get_dynamic_partitions(PARTITION_SET)))
    if not new:
        refused = f"; {len(wrong)} cards are wrong: {', '.join(wrong)}" if wrong else ""
        return dg.SkipReason(f"all {len(taken)} datasets of {inbox} are registered{refused}")
    return dg.SensorResult(dynamic_partitions_requests=[DATASETS.build_add_request(new)])
