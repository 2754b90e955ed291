"""A lane's state <-> plain data and arrays: cursors, debts, carry-over and pending packs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from k25_pipelines.plan.blend import LONGEST, TURN, VISION_DEBT, Blend
from k25_pipelines.plan.lane import Lane
from k25_pipelines.plan.window import ITEM, ITEM_FIELDS, Packs, as_table


def lane_state(lane: Lane, names: Sequence[str]) -> dict[str, Any]:
    """Return the state: sources by name; samples as int64 [n, ITEM_FIELDS], pending packs by their ends."""
    blend = lane.blend
    live = np.flatnonzero(blend.weights).tolist()
    return {
        "cursors": dict(zip(names, map(int, lane.cursors), strict=True)),
        "live": [names[source] for source in live],
        "vision_debt": int(blend.totals[VISION_DEBT]),
        "debts": {names[source]: int(blend.debts[source]) for source in live},
        "turn": int(blend.totals[TURN]),
        "longest": int(blend.totals[LONGEST]),
        "worst": blend.worst,
        "windows": lane.windows,
        "dry": lane.dry,
        "settling": lane.settling,
        "carry": as_table(lane.carry).copy(),
        "pending": as_table(lane.pending.items).copy(),
        "pending_ends": lane.pending.ends.copy(),
    }


def lane_from_state(state: Mapping[str, Any], number: int, *, names: Sequence[str], blend: Blend) -> Lane:
    """Return the lane of a state; `blend` is the fresh blend of the recipe in force."""
    live = {names.index(name) for name in state["live"]}
    for source in range(len(names)):
        blend.weights[source] *= source in live
        blend.debts[source] = state["debts"].get(names[source], 0)
    blend.totals[[VISION_DEBT, TURN, LONGEST]] = state["vision_debt"], state["turn"], state["longest"]
    blend.worst = state["worst"]
    return Lane(
        number=number,
        cursors=[state["cursors"][name] for name in names],
        blend=blend,
        carry=_items(state["carry"]),
        pending=Packs(items=_items(state["pending"]), ends=np.array(state["pending_ends"], dtype=np.int64)),
        windows=state["windows"],
        dry=state["dry"],
        settling=state["settling"],
    )


def _items(rows: Any) -> np.ndarray:
    """Return ITEM [n] of rows."""
    rows = np.array(rows, dtype=np.int64).reshape(-1, len(ITEM_FIELDS))
    return np.ascontiguousarray(rows).view(ITEM).reshape(-1)
