"""Keys and digests: named, hashed, the same for ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.keys import canonical_bytes, digest, random_bits, random_key, random_unit

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (1, True),
        (1, "1"),
        (1, 1.0),
        ("a", b"a"),
        ([1, [2]], [[1], 2]),
        (None, ""),
        ({}, []),
    ],
)
def test_values_that_differ_have_different_bytes(one, other):
    assert canonical_bytes(one) != canonical_bytes(other)


@given(plain, plain)
def test_equal_bytes_mean_equal_values(one, other):
    if canonical_bytes(one) == canonical_bytes(other):
        assert one == other


def test_the_order_in_which_a_mapping_was_written_does_not_count():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_an_array_is_its_numbers_not_its_memory():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(array.astype(">i4"))
    assert digest(array) != digest(array.astype(np.int64))
    assert digest(array) != digest(array.reshape(4, 3))


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), {1: 2}, np.array([object()])])
def test_what_has_no_stable_bytes_is_refused(value):
    with pytest.raises(ValueError, match="stable"):
        canonical_bytes(value)


def test_neighbouring_names_share_nothing():
    keys = {random_key("window", seed, epoch) for seed in range(100) for epoch in range(100)}
    assert len(keys) == 10_000


def test_bits_depend_on_the_place_alone():
    places = np.arange(1000)
    whole = random_bits(7, places, 3)
    assert (whole[::-1] == random_bits(7, places[::-1], 3)).all()
    assert int(random_bits(7, 500, 3)) == int(whole[500])
    assert (random_bits(7, places, 3) != random_bits(7, 3, places)).sum() >= 999


def test_every_bit_is_set_half_of_the_time():
    bits = random_bits(random_key("balance"), np.arange(1 << 16))
    share = [(bits >> np.uint64(place) & np.uint64(1)).mean() for place in range(64)]
    assert max(abs(one - 0.5) for one in share) < 0.01


def test_units_fill_the_interval_evenly():
    units = random_unit(random_key("units"), np.arange(100_000))
    assert units.min() >= 0
    assert units.max() < 1
    assert np.histogram(units, bins=10, range=(0, 1))[0] == pytest.approx(10_000, rel=0.05)


def test_the_keys_are_those_that_past_runs_used():
    assert digest("a", 1, None, [2.5, b"x"]) == "fce7e653b12d9f993d557fc1a31c619a"
    assert random_key("window", 7, "captions", 0) == 3508745870940557761
    assert [int(word) for word in random_bits(1, np.arange(3))] == [
        3921694344990282541,
        10086641620346190433,
        9809977977829913128,
    ]
