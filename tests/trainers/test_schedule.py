"""The learning rate is a function of the step alone."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import LanguageConfig, ModelConfig, TrainConfig
from trainers.schedule import learning_rate

MODEL = ModelConfig(name="tiny", language=LanguageConfig(width=8, layers=1, heads=2, mlp=16))
CONFIG = TrainConfig(
    stage="warmup",
    model=MODEL,
    plan="p",
    steps=6,
    learning_rate=1.0,
    trainable=("language",),
    warmup_steps=2,
    final_learning_rate=0.2,
)


def rates(**changes: float) -> list[float]:
    config = replace(CONFIG, **changes)
    return [learning_rate(step, config) for step in range(config.steps)]


def test_the_rate_climbs_in_a_line_and_falls_along_half_a_cosine():
    # 0.2 + 0.8 * (1 + cos(pi * x)) / 2 at x = 0, 1/4, 1/2, 3/4, 1
    assert rates(steps=7) == pytest.approx([0.5, 1.0, 1.0, 0.8828427, 0.6, 0.3171573, 0.2])


@given(st.integers(2, 500), st.data(), st.floats(0, 1), st.floats(1e-6, 1))
def test_the_last_step_has_exactly_the_final_share_of_the_peak(steps, data, share, peak):
    warmup = data.draw(st.integers(0, steps - 2))
    found = rates(steps=steps, warmup_steps=warmup, final_learning_rate=share, learning_rate=peak)
    assert (found[warmup], found[-1]) == (peak * (share + (1 - share)), peak * share)
    assert all(later <= sooner for sooner, later in pairwise(found[warmup:]))


def test_a_run_with_one_step_after_its_warm_up_has_the_peak_there():
    assert rates(steps=3)[-1] == rates(steps=1, warmup_steps=0)[0] == 1.0


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert rates(warmup_steps=0, steps=2) == pytest.approx([1.0, 0.2])


def test_a_run_that_is_all_warm_up_ends_at_the_peak():
    assert rates(warmup_steps=4, steps=4) == [0.25, 0.5, 0.75, 1.0]


def test_the_peak_scales_all_of_it_and_a_final_share_of_one_keeps_it():
    assert rates(learning_rate=3.0) == pytest.approx([3 * rate for rate in rates()])
    assert rates(final_learning_rate=1.0) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
