"""The samples of a window -> packs that leave it, in order, and samples that are carried to the next."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from k25_pipelines.keys import random_key
from k25_pipelines.plan.pack import pack_within
from k25_pipelines.plan.permutation import permute

FULL_PERCENT = 98
"""A pack this full leaves its window."""
SHARE_PERCENT = 2
"""What leaves a window may be this far off the vision share, relative to it, before less full packs leave too."""
LEAST_PERCENT = 50
"""A pack that leaves for the sake of the share is at least this full."""
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
    vision_share: Fraction | None = None
    """Vision tokens over all tokens, of what leaves a window."""


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
    them any pack with a sample carried MOST_CARRIES times, and the fullest of the others that
    bring the leaving packs to the vision share: what is hard to fill must not be put off. At
    least one step's packs leave where there are so many. The order is keyed and stratified by
    patches: of the packs sorted by patches each step gets one of every stratum, so that all
    steps are about equally heavy.

    Args:
        items: ITEM [n], carried ones first.
        rule: capacity, limits and share.
        key: names the order.
        last: no samples follow, so packs leave as they are.
    """
    limits = [(items["patches"], rule.max_patches), (items["media"], rule.max_media)]
    pack_of, num_packs = pack_within(
        items["tokens"], rule.capacity, [(amounts, most) for amounts, most in limits if most is not None]
    )
    fill, vision, patches = (
        np.bincount(pack_of, weights=items[name], minlength=num_packs).astype(np.int64)
        for name in ("tokens", "vision", "patches")
    )
    spent = np.bincount(pack_of, weights=items["carries"] >= MOST_CARRIES, minlength=num_packs) > 0
    ready = spent | (fill * 100 >= rule.capacity * FULL_PERCENT) | last
    leaving = _stratified(_leaving(ready, spent, fill, vision, rule), patches, rule.packs_per_step, key)
    by_pack = np.argsort(pack_of, kind="stable")
    starts = np.searchsorted(pack_of[by_pack], np.arange(num_packs + 1))
    packs = [items[by_pack[starts[number] : starts[number + 1]]] for number in leaving.tolist()]
    carried = items[~np.isin(pack_of, leaving)]
    carried["carries"] += 1
    return packs, carried


def _leaving(ready: np.ndarray, spent: np.ndarray, fill: np.ndarray, vision: np.ndarray, rule: PackRule) -> np.ndarray:
    """Return the numbers of the packs that leave: those that are ready, balanced and cut to whole steps."""
    leaves = ready.copy()
    share = rule.vision_share or Fraction(0)
    lack = share.numerator * fill - share.denominator * vision * bool(share)  # vision a pack lacks, times a constant
    total = int(lack[leaves].sum())
    fullest = np.argsort(-fill, kind="stable")
    others = fullest[~leaves[fullest] & (fill[fullest] * 100 >= rule.capacity * LEAST_PERCENT)]
    for number in others.tolist():
        off_share = abs(total) * 100 > SHARE_PERCENT * share.numerator * int(fill[leaves].sum())
        if off_share and abs(total + int(lack[number])) < abs(total):
            leaves[number] = True
            total += int(lack[number])
    wanted = max(int(leaves.sum()), rule.packs_per_step) // rule.packs_per_step
    wanted = max(wanted, -(-int(spent.sum()) // rule.packs_per_step))
    wanted = min(wanted, len(fill) // rule.packs_per_step) * rule.packs_per_step
    while (num_leaving := int(leaves.sum())) != wanted:
        sign = 1 if num_leaving < wanted else -1
        candidates = np.flatnonzero(~leaves if sign > 0 else leaves & ~spent)
        candidates = candidates if candidates.size else np.flatnonzero(leaves)
        best = np.lexsort((candidates, -sign * fill[candidates], abs(total + sign * lack[candidates])))[0]
        leaves[candidates[best]] = sign > 0
        total += sign * int(lack[candidates[best]])
    return np.flatnonzero(leaves)


def _stratified(packs: np.ndarray, patches: np.ndarray, packs_per_step: int, key: int) -> np.ndarray:
    """Return the packs in a keyed order in which every step gets one pack of each stratum of patches.

    From the heaviest stratum down, the step that has the fewest patches so far gets the heaviest
    pack of the stratum; ties, the order of the steps and of the packs in a step go by the key.
    """
    num_steps = len(packs) // packs_per_step
    heaviest = packs[np.argsort(-patches[packs], kind="stable")].reshape(packs_per_step, num_steps)
    steps = np.empty((num_steps, packs_per_step), dtype=np.int64)
    load = np.zeros(num_steps, dtype=np.int64)
    for number, stratum in enumerate(heaviest):
        tie = permute(np.arange(num_steps), num_steps, random_key("stratum", key, number))
        needy = np.lexsort((tie, load))
        steps[needy, number] = stratum
        load[needy] += patches[stratum]
    places = np.arange(packs_per_step)
    for number, step in enumerate(steps):
        steps[number] = step[permute(places, packs_per_step, random_key("step", key, number))]
    return steps.reshape(-1)
