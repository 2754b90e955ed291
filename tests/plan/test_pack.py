import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.plan.pack import pack, pack_within


def plain_best_fit(lengths, capacity):
    """Best fit decreasing, written out."""
    packs, free = [0] * len(lengths), []
    for sample in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(space, number) for number, space in enumerate(free) if space >= lengths[sample]]
        number = min(fits)[1] if fits else len(free)
        if not fits:
            free.append(capacity)
        free[number] -= lengths[sample]
        packs[sample] = number
    return packs, len(free)


@given(lengths=st.lists(st.integers(0, 300), max_size=120))
def test_packing_is_best_fit_decreasing(lengths):
    packs, num_packs = pack(lengths, 300)
    assert (packs.tolist(), num_packs) == plain_best_fit(lengths, 300)
    assert packs.dtype == np.int64


@given(lengths=st.lists(st.integers(0, 10**9), max_size=60))
def test_large_capacities_pack_the_same(lengths):
    packs, num_packs = pack(np.array(lengths, dtype=np.int64), 10**9)
    assert (packs.tolist(), num_packs) == plain_best_fit(lengths, 10**9)


@given(samples=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 9)), max_size=80))
def test_further_limits_hold(samples):
    lengths = np.array([length for length, _ in samples], dtype=np.int64)
    media = np.array([amount for _, amount in samples], dtype=np.int64)
    packs, num_packs = pack_within(lengths, 100, [(media, 10)])
    assert (np.bincount(packs, weights=lengths, minlength=num_packs) <= 100).all()
    assert (np.bincount(packs, weights=media, minlength=num_packs) <= 10).all()
    assert set(packs.tolist()) == set(range(num_packs))


def test_nothing_makes_no_packs():
    packs, num_packs = pack(np.array([], dtype=np.int64), 10)
    assert (packs.tolist(), num_packs) == ([], 0)


@pytest.mark.parametrize("lengths", [[3, 11], [-1], [0.5]])
def test_lengths_that_fit_no_pack_are_refused(lengths):
    with pytest.raises(ValueError, match=r"outside \[0, 10\]|whole numbers"):
        pack(lengths, 10)
