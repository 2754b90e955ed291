"""The graph as it is written down: loads lightly, and says of each asset what it is."""

import subprocess
import sys

import dagster as dg
import pytest

from assets.definitions import defs
from tests.assets.conftest import ROOT

ASSETS = {
    "data_layer": {"daily_index", "dataset_manifest", "dataset_lengths", "dataset_insight", "lake_catalog"},
    "plans": {"warmup_plan", "vit_plan", "projector_plan", "joint_plan", "long_context_plan", "longest_context_plan"},
    "pretraining": {
        "language_checkpoint",
        "vit_checkpoint",
        "projector_checkpoint",
        "joint_checkpoint",
        "long_context_checkpoint",
        "longest_context_checkpoint",
    },
    "evaluation": {"vit_caption_evaluation", "projector_caption_evaluation", "needle_evaluation", "run_report"},
}


def specs() -> list[dg.AssetSpec]:
    return list(defs.resolve_all_asset_specs())


def test_the_assets_stand_in_their_groups():
    found: dict[str, set[str]] = {}
    for spec in specs():
        found.setdefault(spec.group_name, set()).add(spec.key.to_user_string())
    assert found == ASSETS


@pytest.mark.parametrize("field", ["group_name", "description", "code_version", "owners", "kinds"])
def test_every_asset_says_what_it_is(field):
    assert [spec.key.to_user_string() for spec in specs() if not getattr(spec, field)] == []


def test_every_asset_but_that_of_days_is_part_of_the_demo():
    assert [spec.key.to_user_string() for spec in specs() if "k25/demo" not in spec.tags] == ["daily_index"]


def test_every_check_says_what_must_hold():
    checks = [spec for check in defs.asset_checks for spec in check.check_specs]
    assert len(checks) == 13 + len(ASSETS["plans"])
    assert [spec.name for spec in checks if not spec.description] == []


def test_loading_the_definitions_loads_no_heavy_library():
    heavy = ["torch", "deepspeed", "transformers", "cv2", "decord", "matplotlib", "boto3", "webdataset"]
    probe = f"import sys, assets.definitions; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_our_packages_are_the_ones_that_are_imported():
    import assets
    import trainers

    assert [path for path in (*assets.__path__, *trainers.__path__) if not path.startswith(str(ROOT))] == []


def test_an_asset_that_returns_a_value_is_refused(place):
    from assets.resources import NotAnOutputError

    @dg.asset
    def careless() -> dict:
        return {"weights": [1.0, 2.0]}

    with pytest.raises(NotAnOutputError, match="careless returned a value"):
        dg.materialize([careless], resources=place.resources, instance=place.instance)


def test_a_lake_that_nobody_named_is_said_so():
    from assets.resources import LakeResource
    from k25_pipelines.errors import K25Error

    with pytest.raises(K25Error, match=r"K25_LAKE is not set; start the embedded lake with `k25 up"):
        LakeResource(url="").open()
