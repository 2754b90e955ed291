"""Who may learn from what: takedowns with their receipts, and the screen that keeps out what was taken down."""

from k25_pipelines.governance.exposed import Exposure, exposure
from k25_pipelines.governance.finding import Catalogue, find
from k25_pipelines.governance.forgetting import Places, forget, preview
from k25_pipelines.governance.screening import index_dataset, screen
from k25_pipelines.governance.takedown import (
    enforce,
    forgotten_by,
    read_receipts,
    read_takedown,
    takedown_names,
)

__all__ = [
    "Catalogue",
    "Exposure",
    "Places",
    "enforce",
    "exposure",
    "find",
    "forget",
    "forgotten_by",
    "index_dataset",
    "preview",
    "read_receipts",
    "read_takedown",
    "screen",
    "takedown_names",
]
