"""OpenLineage: what Dagster's runs read and made, told to a collector when they end. Off unless OPENLINEAGE_URL is set.

The maintained Python client sends the events and reads its own settings (OPENLINEAGE_URL, OPENLINEAGE_API_KEY, ...).
A step is a run of its own below the Dagster run; a dataset is named by the lake and the asset, its version is the
asset's data version, so that a collector knows the same names and digests as the lake does.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import dagster as dg

from assets.resources import LakeResource, openlineage_from_env
from k25_pipelines.errors import K25Error

if TYPE_CHECKING:
    from dagster._core.events.log import EventLogEntry
    from openlineage.client import OpenLineageClient

URL = "OPENLINEAGE_URL"
"""The client's own variable."""
PRODUCER = "https://github.com/OpenLineage/OpenLineage/tree/main/client/python"
JOBS = "k25"
"""Namespace of jobs."""
INPUT_TAG = "dagster/input_data_version/"
VERSION_TAG = "dagster/data_version"
ENDED = {
    dg.DagsterRunStatus.SUCCESS: "COMPLETE",
    dg.DagsterRunStatus.FAILURE: "FAIL",
    dg.DagsterRunStatus.CANCELED: "ABORT",
}
STEP_ENDED = {"STEP_SUCCESS": "COMPLETE", "STEP_FAILURE": "FAIL"}


def sensors() -> list[dg.SensorDefinition]:
    """Return a sensor for each way in which runs end; none where no collector is named.

    Raises:
        K25Error: a collector is named, and its client is not installed.
    """
    if not openlineage_from_env():
        return []
    if find_spec("openlineage") is None:
        raise K25Error(f"{URL} is set, and its client is not installed: pip install 'k25-pipelines[openlineage]'")
    return [_sensor(status) for status in ENDED]


def _sensor(status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=status,
        name=f"openlineage_{ENDED[status].lower()}",
        description="Tell the collector at OPENLINEAGE_URL what the run read and made.",
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def tell(context: dg.RunStatusSensorContext, lake: LakeResource) -> None:
        from openlineage.client import OpenLineageClient

        told = emit(OpenLineageClient(), context.instance, context.dagster_run, lake=lake.url)
        context.log.info(f"{told} events told to {openlineage_from_env()}")

    return tell


def emit(client: "OpenLineageClient", instance: dg.DagsterInstance, run: dg.DagsterRun, *, lake: str) -> int:
    """Send the events of a run that ended, the same under the same ids whenever it is asked for; return how many.

    Args:
        client: of the collector.
        instance: whose event log is read.
        run: the run.
        lake: URL of the lake, in which datasets are named.
    """
    entries = [entry for entry in instance.all_logs(run.run_id) if entry.dagster_event is not None]
    events = [*_steps(instance, entries, run, lake), *_whole(entries, run)]
    for event in events:
        client.emit(event)
    return len(events)


def _whole(entries: "list[EventLogEntry]", run: dg.DagsterRun) -> Iterator[Any]:
    """Yield start and end of the Dagster run itself."""
    if entries:
        yield _event("START", entries[0].timestamp, run.run_id, run.job_name)
        yield _event(ENDED[run.status], entries[-1].timestamp, run.run_id, run.job_name)


def _steps(
    instance: dg.DagsterInstance, entries: "list[EventLogEntry]", run: dg.DagsterRun, lake: str
) -> Iterator[Any]:
    """Yield start and end of each step, the end with what was read and made."""
    from openlineage.client.facet_v2 import parent_run

    parent = parent_run.ParentRunFacet(
        run=parent_run.Run(runId=run.run_id), job=parent_run.Job(namespace=JOBS, name=run.job_name)
    )
    made: dict[str, list[dg.AssetMaterialization]] = {}
    for entry in entries:
        event, step = entry.dagster_event, entry.step_key
        if event is None or step is None:
            continue
        told = str(uuid5(NAMESPACE_URL, f"{run.run_id}/{step}")), f"{run.job_name}.{step}"
        if event.event_type_value == "STEP_START":
            yield _event("START", entry.timestamp, *told, parent=parent)
        elif event.event_type_value == "ASSET_MATERIALIZATION":
            made.setdefault(step, []).append(event.step_materialization_data.materialization)
        elif state := STEP_ENDED.get(event.event_type_value):
            mine = made.get(step, [])
            read = [dataset for each in mine for dataset in _inputs(instance, each, lake, entry.timestamp)]
            written = [_output(each, lake) for each in mine]
            yield _event(state, entry.timestamp, *told, parent=parent, inputs=read, outputs=written)


def _event(
    state: str,
    timestamp: float,
    run: str,
    job: str,
    *,
    parent: Any = None,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
) -> Any:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

    return RunEvent(
        eventType=RunState[state],
        eventTime=datetime.fromtimestamp(timestamp, UTC).isoformat(),
        run=Run(runId=run, facets={"parent": parent} if parent else {}),
        job=Job(namespace=JOBS, name=job),
        producer=PRODUCER,
        inputs=list(inputs),
        outputs=list(outputs),
    )


def _inputs(instance: dg.DagsterInstance, made: dg.AssetMaterialization, lake: str, until: float) -> Iterator[Any]:
    """Yield what an asset was made from: assets, or those partitions of them that it can have read, with versions."""
    from openlineage.client.event_v2 import InputDataset

    for tag, noted in sorted((made.tags or {}).items()):
        if not tag.startswith(INPUT_TAG):
            continue
        key = dg.AssetKey.from_user_string(tag.removeprefix(INPUT_TAG))
        partitions = sorted(instance.get_materialized_partitions(key))
        if made.partition in partitions:
            version = _version_of(instance, key, str(made.partition), until)
            yield InputDataset(namespace=lake, name=_name(key, made.partition), facets=_version(version))
        elif partitions:  # Dagster notes one digest for all of them
            yield from (InputDataset(namespace=lake, name=_name(key, each)) for each in partitions)
        else:
            yield InputDataset(namespace=lake, name=_name(key), facets=_version(noted))


def _version_of(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str, until: float) -> str:
    """Return the version that a partition had at a time."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition], before_timestamp=until)
    found = instance.fetch_materializations(wanted, limit=1).records
    made = found[0].asset_materialization if found else None
    return (made.tags or {}).get(VERSION_TAG, "") if made else ""


def _name(key: dg.AssetKey, partition: str | None = None) -> str:
    """Return what a collector calls an asset, or a partition of it."""
    return "/".join([key.to_user_string(), *([partition] if partition else [])])


def _output(made: dg.AssetMaterialization, lake: str) -> Any:
    """Return what was made: asset and partition, version, and how many rows it has."""
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    rows = made.metadata.get("dagster/row_count")
    count = rows.value if rows else None
    counted = statistics.OutputStatisticsOutputDatasetFacet(rowCount=count) if isinstance(count, int) else None
    return OutputDataset(
        namespace=lake,
        name=_name(made.asset_key, made.partition),
        facets=_version((made.tags or {}).get(VERSION_TAG, "")),
        outputFacets={"outputStatistics": counted} if counted else {},
    )


def _version(version: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)} if version else {}
