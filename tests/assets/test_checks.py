"""The checks say pass and fail where they should, with the numbers."""

import json

import dagster as dg
import pytest

from assets.checks import fill_check, lineage_check, loss_check, share_check, sight_check
from assets.outputs import write_output
from k25_pipelines.storage.store import open_store


def record(**metrics: object) -> dict:
    return {"metrics": metrics}


@pytest.mark.parametrize(("fill", "passed"), [(0.97, True), (0.9999, True), (0.9699, False)])
def test_packs_must_be_full(fill, passed):
    assert fill_check({"fill": fill}).passed is passed


@pytest.mark.parametrize(("counted", "passed"), [(0.1, True), (0.1049, True), (0.1051, False), (0.094, False)])
def test_the_counted_vision_share_must_be_the_recipes_within_half_a_point(counted, passed):
    assert share_check(record(vision_share=counted, vision_share_std=0.02), 0.1).passed is passed


def test_a_recipe_without_a_vision_share_promises_none():
    assert share_check(record(vision_share=0.7, vision_share_std=0.0), None).passed


@pytest.mark.parametrize(("before", "after", "passed"), [(3.0, 2.0, True), (2.0, 3.0, False), (2.0, 2.0, False)])
def test_the_loss_on_steps_not_trained_on_must_fall(before, after, passed):
    assert loss_check(record(probe_before=before, probe_after=after)).passed is passed


@pytest.mark.parametrize(("true", "shuffled", "passed"), [(2.0, 2.5, True), (2.5, 2.0, False), (2.0, 2.0, False)])
def test_captions_must_be_likelier_with_their_own_image(true, shuffled, passed):
    assert sight_check({"true_loss": true, "shuffled_loss": shuffled}).passed is passed


def lake_of(*checkpoints: tuple[str, str, dict[str, str]], plans: tuple[str, ...]):
    lake = open_store("memory://lineage")
    for info in list(lake.list()):
        lake.delete(info.key)
    for key, plan, initial in checkpoints:
        lake.put(
            f"k25/checkpoints/{key}/record.json", json.dumps({"plan": plan, "config": {"initial": initial}}).encode()
        )
    for plan in plans:
        lake.put(f"k25/plans/{plan}/plan.json", b"{}")
    return lake


def test_lineage_is_complete_when_every_ancestor_and_plan_is_there():
    checkpoints = [("a/1", "p", {}), ("b/2", "q", {"vision": "k25/checkpoints/a/1"})]
    result = lineage_check(lake_of(*checkpoints, plans=("p", "q")), "k25/checkpoints/b/2")
    assert result.passed
    assert result.metadata["checkpoints"].value == {"k25/checkpoints/a/1": "p", "k25/checkpoints/b/2": "q"}


def test_a_missing_ancestor_is_named():
    result = lineage_check(lake_of(("b/2", "q", {"vision": "gone/1"}), plans=("q",)), "k25/checkpoints/b/2")
    assert (result.passed, result.metadata["missing"].value) == (False, ["gone/1"])


def test_a_missing_plan_is_named():
    result = lineage_check(lake_of(("b/2", "q", {}), plans=()), "k25/checkpoints/b/2")
    assert (result.passed, result.metadata["missing"].value) == (False, ["q"])


def test_a_check_reads_what_its_asset_made_last(place):
    for fill, passed in ((0.5, False), (0.99, True)):
        write_output(place.lake, "joint_plan", {"fill": fill}, scale="toy", edition="main")
        checks = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("joint_plan"), "joint_packs_are_full"))
        job = dg.define_asset_job("only_check", selection=checks)
        definitions = dg.Definitions.merge(place.defs, dg.Definitions(jobs=[job]))
        result = definitions.resolve_job_def("only_check").execute_in_process(instance=place.instance)
        [check] = result.get_asset_check_evaluations()
        assert (check.check_name, check.passed) == ("joint_packs_are_full", passed)
