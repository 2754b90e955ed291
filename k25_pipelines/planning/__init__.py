"""Manifests and a recipe -> the segments of a plan in the lake, and back; forks, differences, quotes: I/O of `plan`.

    k25/plans/<plan>/plan.json                      what the plan is made from, and of a fork its parent; written once
    k25/plans/<plan>/segments/<step>-<digest>.*     json: header; state: lanes before it; parquet: rows; written once
    k25/plans/<plan>/chain/<step>.json              which segment begins at the step; written once
    k25/plans/<plan>/pages/<digest>.json            PAGE_SEGMENTS segments of the index; written once
    k25/plans/<plan>/index.json                     pages and the segments after them: all it takes to open a plan

The index is the one name that is written again. It is last, so a planner that is killed is simply started again, and
it only ever grows: two planners of one plan write the same objects, or one finds what the other put in the chain.
"""

from k25_pipelines.plan.rates import Rates
from k25_pipelines.planning.diff import diff_plans
from k25_pipelines.planning.exclusions import Tombstones, tombstones
from k25_pipelines.planning.fork import fork_plan
from k25_pipelines.planning.index import SegmentInfo, segments_of
from k25_pipelines.planning.make import Progress, extend_plan, make_plan, read_recipe
from k25_pipelines.planning.objects import segment_key
from k25_pipelines.planning.plan import Plan, open_plan
from k25_pipelines.planning.quoting import quote
from k25_pipelines.planning.sources import source_table

_index = segments_of

__all__ = [
    "Plan",
    "Progress",
    "Rates",
    "SegmentInfo",
    "Tombstones",
    "diff_plans",
    "extend_plan",
    "fork_plan",
    "make_plan",
    "open_plan",
    "quote",
    "read_recipe",
    "segment_key",
    "source_table",
    "tombstones",
]
