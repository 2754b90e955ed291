"""Failures told: a line in the lake, and a message to a webhook, at once by a hook and, for lost runs, by a sensor.

k25/alerts/<run id>/<what failed>.json    job, partition, what failed, its words; an asset, or `run`
"""

import json
import urllib.error
import urllib.request
from typing import Any

import dagster as dg

from assets.resources import LakeResource, webhook_from_env
from k25_pipelines.errors import K25Error

ALERTS = "k25/alerts/"
TIMEOUT_SECONDS = 10.0
MOST_WORDS = 2000


@dg.failure_hook(name="tell_failure", required_resource_keys={"lake"})
def tell_failure(context: dg.HookContext) -> None:
    """Tell an asset's failure as it happens, also where no daemon runs."""
    error = context.op_exception
    run = context.instance.get_run_by_id(context.run_id) if context.instance else None
    told = alert(
        run_id=context.run_id,
        job=context.job_name,
        what=context.op.name,
        partition=run.tags.get("dagster/partition") if run else None,
        words=str(error) if error else "(no words)",
    )
    context.log.info(tell(told, context.resources.lake))


@dg.run_failure_sensor(
    name="failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    monitor_all_code_locations=False,
)
def failed_runs(context: dg.RunFailureSensorContext, lake: LakeResource) -> None:
    """Tell runs that failed as a whole: lost with their machine, never started, or ended for taking too long."""
    run = context.dagster_run
    if lake.url and any(lake.open().list(f"{ALERTS}{run.run_id}/")):
        return  # the hook was there
    told = alert(
        run_id=run.run_id,
        job=run.job_name,
        what="run",
        partition=run.tags.get("dagster/partition"),
        words=context.failure_event.message or "(no words)",
    )
    context.log.info(tell(told, lake))


def alert(*, run_id: str, job: str, what: str, partition: str | None, words: str) -> dict[str, Any]:
    """Return what is told of a failure: plain data, with the `text` that chat services show."""
    where = f"{job} [{partition}]" if partition else job
    text = f"k25: {what} failed in {where} (run {run_id[:8]}): {words[:MOST_WORDS]}"
    return {"run": run_id, "job": job, "what": what, "partition": partition, "words": words[:MOST_WORDS], "text": text}


def tell(told: dict[str, Any], lake: LakeResource) -> str:
    """Keep an alert in the lake and send it to K25_ALERT_WEBHOOK; return what was done, in words.

    A failure to tell is said, and hides no failure that was to be told.
    """
    done = []
    try:
        lake.open().put(f"{ALERTS}{told['run']}/{told['what']}.json", _json(told))
        done.append("kept in the lake")
    except K25Error as error:
        done.append(f"not kept in the lake: {error}")
    if url := webhook_from_env():
        request = urllib.request.Request(url, data=_json(told), headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                done.append("sent")
        except (urllib.error.URLError, OSError, ValueError) as error:
            done.append(f"not sent to K25_ALERT_WEBHOOK: {error}")
    return f"alert {', '.join(done)}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
