"""How assets are cut: by dataset, and by day of ingestion; never by shard or sample."""

import dagster as dg

from assets.resources import first_day_from_env

PARTITION_SET = "dataset"
"""What Dagster calls the set of datasets; its instance keeps their names under it."""
DATASETS = dg.DynamicPartitionsDefinition(name=PARTITION_SET)
"""Names of the lake's datasets; `assets.instance.add_datasets` and the sensor add them."""
DAYS = dg.DailyPartitionsDefinition(start_date=first_day_from_env(), timezone="UTC", end_offset=1)
"""Days of ingestion, in UTC, from K25_FIRST_DAY up to and with today."""
