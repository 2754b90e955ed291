"""What of a lake nothing needs any more: found by following every reference, deleted only where it is old, too.

Kept: all that registrations, dataset versions, plans, forks, runs, checkpoints, evaluations, outputs and pointers
lead to, all that is young, and every key that this does not know.

    k25/gc/<number>.json    what a run was about to delete, and why; written before the first deletion
"""

from k25_pipelines.gc.references import References, read_references
from k25_pipelines.gc.rules import Garbage, Policy, garbage
from k25_pipelines.gc.sweeping import Findings, find, sweep

__all__ = ["Findings", "Garbage", "Policy", "References", "find", "garbage", "read_references", "sweep"]
