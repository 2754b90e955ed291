import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.keys import random_key
from k25_pipelines.plan.permutation import permute

EDGES = sorted({n for k in range(1, 19) for n in (2**k - 1, 2**k, 2**k + 1)} | {65_535, 65_536, 65_537})


def order(n, *names):
    return permute(np.arange(n), n, random_key(*names)).tolist()


@pytest.mark.parametrize("n", EDGES)
def test_every_item_stands_at_exactly_one_place(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, 5)), np.arange(n))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 200_000), key=st.integers(0, 2**64 - 1))
def test_any_length_and_key_give_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.parametrize("n", [10, 1000, 65_536, 10**12])
def test_a_position_alone_has_the_item_it_has_among_others(n):
    positions = np.array([0, 1, n // 2, n - 1])
    together = permute(positions, n, 3)
    assert [permute(int(position), n, 3) for position in positions] == together.tolist()
    assert permute(positions.reshape(2, 2), n, 3).tolist() == together.reshape(2, 2).tolist()
    assert together.dtype == np.int64


def test_neighbouring_seeds_share_no_epoch():
    assert order(100, 7, 1) != order(100, 8, 0)


@pytest.mark.parametrize("n", [65_535, 65_536, 131_071])
def test_every_bit_of_the_item_is_even_at_every_bit_of_the_position(n):
    position = np.arange(n)
    items = permute(position, n, 11)
    for bit in range((n - 1).bit_length() - 1):
        chosen = items[(position >> bit) & 1 == 1]
        for other in range((n - 1).bit_length() - 1):
            assert abs(((chosen >> other) & 1).mean() - 0.5) < 5 / np.sqrt(4 * len(chosen)) + 1e-4


@pytest.mark.parametrize("n", [50_000, 70_000])
def test_neighbours_are_not_kept_together(n):
    items = permute(np.arange(n), n, 2).astype(float)
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), items)[0, 1]) < 0.02


def test_small_shuffles_are_unbiased():
    counts = np.zeros((4, 4))
    for key in range(4000):
        counts[np.arange(4), permute(np.arange(4), 4, random_key(key))] += 1
    assert (np.abs(counts / 4000 - 0.25) < 0.035).all()


def test_positions_outside_and_fractions_are_refused():
    with pytest.raises(ValueError, match=r"spans \[0, 10\], outside \[0, 10\)"):
        permute(np.arange(11), 10, 1)
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([-1]), 10, 1)
    with pytest.raises(ValueError, match="whole numbers"):
        permute(np.array([0.5]), 10, 1)
