import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.plan.balance import rank_packs


@given(packs=st.integers(1, 300), ranks=st.integers(1, 300))
def test_ranks_take_all_packs_in_contiguous_runs_of_nearly_one_length(packs, ranks):
    runs = [rank_packs(packs, rank, ranks) for rank in range(ranks)]
    assert [pack for run in runs for pack in run] == list(range(packs))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_is_refused(rank):
    with pytest.raises(ValueError, match=r"outside \[0, 4\)"):
        rank_packs(8, rank, 4)
