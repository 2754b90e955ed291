"""The samples of a window -> packs that leave it, in order, and samples that are carried to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numba import njit

from k25_pipelines.plan.fill import fill
from k25_pipelines.plan.permutation import bits_of

FULL_PERCENT = 98
"""A pack this full leaves its window."""
SHARE_PERCENT = 2
"""What leaves a window may be this far off the vision share, relative to it, and by half a pack, before less full
packs leave too."""
LEAST_PERCENT = 50
"""A pack that leaves for the sake of the share is at least this full."""
MOST_CARRIES = 4
"""A sample carried this often takes its pack along, however full that is."""

ITEM_FIELDS = ("source", "line", "epoch", "start", "tokens", "vision", "patches", "media", "carries")
ITEM = np.dtype([(name, np.int64) for name in ITEM_FIELDS])
"""One sample, or one piece of a long text, on its way into a pack: `start` is the piece's first token."""

_START, _TOKENS = ITEM_FIELDS.index("start"), ITEM_FIELDS.index("tokens")


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


@dataclass(kw_only=True, slots=True)
class Packs:
    """Packs one after the other, their samples in one array."""

    items: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ITEM))
    """ITEM [samples], pack after pack."""
    ends: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64 [packs], where each pack ends in the items."""

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(self.ends)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the samples of each pack."""
        first = 0
        for last in self.ends.tolist():
            yield self.items[first:last]
            first = last

    def take(self, num: int) -> "Packs":
        """Remove and return the first `num` packs."""
        end = int(self.ends[num - 1]) if num else 0
        taken = Packs(items=self.items[:end], ends=self.ends[:num])
        self.items, self.ends = self.items[end:], self.ends[num:] - end
        return taken


def joined(parts: Sequence[Packs]) -> Packs:
    """Return the packs of all parts, one after the other."""
    if not parts:
        return Packs()
    sizes = [len(part.items) for part in parts]
    before = np.repeat(np.cumsum(sizes) - sizes, [len(part) for part in parts])
    return Packs(
        items=concatenated([part.items for part in parts]),
        ends=np.concatenate([part.ends for part in parts]) + before,
    )


def concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return ITEM arrays one after the other; as plain tables, since numpy compares records field by field."""
    return np.concatenate([as_table(part) for part in parts]).view(ITEM).reshape(-1)


def split_texts(items: np.ndarray, capacity: int) -> np.ndarray:
    """Return the items with texts longer than a pack cut every `capacity` tokens, pieces in their order."""
    num_pieces = int(np.maximum(1, -(-items["tokens"] // capacity)).sum())
    pieces = np.empty(num_pieces, dtype=ITEM)
    _cut(as_table(items), capacity, as_table(pieces))
    return pieces


def as_table(items: np.ndarray) -> np.ndarray:
    """Return ITEM [n] as int64 [n, fields], the same memory."""
    return items.view(np.int64).reshape(len(items), len(ITEM_FIELDS))


def pack_window(items: np.ndarray, rule: PackRule, key: int, *, last: bool = False) -> tuple[Packs, np.ndarray]:
    """Return the packs that leave the window, in the order they are trained on, and the samples that stay.

    Packs at least FULL_PERCENT full leave, in multiples of the lane's packs per step, and with
    them any pack with a sample carried MOST_CARRIES times, and the fullest of the others that bring
    them to the vision share: what is hard to fill must not be put off. Of the last of them those stay
    whose going would take the window off the share. At least one step's packs leave where there are so
    many, the fullest first. The order is keyed and stratified by patches: of the packs
    sorted by patches each step gets one of every stratum, so that all steps are about equally heavy.

    Args:
        items: ITEM [n], carried ones first, then in the order drawn.
        rule: capacity, limits and share.
        key: names the order.
        last: no samples follow, so packs leave as they are.
    """
    most = [rule.max_patches, rule.max_media]
    limited = [place for place, limit in enumerate(most) if limit is not None]
    needs = np.stack([items["patches"], items["media"]], axis=1)[:, limited]
    limits = np.array([most[place] for place in limited], dtype=np.int64)
    tokens = np.ascontiguousarray(items["tokens"])
    pack_of, num_packs = fill(tokens, rule.capacity, np.ascontiguousarray(needs), limits)
    full, vision, patches, carried = (
        np.bincount(pack_of, weights=weights, minlength=num_packs).astype(np.int64)
        for weights in (tokens, items["vision"], items["patches"], items["carries"] >= MOST_CARRIES)
    )
    share = rule.vision_share or Fraction(0)
    lack = share.numerator * full - (share.denominator * vision if share else 0)
    ready = (carried > 0) | (full * 100 >= rule.capacity * FULL_PERCENT) | last
    spare = np.where(full * 100 >= rule.capacity * LEAST_PERCENT, full, -1)
    _join_for_share(ready, spare, full, lack, np.array([share.numerator, share.denominator * rule.capacity // 2]))
    leaving = _leaving(ready, carried > 0, full, lack, rule.packs_per_step)
    order = _stratified(leaving, patches, rule.packs_per_step, np.uint64(key))
    index, ends, stay = _gathered(pack_of, num_packs, order)
    rest = items[stay]
    rest["carries"] += 1
    return Packs(items=items[index], ends=ends), rest


@njit(cache=True, nogil=True)
def _cut(items: np.ndarray, capacity: int, pieces: np.ndarray) -> None:
    """Write the pieces of every item."""
    num = 0
    for item in items:
        start, left = 0, item[_TOKENS]
        while True:
            pieces[num] = item
            pieces[num, _START], pieces[num, _TOKENS] = start, min(capacity, left)
            num, start, left = num + 1, start + capacity, left - capacity
            if left <= 0:
                break


@njit(cache=True, nogil=True)
def _join_for_share(
    ready: np.ndarray, spare: np.ndarray, full: np.ndarray, lack: np.ndarray, allowed: np.ndarray
) -> None:
    """Let the fullest spare packs leave too, where that brings what leaves closer to the vision share.

    `lack` is the vision a pack lacks, times the share's denominator; `allowed`: the share's numerator, half a pack.
    """
    total, tokens = 0, 0
    for pack in range(ready.size):
        if ready[pack]:
            spare[pack] = -1
            total += lack[pack]
            tokens += full[pack]
    while abs(total) > allowed[1] and abs(total) * 100 > SHARE_PERCENT * allowed[0] * tokens:
        fullest = np.argmax(spare)
        if spare[fullest] < 0:
            return
        spare[fullest] = -1
        if abs(total + lack[fullest]) < abs(total):
            ready[fullest] = True
            total += lack[fullest]
            tokens += full[fullest]


@njit(cache=True, nogil=True)
def _leaving(ready: np.ndarray, spent: np.ndarray, full: np.ndarray, lack: np.ndarray, multiple: int) -> np.ndarray:
    """Return the numbers of the packs that leave: those that are ready, cut to whole steps."""
    leaves = ready.copy()
    num, total, num_spent = 0, 0, 0
    for pack in range(ready.size):
        num += ready[pack]
        num_spent += spent[pack]
        total += lack[pack] if ready[pack] else 0
    wanted = max(max(num, multiple) // multiple, (num_spent + multiple - 1) // multiple)
    wanted = min(wanted, ready.size // multiple) * multiple
    while num < wanted:
        best = -1
        for pack in range(ready.size):
            if not leaves[pack] and (best < 0 or full[pack] > full[best]):
                best = pack
        leaves[best] = True
        num += 1
    first, seen = 0, 0
    while seen < wanted - multiple:
        seen += leaves[first]
        first += 1
    spare = True  # first the last packs that are not spent, then any that is not, then any
    while num > wanted:
        best = -1
        for pack in range(first, ready.size):
            may_stay = leaves[pack] and not (spare and spent[pack])
            if may_stay and (best < 0 or abs(total - lack[pack]) <= abs(total - lack[best])):
                best = pack
        if best < 0:
            spare, first = first > 0, 0
            continue
        leaves[best] = False
        total -= lack[best]
        num -= 1
    return np.flatnonzero(leaves)


@njit(cache=True, nogil=True)
def _stratified(packs: np.ndarray, patches: np.ndarray, packs_per_step: int, key: np.uint64) -> np.ndarray:
    """Return the packs in a keyed order in which every step gets one pack of each stratum of patches.

    From the heaviest stratum down, the step that has the fewest patches so far gets the heaviest
    pack of the stratum; then the heaviest and the lightest step exchange packs of a stratum while
    that brings them closer. Ties, and the order of the packs in a step, go by the key.
    """
    num_steps = packs.size // packs_per_step
    heaviest = packs[np.argsort(-patches[packs], kind="mergesort")]
    steps = np.empty((num_steps, packs_per_step), dtype=np.int64)
    load = np.zeros(num_steps, dtype=np.int64)
    tie = np.empty(num_steps, dtype=np.uint64)
    for number in range(packs_per_step):
        for step in range(num_steps):
            tie[step] = bits_of(key, number, step)
        keyed = np.argsort(tie, kind="mergesort")
        needy = keyed[np.argsort(load[keyed], kind="mergesort")]
        for place in range(num_steps):
            pack = heaviest[number * num_steps + place]
            steps[needy[place], number] = pack
            load[needy[place]] += patches[pack]
    _exchange(steps, load, patches)
    order = np.empty(packs.size, dtype=np.int64)
    for step in range(num_steps):
        for slot in range(packs_per_step):
            other = np.int64(bits_of(key, packs_per_step + step, slot) % np.uint64(slot + 1))
            order[step * packs_per_step + slot] = order[step * packs_per_step + other]
            order[step * packs_per_step + other] = steps[step, slot]
    return order


@njit(cache=True, nogil=True)
def _exchange(steps: np.ndarray, load: np.ndarray, patches: np.ndarray) -> None:
    """Exchange packs of one stratum between the heaviest and the lightest step while that brings them closer."""
    for _ in range(4 * load.size):
        heavy, light = np.argmax(load), np.argmin(load)
        apart = load[heavy] - load[light]
        best, closest = -1, apart
        for number in range(steps.shape[1]):
            moved = patches[steps[heavy, number]] - patches[steps[light, number]]
            if abs(apart - 2 * moved) < closest:
                best, closest = number, abs(apart - 2 * moved)
        if best < 0:
            return
        moved = patches[steps[heavy, best]] - patches[steps[light, best]]
        steps[heavy, best], steps[light, best] = steps[light, best], steps[heavy, best]
        load[heavy] -= moved
        load[light] += moved


@njit(cache=True, nogil=True)
def _gathered(pack_of: np.ndarray, num_packs: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which items the packs of that order hold, pack after pack, where each ends, and which items stay."""
    sizes = np.zeros(num_packs, dtype=np.int64)
    for pack in pack_of:
        sizes[pack] += 1
    place = np.full(num_packs, -1, dtype=np.int64)
    ends = np.empty(order.size, dtype=np.int64)
    end = 0
    for number in range(order.size):
        place[order[number]] = end
        end += sizes[order[number]]
        ends[number] = end
    index = np.empty(end, dtype=np.int64)
    stay = np.empty(pack_of.size - end, dtype=np.int64)
    num_stay = 0
    for item in range(pack_of.size):
        if place[pack_of[item]] < 0:
            stay[num_stay] = item
            num_stay += 1
        else:
            index[place[pack_of[item]]] = item
            place[pack_of[item]] += 1
    return index, ends, stay
