import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.keys import random_bits, random_key
from k25_pipelines.plan.permutation import ROUNDS, permute

EDGES = sorted({n for k in range(1, 21) for n in (2**k - 1, 2**k, 2**k + 1)})


def order(n, *names):
    return permute(np.arange(n), n, random_key(*names)).tolist()


@pytest.mark.parametrize("n", EDGES)
def test_every_item_stands_at_exactly_one_place(n):
    assert (np.bincount(permute(np.arange(n), n, 5), minlength=n) == 1).all()


def test_the_lengths_at_which_other_libraries_fail_are_among_them():
    assert {65_537, 262_145} <= set(EDGES)  # 4^k + 1, where a block of too few bits loses the last item


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


def plainly_shuffled(n, key):
    """The large shuffle, written out with the keyed stream for one position at a time."""
    right_bits = (n - 1).bit_length() - (n - 1).bit_length() // 2
    left_bits = (n - 1).bit_length() // 2
    round_keys = [int(word) for word in random_bits(key, np.arange(ROUNDS))]

    def item(word):
        left, right = word >> right_bits, word & ((1 << right_bits) - 1)
        for number, round_key in enumerate(round_keys):
            if number % 2 == 0:
                left ^= int(random_bits(round_key, right)) >> (64 - left_bits)
            else:
                right ^= int(random_bits(round_key, left)) >> (64 - right_bits)
        word = left << right_bits | right
        return word if word < n else item(word)

    return item


@pytest.mark.parametrize("n", [65_536, 65_537, 10**6, 2**40 + 1, 2**62 + 3])
def test_large_shuffles_are_a_feistel_network_walked_into_the_domain(n):
    item = plainly_shuffled(n, 9)
    positions = np.array([0, 1, 2, n // 3, n - 2, n - 1])
    assert permute(positions, n, 9).tolist() == [item(position) for position in positions.tolist()]


@pytest.mark.parametrize("n", [4096, 65_535, 65_536, 65_537, 131_071, 262_145, 1 << 20])
def test_every_bit_of_the_item_is_even_at_every_bit_of_the_position(n):
    position = np.arange(n)
    items, num_bits = permute(position, n, 11), (n - 1).bit_length() - 1
    halves = np.stack([(position >> bit) & 1 for bit in range(num_bits)]) * 2 - 1.0
    found = np.stack([(items >> bit) & 1 for bit in range(num_bits)]) * 2 - 1.0
    halves, found = halves - halves.mean(1, keepdims=True), found - found.mean(1, keepdims=True)
    correlation = halves @ found.T / n
    chi_square = n * (correlation**2).sum()  # of num_bits^2 independent standard normals
    assert np.abs(correlation).max() < 5 / np.sqrt(n)
    assert abs(chi_square - num_bits**2) < 5 * np.sqrt(2 * num_bits**2)


@pytest.mark.parametrize("n", [50_000, 65_537, 300_000])
@pytest.mark.parametrize("lag", [1, 2, 64, 4096])
def test_neighbours_are_not_kept_together(n, lag):
    items = permute(np.arange(n), n, 2).astype(float)
    assert abs(np.corrcoef(items[:-lag], items[lag:])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), items)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("n", [50_000, 70_000])
def test_epochs_are_independent(n):
    first, second = (permute(np.arange(n), n, random_key("chunks", 7, "wiki", epoch)) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
    assert (first == second).sum() < 10  # one is expected


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
