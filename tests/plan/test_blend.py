from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.plan.blend import LONGEST, blend_of, charge, drop, error_tokens, next_source, source_counts


def longest_sample(blend):
    return int(blend.totals[LONGEST])


WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(weights=WEIGHTS)
def test_counts_stay_within_one_sample_of_their_share_at_every_prefix(weights):
    total, before = sum(weights), np.zeros(len(weights), dtype=np.int64)
    for position in range(2 * total + 1):
        counts = source_counts(position, weights)
        assert counts.sum() == position
        assert (np.abs(counts * total - position * np.array(weights)) < total).all()
        assert sorted((counts - before).tolist()) == [0] * (len(weights) - bool(position)) + [1] * bool(position)
        before = counts


def test_counts_far_out_are_exact_without_a_walk():
    assert source_counts(10**15, [1, 2, 7]).tolist() == [10**14, 2 * 10**14, 7 * 10**14]
    assert source_counts(7, (3, 3)).dtype == np.int64


@pytest.mark.parametrize(("position", "weights"), [(-1, [1]), (1, []), (1, [0, 1]), (1, [0.5, 1]), (1, [1, -1])])
def test_senseless_positions_and_weights_are_refused(position, weights):
    with pytest.raises(ValueError, match=r"position is|weights are"):
        source_counts(position, weights)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 5000), min_size=300, max_size=300),
)
def test_token_debts_stay_below_three_longest_samples(weights, lengths):
    blend = blend_of(dict(enumerate(weights)))
    tokens = np.zeros(len(weights))
    for length in lengths:
        source = next_source(blend)
        charge(blend, source, num_tokens=length, vision_tokens=0)
        tokens[source] += length
        error = np.abs(tokens - tokens.sum() * np.array(weights) / sum(weights)).max()
        assert error == pytest.approx(error_tokens(blend))
        assert error < 3 * longest_sample(blend)


@settings(max_examples=60, deadline=None)
@given(
    share=st.integers(1, 60),
    samples=st.lists(st.tuples(st.integers(1, 4000), st.integers(70, 95)), min_size=300, max_size=300),
)
def test_the_vision_share_is_held_to_below_three_longest_samples(share, samples):
    blend = blend_of({0: 1, 1: 3, 2: 2}, multimodal={1}, share=Fraction(share, 100))
    tokens = vision = 0
    for length, percent in samples:
        source = next_source(blend)
        seen = length * percent // 100 if source == 1 else 0
        charge(blend, source, num_tokens=length, vision_tokens=seen)
        tokens, vision = tokens + length, vision + seen
        if share < 60:
            assert abs(vision - tokens * share / 100) < 3 * max(longest_sample(blend), 100)


def test_ties_go_to_the_name_that_comes_first():
    assert next_source(blend_of({0: 1, 1: 1})) == 0


def test_a_dry_source_leaves_its_weight_to_its_group_and_a_dry_group_says_so():
    blend = blend_of({0: 1, 1: 1, 2: 2}, multimodal={0, 1}, share=Fraction(1, 2))
    drop(blend, 0)
    taken = np.zeros(3)
    for _ in range(100):
        source = next_source(blend)
        charge(blend, source, num_tokens=10, vision_tokens=8 * (source == 1))
        taken[source] += 10
    assert taken.tolist() == [0, 620, 380]
    drop(blend, 1)
    charge(blend, 2, num_tokens=1000, vision_tokens=0)
    assert next_source(blend) is None


def test_a_blend_by_samples_follows_the_counts():
    blend = blend_of({0: 1, 2: 3}, by_samples=True)
    taken = []
    for _ in range(9):
        taken.append(next_source(blend))
        charge(blend, taken[-1], num_tokens=5, vision_tokens=0)
    assert [taken.count(0), taken.count(2)] == source_counts(9, [1, 3]).tolist()
