"""The data layer's assets on a real lake: what they report, and that unchanged work is found."""

import dagster as dg
import pytest

from k25_pipelines.catalog.registry import load_manifest
from tests.assets.tiny_lake import build


def test_a_dataset_is_indexed_with_its_facts_and_pictures(indexed):
    manifest = load_manifest(indexed.lake, "grounding")
    result = indexed.make("dataset_manifest", partition="grounding", job="index_datasets")
    [made] = result.asset_materializations_for_node("dataset_manifest")
    facts = {name: entry.value for name, entry in made.metadata.items()}
    assert (facts["dagster/row_count"], facts["quarantined"], facts["kind"]) == (20, 0, "images")
    assert facts["licences"] == "| licence | samples |\n| --- | --- |\n| CC0-1.0 | 20 |"
    assert facts["gallery"].startswith("![](data:image/jpeg;base64,")
    assert made.tags["dagster/data_version"] == manifest.digest


def test_indexing_again_finds_the_same_version(indexed):
    result = indexed.make("dataset_manifest", partition="wiki", job="index_datasets")
    [made] = result.asset_materializations_for_node("dataset_manifest")
    assert made.metadata["cached"].value is True


def test_every_partition_has_a_version_of_its_own(indexed):
    versions = {}
    for name in ("wiki", "code", "clips"):
        made = dg.AssetRecordsFilter(asset_key=dg.AssetKey("dataset_manifest"), asset_partitions=[name])
        [newest] = indexed.instance.fetch_materializations(made, limit=1).records
        versions[name] = newest.asset_materialization.tags["dagster/data_version"]
    assert versions == {name: load_manifest(indexed.lake, name).digest for name in versions}


def test_the_catalog_changes_when_a_dataset_does(place):
    place.index("wiki")
    place.make("lake_catalog")
    before = place.metadata("lake_catalog")["digest"]
    place.make("lake_catalog")
    assert place.metadata("lake_catalog")["digest"] == before
    place.lake.put("raw/wiki/part-1.parquet", place.lake.get("raw/wiki/part-0.parquet"))
    place.index("wiki")
    place.make("lake_catalog")
    assert place.metadata("lake_catalog")["digest"] != before


@pytest.mark.parametrize(("num_broken", "passed"), [(1, True), (5, False)])
def test_broken_samples_are_counted_against_a_budget(place, num_broken, passed):
    build(place.folder / "lake", num_broken=num_broken)
    place.instance.add_dynamic_partitions("dataset", ["captions"])
    result = place.make(
        "dataset_manifest", partition="captions", job="index_datasets", raise_on_error=False
    )  # where the check blocks, the run fails
    [check] = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("quarantine_within_budget", passed)
    assert check.metadata["quarantined"].value == num_broken
    assert sum(check.metadata["reasons"].value.values()) == num_broken


def test_a_plan_is_named_by_what_it_plans_and_found_again(indexed):
    versions = []
    for _ in range(2):
        result = indexed.make("joint_plan")
        [made] = result.asset_materializations_for_node("joint_plan")
        versions.append(made.tags["dagster/data_version"])
    assert versions[0] == versions[1]
    assert made.metadata["fill"].value > 0.95
    assert made.metadata["shares"].value.startswith("![](data:image/png;base64,")
