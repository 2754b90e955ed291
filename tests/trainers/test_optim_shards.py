"""Everything has one owner, matrices stay whole, and the shares are level."""

from hypothesis import given
from hypothesis import strategies as st

from trainers.optim.shards import Piece, buckets, cut, fill_up, share_matrices

SIZES = st.lists(st.integers(1, 500), max_size=30)
RANKS = st.integers(1, 7)


def pieces(*told: tuple[int, int, int]) -> list[Piece]:
    return [Piece(weight=weight, start=start, stop=stop) for weight, start, stop in told]


def elements(some: list[Piece]) -> list[tuple[int, int]]:
    return [(piece.weight, i) for piece in some for i in range(piece.start, piece.stop)]


@given(sizes=SIZES, num_ranks=RANKS)
def test_no_rank_has_more_than_another_by_more_than_its_last_matrix(sizes, num_ranks):
    owners = share_matrices(sizes, num_ranks)
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(num_ranks)]
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert len(owners) == len(sizes)


def test_the_largest_go_first_and_ties_to_the_lower_rank():
    assert share_matrices([2, 5, 3, 5, 2], 2) == [1, 0, 0, 1, 1]


@given(loads=st.lists(st.integers(0, 300), min_size=1, max_size=7), total=st.integers(0, 1000))
def test_what_can_be_cut_levels_the_ranks(loads, total):
    taken = fill_up(loads, total)
    after = [load + more for load, more in zip(loads, taken, strict=True)]
    assert sum(taken) == total
    assert min(taken) >= 0
    given_to = [load for load, more in zip(after, taken, strict=True) if more]
    assert not given_to or max(given_to) - min(after) <= 1


@given(sizes=SIZES, num_ranks=RANKS)
def test_each_element_of_a_cut_weight_has_one_owner(sizes, num_ranks):
    told = [(7 * i, size) for i, size in enumerate(sizes)]
    taken = fill_up([0] * num_ranks, sum(sizes))
    owned = cut(told, taken)
    assert [sum(piece.size for piece in own) for own in owned] == taken
    every = [each for own in owned for each in elements(own)]
    assert every == [(weight, i) for weight, size in told for i in range(size)]


@given(sizes=SIZES, size=st.integers(1, 90))
def test_buckets_hold_each_element_once_in_order_and_only_the_last_is_not_full(sizes, size):
    some = [Piece(weight=i, start=3, stop=3 + each) for i, each in enumerate(sizes)]
    filled = buckets(some, size)
    assert [each for bucket in filled for each in elements(bucket)] == elements(some)
    assert [sum(piece.size for piece in bucket) for bucket in filled[:-1]] == [size] * (len(filled) - 1)


def test_a_cut_in_view():
    assert cut([(0, 4), (2, 3)], [5, 0, 2]) == [pieces((0, 0, 4), (2, 0, 1)), [], pieces((2, 1, 3))]
