"""Whole-matrix sharding on four real ranks: the same weights as on one, a share of the states each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.test_optim_muonclip import toy, values

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = (1, 2, 4)
CLOSE = {"rtol": 0, "atol": 3e-6}
"""A step moves a weight by 2e-3 to 1e-2."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of four ranks saw."""
    folder = tmp_path_factory.mktemp("optim-ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainers.optim_ranks", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)]


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_all_ranks_of_a_group_end_each_step_with_the_same_bits(ranks):
    for size in SIZES:
        for step in range(3):
            first = ranks[0]["weights"][size][step]
            assert all(same(first, each["weights"][size][step]) for each in ranks)


@pytest.mark.parametrize("size", [2, 4])
def test_more_ranks_make_the_same_steps_as_one(ranks, size):
    start = values(toy())
    for step in range(3):
        one, many = (ranks[0]["weights"][each][step] for each in (1, size))
        for name, value in one.items():
            torch.testing.assert_close(many[name], value, **CLOSE, msg=name)
            assert (value - start[name]).abs().max() > 1e-3


def test_each_rank_keeps_the_states_of_an_even_share(ranks):
    whole = ranks[0]["elements"][1]
    assert whole == sum(weight.numel() for _, weight in toy())
    for size in SIZES:
        parts = [each["elements"][size] for each in ranks][:size]
        assert sum(parts) == whole
        assert max(parts) - min(parts) <= 1


def test_states_go_on_in_the_same_bits_on_as_many_ranks_and_nearly_so_on_fewer(ranks):
    uninterrupted = ranks[0]["weights"][4][-1]
    assert same(ranks[0]["resumed"][4], uninterrupted)
    for size in (1, 2):
        for name, value in uninterrupted.items():
            torch.testing.assert_close(ranks[0]["resumed"][size][name], value, **CLOSE, msg=name)


def test_a_head_is_clipped_by_its_largest_logit_on_any_rank_on_all_ranks_alike(ranks):
    heads = ranks[0]["clip"]["largest"].shape[1]
    loudest = [max(10.0 * (1 + rank) for rank in range(4) if rank % heads == head) for head in range(min(heads, 4))]
    for each in ranks:
        assert each["clip"]["largest"][0, :4].tolist() == loudest
        assert same(each["clip"]["weights"], ranks[0]["clip"]["weights"])
    assert not same(ranks[0]["clip"]["weights"], values(toy()))


def test_ranks_that_own_nothing_have_the_same_weights(ranks):
    assert [each["crowd"]["elements"] for each in ranks] == [6, 0, 0, 0]
    first = ranks[0]["crowd"]["weight"]
    assert first.ne(1).any()
    assert all(torch.equal(each["crowd"]["weight"], first) for each in ranks)
