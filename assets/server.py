"""Runs handed over to a Dagster web server by its GraphQL: it queues them under its own limits and pools."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from k25_pipelines.errors import K25Error

if TYPE_CHECKING:
    from assets.backfill import Item

TIMEOUT_SECONDS = 60.0
LAUNCH = """mutation($executionParams: ExecutionParams!) { launchPipelineExecution(executionParams: $executionParams) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on RunConfigValidationInvalid { errors { message } }
  ... on PipelineNotFoundError { message } ... on UnauthorizedError { message } ... on PythonError { message } } }"""
RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { __typename
  ... on Runs { results { status tags { key value } } } ... on PythonError { message } } }"""


class Server:
    """A web server, such as http://127.0.0.1:3000."""

    def __init__(self, url: str, *, location: str = "k25") -> None:
        """Name the server and its code location."""
        self.url, self.location = url.rstrip("/"), location

    def states(self, backfill: str) -> Mapping[str, str]:
        """Return the newest status of each item of a backfill, by its tag."""
        from assets.backfill import BACKFILL_TAG, ITEM_TAG

        told = self._ask(RUNS, {"filter": {"tags": [{"key": BACKFILL_TAG, "value": backfill}]}})["runsOrError"]
        runs = [({tag["key"]: tag["value"] for tag in run["tags"]}, run["status"]) for run in told["results"]]
        return {tags[ITEM_TAG]: status for tags, status in reversed(runs)}

    def start(self, item: "Item", backfill: str) -> str:
        """Hand the run of an item over; return that it is queued, or why not."""
        partition = {"dagster/partition": item.partition} if item.partition else {}
        tags = {**item.tags(backfill), **partition}
        where = {"repositoryLocationName": self.location, "repositoryName": "__repository__", "jobName": item.job}
        chosen = {"assetSelection": [{"path": [name]} for name in item.assets]} if item.assets else {}
        params = {
            "mode": "default",
            "selector": {**where, **chosen},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        told = self._ask(LAUNCH, {"executionParams": params})["launchPipelineExecution"]
        if told["__typename"] == "LaunchRunSuccess":
            return f"QUEUED as {told['run']['runId']}"
        words = told.get("message") or "; ".join(error["message"] for error in told.get("errors", []))
        return f"FAILURE: {told['__typename']} {words}"

    def _ask(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                told = json.loads(answer.read())
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise K25Error(f"no Dagster web server answers at {self.url}: {error}; start one with: k25 ui") from error
        if told.get("errors"):
            raise K25Error(f"{self.url} refused: {told['errors'][0]['message']}")
        return told["data"]
