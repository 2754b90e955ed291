from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.keys import random_key, random_unit
from k25_pipelines.plan.balance import (
    PAIR_COST,
    PATCH_COST,
    TOKEN_COST,
    contiguous_packs,
    pack_costs,
    rank_packs,
    shared_out,
)


def loads(costs, rank_of, num_ranks):
    return np.bincount(rank_of, weights=costs, minlength=num_ranks)


@given(packs=st.integers(1, 300), ranks=st.integers(1, 300))
def test_ranks_take_all_packs_in_contiguous_runs_of_nearly_one_length(packs, ranks):
    runs = [contiguous_packs(packs, rank, ranks) for rank in range(ranks)]
    assert [pack for run in runs for pack in run] == list(range(packs))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@given(
    costs=st.lists(st.integers(0, 10**12), min_size=1, max_size=60), ranks=st.integers(1, 20), node=st.integers(1, 9)
)
def test_all_ranks_together_take_each_pack_once_and_nodes_take_contiguous_runs(costs, ranks, node):
    costs = np.array(costs)
    taken = [rank_packs(costs, rank, ranks, node) for rank in range(ranks)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(len(costs)))
    assert all((np.diff(own) > 0).all() and own.dtype == np.int64 for own in taken)
    for first in range(0, ranks, node):
        run = np.sort(np.concatenate(taken[first : first + node]))
        last = min(first + node, ranks) - 1
        ends = contiguous_packs(len(costs), first, ranks).start, contiguous_packs(len(costs), last, ranks).stop
        assert run.tolist() == list(range(*ends))


def test_one_rank_a_node_takes_contiguous_runs_whatever_the_costs():
    costs = np.array([9, 1, 1, 1, 1, 1])
    assert [rank_packs(costs, rank, 3).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=7), ranks=st.integers(1, 3))
def test_small_nodes_are_nearly_as_even_as_any_deal_could_make_them(costs, ranks):
    costs = np.array(costs)
    best = min(loads(costs, np.array(deal), ranks).max() for deal in product(range(ranks), repeat=len(costs)))
    found = loads(costs, shared_out(costs, ranks), ranks).max()
    assert best <= found <= best * 7 / 6


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("kind", ["pareto", "log-normal", "one giant"])
def test_with_eight_packs_a_rank_loads_stay_within_five_percent_of_what_cannot_be_helped(ranks, kind):
    worst = 0.0
    for number in range(60):
        unit = random_unit(random_key("costs", kind, ranks, number), np.arange(8 * ranks))
        heavy = {"pareto": (1 - unit) ** (-1 / 1.2), "log-normal": np.exp(1.5 * np.sqrt(12) * (unit - 0.5))}
        costs = (10_000 * heavy.get(kind, 1 + unit)).astype(np.int64)
        costs[0] *= 1000 if kind == "one giant" else 1
        bound = max(costs.sum() / ranks, costs.max())
        worst = max(worst, loads(costs, shared_out(costs, ranks), ranks).max() / bound)
    assert worst <= 1.05


def test_packs_of_no_cost_are_spread_too():
    assert np.bincount(shared_out(np.zeros(8, dtype=np.int64), 4)).tolist() == [2, 2, 2, 2]


def test_a_pack_costs_its_tokens_their_pairs_and_its_patches():
    rows = {"pack": np.array([0, 0, 2]), "num_tokens": np.array([10, 20, 30]), "patches": np.array([0, 4, 8])}
    assert pack_costs(rows).tolist() == [
        30 * TOKEN_COST + 500 * PAIR_COST + 4 * PATCH_COST,
        0,
        30 * TOKEN_COST + 900 * PAIR_COST + 8 * PATCH_COST,
    ]


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_is_refused(rank):
    with pytest.raises(ValueError, match=r"outside \[0, 4\)"):
        contiguous_packs(8, rank, 4)
    with pytest.raises(ValueError, match=r"outside \[0, 4\)"):
        rank_packs(np.ones(8, dtype=np.int64), rank, 4, 2)
