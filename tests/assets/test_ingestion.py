"""The graph over what arrives: days, cards, and what follows a changed dataset by itself."""

import json
from datetime import UTC, datetime

import dagster as dg
import pytest

from assets.ingestion import arrivals, index_every_day
from assets.instance import add_datasets
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import dataset_names, load_manifest, register

DAY = "2026-11-20"


def register_notes(place) -> None:
    place.lake.put("raw/notes/a.jsonl", b'{"text": "one"}\n{"text": "two"}')
    uri = f"{place.lake.url}/raw/notes"
    register(place.lake, Registration(name="notes", uri=uri, kind="jsonl", licence="MIT", source="tests"))


def version_of(place, asset: str, partition: str) -> str:
    records = place.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    )
    return records.records[0].asset_materialization.tags["dagster/data_version"]


def test_a_day_indexes_what_is_new_and_tells_the_datasets_partition(place):
    register_notes(place)
    place.make(partition=DAY, job="index_day")
    assert version_of(place, "dataset_manifest", "notes") == load_manifest(place.lake, "notes").digest
    assert place.metadata("daily_index")["dagster/row_count"] == 2


def test_a_day_made_again_has_the_same_data_version(place):
    register_notes(place)
    place.make(partition=DAY, job="index_day")
    before = version_of(place, "daily_index", DAY)
    place.make(partition=DAY, job="index_day")
    assert version_of(place, "daily_index", DAY) == before


def test_the_schedule_asks_for_yesterday():
    context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 24, 0, 30, tzinfo=UTC))
    request = index_every_day(context)
    assert (request.partition_key, request.run_key) == ("2026-11-23", "2026-11-23")


def test_a_card_in_the_bucket_becomes_a_dataset_and_a_partition(place, monkeypatch):
    monkeypatch.setenv("K25_INBOX", f"{place.lake.url}/incoming")
    card = {"kind": "jsonl", "licence": "MIT", "source": "tests"}
    place.lake.put("incoming/_datasets/letters.json", json.dumps(card).encode())
    context = dg.build_sensor_context(place.instance, resources={"lake": place.resources["lake"]})
    [request] = arrivals(context).dynamic_partitions_requests
    assert (request.partition_keys, dataset_names(place.lake)) == (["letters"], ["letters"])


def requested(place, cursor=None):
    return dg.evaluate_automation_conditions(place.defs, place.instance, cursor=cursor)


@pytest.mark.timeout(300)
def test_plans_follow_a_dataset_that_changed_and_no_other(place):
    """The catalog and then the plans follow a new version; the same version made again moves nothing."""
    names = add_datasets(place.instance, place.lake)
    place.index(*names)
    place.make("lake_catalog", "warmup_plan", job="pretraining")
    catalog, plan = dg.AssetKey("lake_catalog"), dg.AssetKey("warmup_plan")
    first = requested(place)
    place.make(partition="code", job="index_datasets")  # made again: the same version
    same = requested(place, first.cursor)
    assert (same.get_num_requested(catalog), same.get_num_requested(plan)) == (0, 0)
    place.lake.put("raw/code/part-1.jsonl", b'{"text": "one more"}')
    place.make(partition="code", job="index_datasets")
    changed = requested(place, same.cursor)
    assert changed.get_num_requested(catalog) == 1


def test_no_trainer_follows_by_itself(place):
    following = [spec for spec in place.defs.resolve_all_asset_specs() if spec.automation_condition]
    assert {spec.group_name for spec in following} == {"data_layer", "plans"}
