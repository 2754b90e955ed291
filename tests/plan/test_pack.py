import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.plan.pack import LARGEST_TABLE, pack
from tests.plan.tables import skewed


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


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 300), max_size=120))
def test_packing_is_best_fit_decreasing(lengths):
    packs, num_packs = pack(lengths, 300)
    assert (packs.tolist(), num_packs) == plain_best_fit(lengths, 300)
    assert packs.dtype == np.int64


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 10**9), max_size=60), capacity=st.sampled_from([LARGEST_TABLE, 10**9]))
def test_large_capacities_pack_the_same(lengths, capacity):
    lengths = np.minimum(np.array(lengths, dtype=np.int64), capacity)
    packs, num_packs = pack(lengths, capacity)
    assert (packs.tolist(), num_packs) == plain_best_fit(lengths.tolist(), capacity)


@pytest.mark.parametrize("capacity", [1, 63, 64, 65, 4095, 4096, LARGEST_TABLE])
def test_many_samples_pack_the_same_at_every_width_of_the_bitmap(capacity):
    lengths = np.minimum(capacity, skewed(f"pack {capacity}", 1500, 0, capacity + 1))
    packs, num_packs = pack(lengths, capacity)
    assert (packs.tolist(), num_packs) == plain_best_fit(lengths.tolist(), capacity)


def test_nothing_makes_no_packs():
    packs, num_packs = pack(np.array([], dtype=np.int64), 10)
    assert (packs.tolist(), num_packs) == ([], 0)


@pytest.mark.parametrize("lengths", [[3, 11], [-1], [0.5]])
def test_lengths_that_fit_no_pack_are_refused(lengths):
    with pytest.raises(ValueError, match=r"outside \[0, 10\]|whole numbers"):
        pack(lengths, 10)
