import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.plan.fill import fill
from k25_pipelines.plan.pack import pack
from tests.plan.tables import skewed

NO_LIMITS = np.empty(0, dtype=np.int64)


def filled(lengths, capacity):
    lengths = np.asarray(lengths, dtype=np.int64)
    return fill(lengths, capacity, np.empty((len(lengths), 0), dtype=np.int64), NO_LIMITS)


def plainly_filled(lengths, capacity):
    """The rule, written out with lists: the next samples while they fit, then what closes the pack best."""
    left, packs, num_packs = list(range(len(lengths))), [-1] * len(lengths), 0
    while left:
        inside, room = [], capacity
        while left and lengths[left[0]] <= room:
            room -= lengths[left[0]]
            inside.append(left.pop(0))
        while room and (fits := [sample for sample in left if lengths[sample] <= room]):
            most = max(lengths[sample] for sample in fits)
            chosen = [max(sample for sample in fits if lengths[sample] == most)]
            sums = [
                (lengths[a] + lengths[b], a, b)
                for a in fits
                for b in fits
                if (lengths[a], a) > (lengths[b], b) and most < lengths[a] + lengths[b] <= room
            ]
            if room - most > capacity >> 10 and sums:
                best = max(total for total, *_ in sums)
                _, *chosen = min(((total, -lengths[a], -a, a, b) for total, a, b in sums if total == best))[2:]
                chosen = chosen[-2:]
            for sample in chosen:
                left.remove(sample)
            room -= sum(lengths[sample] for sample in chosen)
            inside.extend(chosen)
        for sample in inside:
            packs[sample] = num_packs
        num_packs += 1
    return packs, num_packs


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 300), max_size=40))
def test_packs_hold_every_sample_once_and_their_room_and_are_filled_as_the_plain_rule_does(lengths):
    packs, num_packs = filled(lengths, 300)
    room, rooms = plainly_filled(lengths, 300)
    assert (np.bincount(packs, weights=lengths, minlength=num_packs) <= 300).all()
    assert set(packs.tolist()) == set(range(num_packs))
    sums = [
        sorted(np.bincount(of, weights=lengths, minlength=num).tolist())
        for of, num in ((packs, num_packs), (room, rooms))
    ]
    assert sums[0] == sums[1]


@settings(deadline=None)
@given(samples=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 9), st.integers(0, 3)), max_size=80))
def test_further_limits_hold(samples):
    table = np.array(samples, dtype=np.int64).reshape(-1, 3)
    lengths, needs = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1:])
    packs, num_packs = fill(lengths, 100, needs, np.array([10, 4]))
    assert (np.bincount(packs, weights=lengths, minlength=num_packs) <= 100).all()
    assert (np.bincount(packs, weights=needs[:, 0], minlength=num_packs) <= 10).all()
    assert (np.bincount(packs, weights=needs[:, 1], minlength=num_packs) <= 4).all()
    assert set(packs.tolist()) == set(range(num_packs))


def correlation(packs, num_packs, values):
    """How alike the values of one pack are: the intraclass correlation of a one-way analysis of variance."""
    sizes = np.bincount(packs, minlength=num_packs)
    mean = np.bincount(packs, weights=values, minlength=num_packs) / sizes
    between = (sizes * (mean - values.mean()) ** 2).sum() / (num_packs - 1)
    within = ((values - mean[packs]) ** 2).sum() / (len(values) - num_packs)
    size = (len(values) - (sizes**2).sum() / len(values)) / (num_packs - 1)
    return (between - within) / (between + (size - 1) * within)


def test_a_window_is_full_and_its_lengths_are_mixed_where_best_fit_decreasing_sorts_them():
    lengths = skewed("mixed", 1024, 16, 2500)
    mixed, num_mixed = filled(lengths, 4096)
    full = np.sort(np.bincount(mixed, weights=lengths))[num_mixed // 20 :] / 4096
    assert full.mean() > 0.998
    assert correlation(mixed, num_mixed, np.log(lengths)) < 0.1
    assert correlation(*pack(lengths, 4096), np.log(lengths)) > 0.5


def test_samples_leave_in_the_order_drawn_but_for_those_that_close_a_pack():
    lengths = skewed("order", 1024, 16, 2500)
    packs, num_packs = filled(lengths, 4096)
    first = np.array([np.flatnonzero(packs == number)[0] for number in range(num_packs)])
    assert (np.diff(first) > 0).all()
