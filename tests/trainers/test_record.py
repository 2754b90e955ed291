"""Which steps are saved, and what a run sums up to."""

from dataclasses import replace

import pytest

from trainers.recipes import stage_config
from trainers.record import checkpoint_steps, code_version, summary

CONFIG = stage_config("warmup", "toy", plan="p")


@pytest.mark.parametrize(
    ("steps", "every", "saved"), [(6, 0, [6]), (6, 2, [2, 4, 6]), (7, 3, [3, 6, 7]), (2, 5, [2]), (1, 1, [1])]
)
def test_the_last_step_is_always_saved(steps, every, saved):
    assert checkpoint_steps(replace(CONFIG, steps=steps, checkpoint_every=every)) == saved


def test_a_run_sums_up_to_what_its_steps_counted():
    first = {"probe_before": 2.5, "loss": 3.0, "tokens": 100, "vision_tokens": 10, "targets": 80}
    second = {"probe_after": 1.5, "loss": 2.0, "tokens": 300, "vision_tokens": 90, "targets": 250}
    assert summary([first, second]) == {
        "first_loss": 3.0,
        "last_loss": 2.0,
        "losses": [3.0, 2.0],
        "probe_before": 2.5,
        "probe_after": 1.5,
        "vision_share": 0.25,
        "vision_share_std": pytest.approx(0.1),
        "tokens": 400,
        "vision_tokens": 100,
        "targets": 330,
    }


def test_the_codes_version_is_read_from_its_files_not_from_who_reads_them():
    assert code_version() == code_version.__wrapped__()
    assert len(code_version()) == 32
