"""How assets are cut: one partition a registered dataset."""

import dagster as dg

DATASETS = dg.DynamicPartitionsDefinition(name="dataset")
"""Names of the lake's datasets; `assets.instance.add_datasets` and the sensor add them."""
