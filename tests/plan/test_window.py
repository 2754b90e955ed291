from fractions import Fraction

import numpy as np

from k25_pipelines.plan.window import ITEM, MOST_CARRIES, PackRule, pack_window, split_texts
from tests.plan.tables import skewed


def items(num=600, capacity=1000):
    made = np.zeros(num, dtype=ITEM)
    made["line"] = np.arange(num)
    made["tokens"] = np.minimum(capacity, skewed("window", num, 5, capacity))
    made["patches"] = np.where(np.arange(num) % 9 == 0, 4 * made["tokens"], 0)
    return made


def test_full_packs_leave_in_multiples_and_no_sample_is_lost():
    packs, carried = pack_window(items(), PackRule(capacity=1000, packs_per_step=8), 3)
    assert len(packs)
    assert len(packs) % 8 == 0
    assert all(980 <= pack["tokens"].sum() <= 1000 for pack in packs)
    assert sorted([*packs.items["line"].tolist(), *carried["line"].tolist()]) == list(range(600))
    assert set(carried["carries"].tolist()) <= {1}


def test_every_step_gets_its_share_of_heavy_packs():
    packs, _ = pack_window(items(4000), PackRule(capacity=1000, packs_per_step=8), 3)
    patches = np.array([pack["patches"].sum() for pack in packs])
    by_step = patches.reshape(-1, 8)
    strata = -np.sort(-patches).reshape(8, -1)
    for step in by_step:
        assert [int(((stratum.min() <= step) & (step <= stratum.max())).any()) for stratum in strata] == [1] * 8
    assert by_step.sum(axis=1).std() < 0.5 * np.sqrt(8) * patches.std()


def test_a_sample_carried_four_times_takes_its_pack_along():
    made = np.zeros(9, dtype=ITEM)
    made["tokens"], made["line"] = 600, np.arange(9)
    made["carries"][8] = MOST_CARRIES
    packs, carried = pack_window(made, PackRule(capacity=1000, packs_per_step=2), 0)
    assert len(packs) == 2
    assert 8 in packs.items["line"]
    assert len(carried) == 7


def test_the_last_window_lets_packs_go_as_they_are():
    made = np.zeros(9, dtype=ITEM)
    made["tokens"] = 600
    packs, carried = pack_window(made, PackRule(capacity=1000, packs_per_step=2), 0, last=True)
    assert (len(packs), len(carried)) == (8, 1)
    packs, carried = pack_window(made[:1], PackRule(capacity=1000, packs_per_step=2), 0, last=True)
    assert (len(packs), len(carried)) == (0, 1)


def test_long_texts_are_cut_every_pack_and_nothing_is_thrown_away():
    made = np.zeros(3, dtype=ITEM)
    made["tokens"], made["line"] = [2500, 1000, 0], [5, 6, 7]
    pieces = split_texts(made, 1000)
    assert pieces["line"].tolist() == [5, 5, 5, 6, 7]
    assert pieces["start"].tolist() == [0, 1000, 2000, 0, 0]
    assert pieces["tokens"].tolist() == [1000, 1000, 500, 1000, 0]


def test_packs_that_are_hard_to_fill_are_not_put_off_at_the_cost_of_the_share():
    made = np.zeros(1200, dtype=ITEM)
    made["line"] = np.arange(1200)
    made["tokens"] = np.where(made["line"] % 2 == 0, 470, 40 + made["line"] % 60)  # two of 470 leave 60 that few fill
    made["vision"] = np.where(made["line"] % 2 == 0, 60, 0)
    share = Fraction(int(made["vision"].sum()), int(made["tokens"].sum()))
    for given, worst in ((share, 0.04), (None, 1)):
        packs, _ = pack_window(made, PackRule(capacity=1000, packs_per_step=8, vision_share=given), 3)
        left = packs.items
        assert abs(left["vision"].sum() / left["tokens"].sum() / float(share) - 1) < worst
