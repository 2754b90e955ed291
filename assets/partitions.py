"""How assets are cut: one partition a registered dataset."""

import dagster as dg

PARTITION_SET = "dataset"
"""What Dagster calls the set of datasets; its instance keeps their names under it."""
DATASETS = dg.DynamicPartitionsDefinition(name=PARTITION_SET)
"""Names of the lake's datasets; `assets.instance.add_datasets` and the sensor add them."""
