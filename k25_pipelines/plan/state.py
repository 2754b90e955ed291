"""A lane's state <-> plain data of a segment's header: cursors, debts, carry-over and pending packs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from k25_pipelines.plan.blend import Blend
from k25_pipelines.plan.lane import Lane
from k25_pipelines.plan.window import ITEM, ITEM_FIELDS


def lane_state(lane: Lane, names: Sequence[str]) -> dict[str, Any]:
    """Return the state as plain data; sources by name."""
    blend = lane.blend
    return {
        "cursors": dict(zip(names, lane.cursors, strict=True)),
        "live": [names[source] for source in sorted(blend.weights)],
        "vision_debt": blend.vision_debt,
        "debts": {names[source]: debt for source, debt in sorted(blend.debts.items())},
        "turn": blend.turn,
        "longest": blend.longest,
        "worst": blend.worst,
        "windows": lane.windows,
        "dry": lane.dry,
        "settling": lane.settling,
        "carry": _columns(lane.carry),
        "pending": _columns(np.concatenate([np.empty(0, dtype=ITEM), *lane.pending])),
        "pending_packs": [len(pack) for pack in lane.pending],
    }


def lane_from_state(state: dict[str, Any], number: int, *, names: Sequence[str], blend: Blend) -> Lane:
    """Return the lane of plain data; `blend` is the fresh blend of the recipe in force."""
    blend.weights = {source: blend.weights[source] for source in sorted(map(names.index, state["live"]))}
    blend.debts = {names.index(name): debt for name, debt in state["debts"].items()}
    blend.vision_debt, blend.turn = state["vision_debt"], state["turn"]
    blend.longest, blend.worst = state["longest"], state["worst"]
    pending = _items(state["pending"])
    ends = np.cumsum(state["pending_packs"]).tolist()
    return Lane(
        number=number,
        cursors=[state["cursors"][name] for name in names],
        blend=blend,
        carry=_items(state["carry"]),
        pending=[pending[first:last] for first, last in zip([0, *ends], ends, strict=False)],
        windows=state["windows"],
        dry=state["dry"],
        settling=state["settling"],
    )


def _columns(items: np.ndarray) -> dict[str, list[int]]:
    """Return items as lists, a column each."""
    return {name: items[name].tolist() for name in ITEM_FIELDS}


def _items(columns: dict[str, list[int]]) -> np.ndarray:
    items = np.empty(len(columns["line"]), dtype=ITEM)
    for name in ITEM_FIELDS:
        items[name] = columns[name]
    return items
