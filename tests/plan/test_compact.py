import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from k25_pipelines.plan.compact import compact, expanded

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text().filter(lambda n: n != "array"), inner, max_size=3)
    ),
    max_leaves=8,
)
INTEGERS = arrays.arrays(np.int64, st.integers(0, 20), elements=st.integers(-(2**63), 2**63 - 1))


@given(PLAIN, INTEGERS)
def test_plain_data_and_arrays_come_back_as_they_were(plain, array):
    back = expanded(compact({"plain": plain, "inner": [{"column": array}]}))
    assert back["plain"] == plain
    assert back["inner"][0]["column"].dtype == np.int64
    assert back["inner"][0]["column"].tolist() == array.tolist()


def test_columns_of_a_table_are_each_as_narrow_as_they_can_be():
    table = np.stack([np.arange(100), np.arange(100) * 10**9], axis=1)
    data = compact({"carry": table})
    assert len(data) < 100 * (1 + 8) + 80
    assert expanded(data)["carry"].tolist() == table.tolist()


def test_structured_arrays_and_other_numbers_keep_their_values():
    items = np.array([(1, 2.5), (-300, 0.25)], dtype=[("line", np.int64), ("scale", np.float64)])
    value = {"items": items, "flags": np.array([True, False]), "keys": np.array([2**64 - 1], dtype=np.uint64)}
    back = expanded(compact(value))
    assert back["items"].tolist() == items.tolist()
    assert (back["flags"].tolist(), back["keys"].tolist()) == ([True, False], [2**64 - 1])


def test_the_same_value_has_the_same_bytes_whatever_the_order_of_its_names():
    assert compact({"a": 1, "b": np.arange(3)}) == compact({"b": np.arange(3), "a": 1})
    with pytest.raises(TypeError, match="has no key 'array'"):
        compact({"array": 1})
