"""Objects from one store to another, priced before, verified after, recorded in the lake; rclone moves the bytes.

    k25/syncs/<id>/target.json              from where, to where; written before the first byte is copied
    k25/syncs/<id>/verified/<digest>.parquet    objects whose copies were compared with them; written once
    k25/syncs/<id>/runs/<number>.json       what each run moved; written once

What is killed leaves no parts behind: the next run aborts uploads that were begun, compares what arrived, and sends
the rest. Nothing is ever deleted at the destination.
"""

from k25_pipelines.sync.access import Access, open_with, read_access
from k25_pipelines.sync.job import Job, default_prices, estimate, look
from k25_pipelines.sync.price import Budget, Prices
from k25_pipelines.sync.rclone import Settings, SyncError
from k25_pipelines.sync.targets import SyncTarget, copies_of, open_target, sync_targets
from k25_pipelines.sync.transfer import run

__all__ = [
    "Access",
    "Budget",
    "Job",
    "Prices",
    "Settings",
    "SyncError",
    "SyncTarget",
    "copies_of",
    "default_prices",
    "estimate",
    "look",
    "open_target",
    "open_with",
    "read_access",
    "run",
    "sync_targets",
]
