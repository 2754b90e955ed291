"""Which loss is a spike, and which samples it came from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.sample.batch import Batch
from tests.trainers.batches import Media, batch_of
from trainers.inputs import inputs_of
from trainers.spikes import FEWEST, WINDOW, named, sample_losses, spike_limit, worst_first


def test_of_few_steps_none_is_a_spike():
    assert spike_limit([5.0] * (FEWEST - 1)) is None


def test_a_loss_that_stands_still_may_still_move_by_a_tenth():
    assert spike_limit([2.0] * 20) == (2.0, pytest.approx(2.2))


def test_the_limit_is_six_deviations_above_the_median_of_the_last_steps():
    around = [4.0, 6.0] * (WINDOW // 2)
    assert spike_limit([100.0] * 50 + around) == (5.0, pytest.approx(5 + 6 * 1.4826))


@given(st.lists(st.floats(1.0, 3.0), min_size=FEWEST, max_size=100))
def test_one_spike_before_hides_the_next_no_more_than_the_widest_ordinary_step(losses):
    before, after = spike_limit(losses), spike_limit([*losses, 1e9])
    assert before is not None
    assert after is not None
    assert after[1] < 3.0 + 6 * 1.4826 * 2.0 + 1


def test_a_loss_that_falls_as_losses_fall_has_no_spike():
    losses = [9.0 * 0.97**step + 1.0 for step in range(200)]
    for step in range(FEWEST, 200):
        limit = spike_limit(losses[:step])
        assert limit is not None
        assert losses[step] < limit[1]


@pytest.fixture
def batch() -> Batch:
    """Two packs with padding; a picture with words, words, words, nothing to predict."""
    picture = Media(thw=(1, 4, 4))
    return batch_of([[[5, 6, 7], [picture, 8, 9]], [[10, 11, 12, 13], [14]]], length=12)


def test_each_sample_has_the_mean_loss_of_its_own_targets(batch):
    inputs = inputs_of(batch)
    losses = np.array([float(token) for token in inputs.target.tolist()], np.float32)  # a target's loss is its id
    told = sample_losses(batch, losses, inputs.target_document)
    assert [(each["pack"], each["line"], each["loss"], each["targets"]) for each in told] == [
        (0, 0, 6.5, 2),
        (0, 1, 8.5, 2),
        (1, 2, 12.0, 3),
        (1, 3, None, 0),
    ]


def test_samples_without_a_number_come_first_then_the_largest_losses_and_those_without_a_target_last(batch):
    inputs = inputs_of(batch)
    losses = np.ones(len(inputs.target), np.float32)
    losses[inputs.target.numpy() == 9] = np.nan
    losses[inputs.target.numpy() == 12] = 7.0
    samples = worst_first(sample_losses(batch, losses, inputs.target_document))
    assert named(samples) == "toy/1 (nan), toy/2 (3.000), toy/0 (1.000), toy/3"


def test_of_many_samples_eight_are_named_and_the_rest_counted():
    samples = [{"dataset": "d", "key": str(i), "loss": None} for i in range(11)]
    assert named(samples).endswith("d/7 and 3 more")
