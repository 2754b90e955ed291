"""The samples of a window -> packs that leave it, in order, and samples that are carried to the next."""

from dataclasses import dataclass

import numpy as np

from k25_pipelines.keys import random_key
from k25_pipelines.plan.pack import pack_within
from k25_pipelines.plan.permutation import permute

FULL_PERCENT = 98
"""A pack this full leaves its window."""
MOST_CARRIES = 4
"""A sample carried this often takes its pack along, however full that is."""

ITEM_FIELDS = ("source", "line", "epoch", "start", "tokens", "vision", "patches", "media", "carries")
ITEM = np.dtype([(name, np.int64) for name in ITEM_FIELDS])
"""One sample, or one piece of a long text, on its way into a pack: `start` is the piece's first token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackRule:
    """What packs of a lane must keep to."""

    capacity: int
    """T [tokens]."""
    packs_per_step: int
    """Packs this lane gives to each step."""
    max_patches: int | None = None
    max_media: int | None = None


def split_texts(items: np.ndarray, capacity: int) -> np.ndarray:
    """Return the items with texts longer than a pack cut every `capacity` tokens, pieces in their order."""
    num_pieces = np.maximum(1, -(-items["tokens"] // capacity))
    pieces = np.repeat(items, num_pieces)
    number = np.arange(len(pieces)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    pieces["start"] = number * capacity
    pieces["tokens"] = np.minimum(capacity, pieces["tokens"] - pieces["start"])
    return pieces


def pack_window(
    items: np.ndarray, rule: PackRule, key: int, *, last: bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the packs that leave the window, in the order they are trained on, and the samples that stay.

    Packs at least FULL_PERCENT full leave, in multiples of the lane's packs per step, and with
    them any pack with a sample carried MOST_CARRIES times. At least one step's packs leave
    where there are so many. The order is stratified by patches: of the packs sorted by patches
    each step gets one of every stratum, so that heavy and light packs are spread evenly.

    Args:
        items: ITEM [n], carried ones first.
        rule: capacity and limits.
        key: names the order.
        last: no samples follow, so packs leave as they are.
    """
    limits = [(items["patches"], rule.max_patches), (items["media"], rule.max_media)]
    pack_of, num_packs = pack_within(
        items["tokens"], rule.capacity, [(amounts, most) for amounts, most in limits if most is not None]
    )
    fill = np.bincount(pack_of, weights=items["tokens"], minlength=num_packs).astype(np.int64)
    patches = np.bincount(pack_of, weights=items["patches"], minlength=num_packs).astype(np.int64)
    spent = np.bincount(pack_of, weights=items["carries"] >= MOST_CARRIES, minlength=num_packs) > 0
    full = fill * 100 >= rule.capacity * FULL_PERCENT
    ranking = np.lexsort((np.arange(num_packs), -fill, ~full, ~spent))
    num_leaving = _num_leaving(int(spent.sum()), int((full | spent).sum()), num_packs, rule.packs_per_step)
    if last:
        num_leaving = num_packs // rule.packs_per_step * rule.packs_per_step
    leaving = _stratified(np.sort(ranking[:num_leaving]), patches, rule.packs_per_step, key)
    by_pack = np.argsort(pack_of, kind="stable")
    starts = np.searchsorted(pack_of[by_pack], np.arange(num_packs + 1))
    packs = [items[by_pack[starts[number] : starts[number + 1]]] for number in leaving.tolist()]
    stays = ~np.isin(pack_of, leaving)
    carried = items[stays]
    carried["carries"] += 1
    return packs, carried


def _num_leaving(num_spent: int, num_ready: int, num_packs: int, packs_per_step: int) -> int:
    """Return how many packs leave: whole steps' worth, all the spent ones, and at least one step's."""
    steps = max(1, num_ready // packs_per_step, -(-num_spent // packs_per_step))
    return min(steps, num_packs // packs_per_step) * packs_per_step


def _stratified(packs: np.ndarray, patches: np.ndarray, packs_per_step: int, key: int) -> np.ndarray:
    """Return the packs in a keyed order in which every step gets one pack of each stratum of patches."""
    num_steps = len(packs) // packs_per_step
    heaviest = packs[np.argsort(-patches[packs], kind="stable")].reshape(packs_per_step, num_steps)
    places = np.arange(num_steps)
    strata = [
        stratum[permute(places, num_steps, random_key("stratum", key, number))]
        for number, stratum in enumerate(heaviest)
    ]
    steps = np.stack(strata, axis=1) if strata else heaviest.T
    places = np.arange(packs_per_step)
    for number, step in enumerate(steps):
        steps[number] = step[permute(places, packs_per_step, random_key("step", key, number))]
    return steps.reshape(-1)
