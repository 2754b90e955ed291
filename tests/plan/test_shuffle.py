import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.plan.shuffle import WINDOW_VISITS, Order, lane_samples


def order(num_lines=1003, chunk_lines=7, lanes=4, seed=1, dataset="wiki"):
    return Order(dataset=dataset, seed=seed, num_lines=num_lines, chunk_lines=chunk_lines, lanes=lanes)


def epochs(source, num_epochs):
    """Lines of each epoch over all lanes together."""
    positions = np.arange(source.num_lines * num_epochs)
    seen = [[] for _ in range(num_epochs)]
    for lane in range(source.lanes):
        line, epoch = lane_samples(source, lane, positions)
        for number in range(num_epochs):
            seen[number].extend(line[epoch == number].tolist())
    return seen


@settings(max_examples=60, deadline=None)
@given(num_lines=st.integers(1, 400), chunk_lines=st.integers(1, 50), lanes=st.integers(1, 9))
def test_every_epoch_visits_each_line_exactly_once_over_the_lanes_together(num_lines, chunk_lines, lanes):
    for lines in epochs(order(num_lines, chunk_lines, lanes), 3):
        assert sorted(lines) == list(range(num_lines))


def test_epochs_follow_each_other_in_a_lane():
    for lane in range(4):
        _, epoch = lane_samples(order(), lane, np.arange(5000))
        assert (np.diff(epoch) >= 0).all()


def test_any_position_can_be_asked_for_alone():
    line, epoch = lane_samples(order(), 2, np.arange(3000))
    for position in (0, 1, 251, 252, 999, 2999):
        alone = lane_samples(order(), 2, np.array([position]))
        assert (alone[0][0], alone[1][0]) == (line[position], epoch[position])
    far, _ = lane_samples(order(), 2, np.arange(10**12, 10**12 + 5))
    again, _ = lane_samples(order(), 2, np.arange(10**12 + 4, 10**12 - 1, -1))
    assert far.tolist() == again[::-1].tolist()


def test_a_window_holds_the_samples_of_sixteen_whole_chunks():
    source = order(num_lines=40_000, chunk_lines=10, lanes=2)
    line, _ = lane_samples(source, 1, np.arange(WINDOW_VISITS * 10))
    chunks, counts = np.unique(line // 10, return_counts=True)
    assert (len(chunks), set(counts.tolist())) == (WINDOW_VISITS, {10})
    assert not np.array_equal(np.sort(line), line)


def test_the_ragged_chunk_keeps_the_last_place_of_its_epoch():
    source = order(num_lines=1003, chunk_lines=7, lanes=1)
    line, _ = lane_samples(source, 0, np.arange(1003))
    assert set(range(1001, 1003)) <= set(line[-(144 % WINDOW_VISITS or WINDOW_VISITS) * 7 :].tolist())


@pytest.mark.parametrize("other", [{"seed": 2}, {"dataset": "code"}])
def test_another_seed_or_dataset_has_another_order(other):
    same = lane_samples(order(), 0, np.arange(100))[0]
    assert (lane_samples(order(**other), 0, np.arange(100))[0] != same).mean() > 0.9


def test_epochs_differ():
    first, second = epochs(order(lanes=1), 2)
    assert (np.array(first) != np.array(second)).mean() > 0.9
