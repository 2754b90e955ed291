"""What follows by itself when data changes: token counts, the catalog and the plans. Never a trainer.

`eager` alone fires whenever something upstream was made again, also where it came out the same. These fire where its
data version is another. Trainers are started by hand, by backfill, or by the schedule behind the cost guard.
"""

import warnings

import dagster as dg

from assets import data_layer, plans
from assets.resources import is_on

DATA_CHANGED = (
    dg.AutomationCondition.eager()
    .replace(
        "any_deps_updated",
        dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed()).with_label(
            "deps_data_changed"
        ),
    )
    .with_label("on_changed_data")
)
"""Once whenever something upstream has another data version, and all of it is there."""
FOLLOWING = dg.AssetSelection.groups(plans.GROUP) | dg.AssetSelection.assets(
    data_layer.dataset_lengths, data_layer.lake_catalog
)
"""The assets that follow by themselves: all of them cheap."""

changed_data = dg.AutomationConditionSensorDefinition(
    "changed_data",
    target=FOLLOWING,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING if is_on("K25_AUTOMATION") else dg.DefaultSensorStatus.STOPPED,
    description="Plan again when a dataset's version changes; what comes out the same stops there.",
)


def follow_changed_data(definitions: dg.Definitions) -> dg.Definitions:
    """Return the definitions with the condition on every asset that follows by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # of the pinned version it is what we want
        return definitions.map_resolved_asset_specs(
            selection=FOLLOWING, func=lambda spec: spec.replace_attributes(automation_condition=DATA_CHANGED)
        )
