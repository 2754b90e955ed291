"""What each asset last made, by name: a small object of the lake per scale, edition and asset; checkpoint records.

The objects are pointers to content-named things (plans, checkpoints), so writing one again changes no older
result. An edition is a training of its own: `main`, or the scheduled retraining of a date.
"""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from k25_pipelines.errors import K25Error, ObjectNotFoundError
from k25_pipelines.storage.store import Store

MAIN = "main"
EDITION_TAG = "k25/edition"
"""Tag of a Dagster run: the edition that its training assets belong to; `main` if absent."""


class NotMadeError(K25Error):
    """An asset needs another that has not been materialised."""


def edition_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> str:
    """Return the edition that the Dagster run belongs to."""
    return context.run.tags.get(EDITION_TAG, MAIN)


def write_output(lake: Store, asset: str, output: Mapping[str, Any], *, scale: str, edition: str) -> None:
    """Publish what `asset` made last."""
    lake.put(_key(asset, scale, edition), json.dumps(output, indent=1, sort_keys=True).encode())


def read_output(lake: Store, asset: str, *, scale: str, edition: str) -> dict[str, Any]:
    """Return what `asset` made last in the edition, or in the main one where the edition has not made it.

    Raises:
        NotMadeError: neither has.
    """
    for each in dict.fromkeys((edition, MAIN)):
        try:
            return json.loads(lake.get(_key(asset, scale, each)))
        except ObjectNotFoundError:
            continue
    raise NotMadeError(f"{asset} (scale {scale}, edition {edition}) has not been made; materialise it first")


def checkpoint_record(lake: Store, key: str) -> dict[str, Any] | None:
    """Return the record of the checkpoint under `key`, with its `key`; None if it is not published."""
    try:
        return {"key": key, **json.loads(lake.get(f"{key}/record.json"))}
    except ObjectNotFoundError:
        return None


def checkpoint_lines(lake: Store, key: str, name: str) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file of the checkpoint under `key`, such as `metrics`; none where it has no such."""
    try:
        text = lake.get(f"{key}/{name}.jsonl").decode()
    except ObjectNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _key(asset: str, scale: str, edition: str) -> str:
    return f"k25/outputs/{scale}/{edition}/{asset}.json"
