"""Vision, experts and layers spread over ranks give what one process gives. One spawn, three ranks, many questions."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainers.parallel_ranks import CASES, EXPERT_CASES, EXPERT_ROWS, TRAINED
from trainers.config import VisionConfig
from trainers.engine import OPTIMIZERS
from trainers.model.kimi_k25 import KimiK25
from trainers.parallel.dep import decoupled, seeing
from trainers.parallel.layout import balanced, coupled, loads, volume_work
from trainers.parallel.pipeline import bubble, split_layers
from trainers.recipes import model_config

ROOT = Path(__file__).resolve().parent.parent.parent
EXACT_ENOUGH = 1e-6


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What rank 0 found: check -> number of ranks -> findings."""
    out = tmp_path_factory.mktemp("parallel")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*launcher, "-m", "tests.trainers.parallel_ranks", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_decoupled_step_are_the_coupled_models(seen, case):
    found = seen[f"near {case}"]
    assert sorted(found) == ["1", "2", "3"]
    for each in found.values():
        assert each["loss"] < EXACT_ENOUGH
        assert each["gradients"] < EXACT_ENOUGH


@pytest.mark.parametrize("trained", TRAINED)
def test_whatever_is_frozen_the_rest_learns_the_same(seen, trained):
    assert max(each["gradients"] for each in seen[f"trained {trained}"].values()) < EXACT_ENOUGH


@pytest.mark.parametrize("case", CASES)
def test_with_the_coupled_layout_gradients_are_the_coupled_models_bit_for_bit(seen, case):
    weights = len(list(KimiK25(model_config("toy")).parameters()))
    assert seen[f"bits {case}"] == {ranks: {"equal": True, "weights": weights} for ranks in "123"}


def test_patches_of_one_ranks_media_are_spread_over_all(seen):
    assert seen["patches all media on one rank"]["3"] == {"at_home": [0, 204, 0], "by_patches": [80, 64, 60]}
    assert seen["patches a rank with no packs"]["2"] == {"at_home": [124, 0], "by_patches": [64, 60]}
    assert seen["patches no media at all"]["3"] == {"at_home": [0, 0, 0], "by_patches": [0, 0, 0]}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_engine_reduces_a_decoupled_step_once(seen, optimizer):
    found = seen[f"engine {optimizer}"]
    coupled_norm, decoupled_norm = found["norms"]
    assert decoupled_norm == pytest.approx(coupled_norm, rel=1e-5)
    assert found["updates"] < 1e-2  # Adam's first step is a sign, and a sign of nearly nothing is anyone's
    assert found["least_moved"] > 0


def test_many_small_encoder_calls_give_what_one_gives(seen):
    assert max(each["gradients"] for each in seen["small calls"].values()) < EXACT_ENOUGH


@pytest.mark.parametrize("rows", EXPERT_ROWS, ids=str)
def test_experts_on_other_ranks_answer_as_if_they_were_here(seen, rows):
    for size, found in seen[f"experts {rows}"].items():
        assert found["worst"] < 1e-12
        assert found["local"] == 6 // int(size)
        assert found["load"][5] == 0
        assert sum(found["load"]) == 2 * sum(rows[: int(size)])


@pytest.mark.parametrize(("case", "trained"), EXPERT_CASES)
def test_a_model_with_its_experts_spread_learns_what_the_whole_one_learns(seen, case, trained):
    found = seen[f"experts in {case}, {trained}"]
    assert found.pop("3") == {"refused": True}  # 4 experts on 3 ranks
    for each in found.values():
        assert each["loss"] < EXACT_ENOUGH
        assert each["gradients"] < EXACT_ENOUGH


@pytest.mark.parametrize("tied", [True, False])
def test_a_pipeline_of_virtual_stages_learns_what_the_model_in_one_piece_learns(seen, tied):
    found = seen[f"pipeline tied {tied}"]
    assert "6 pipeline stages for 5 layers: config.language.layers" in found.pop("3")["refused"]
    assert found["1"]["layers"] == [["0", "1", "2", "3", "4"]]
    assert found["2"]["layers"] == [["0", "2"], ["1", "3", "4"]]
    for each in found.values():
        assert each["covered"]
        assert each["loss"] < EXACT_ENOUGH
        assert each["gradients"] < EXACT_ENOUGH


def test_stages_share_the_layers_out_evenly_and_none_is_empty():
    assert split_layers(5, 4) == [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    assert split_layers(61, 32)[0] == range(0, 1)
    assert {len(each) for each in split_layers(61, 32)} == {1, 2}
    for stages in (0, 6):
        with pytest.raises(ValueError, match=f"{stages} pipeline stages for 5 layers"):
            split_layers(5, stages)


def test_the_bubble_is_the_published_one():
    assert bubble(2, 2, 8) == 1 / 16
    assert bubble(16, 1, 32) == 15 / 32


@given(st.lists(st.integers(1, 16384), max_size=60), st.integers(1, 9), st.none() | st.integers(1, 20000))
def test_no_rank_is_given_more_than_the_rule_promises(patches, num_ranks, call_work):
    work = np.array(patches, np.int64)
    layout = balanced(work, num_ranks, call_work=call_work)
    load = loads(layout, work, num_ranks)
    assert load.sum() == work.sum()
    assert load.max() <= work.sum() / num_ranks + work.max(initial=0) * (1 - 1 / num_ranks)
    for rank in range(num_ranks):
        calls = layout.call[layout.rank == rank]
        assert sorted(set(calls.tolist())) == list(range(calls.max(initial=-1) + 1))
        assert (np.diff(calls) >= 0).all()
        for number in set(calls.tolist()):
            held = work[(layout.rank == rank) & (layout.call == number)]
            assert call_work is None or held.sum() <= call_work or len(held) == 1


def test_the_heaviest_come_first_and_equals_in_their_order():
    layout = balanced(np.array([2, 7, 3, 3, 5, 2]), 3)
    assert layout.rank.tolist() == [1, 0, 2, 2, 1, 2]
    assert layout.call.tolist() == [0] * 6
    assert balanced(np.array([4, 4, 4, 4]), 3).rank.tolist() == [0, 1, 2, 0]


def test_a_coupled_layout_leaves_media_where_they_are():
    layout = coupled(np.array([0, 0, 2]), np.array([0, 1, 0]))
    assert (layout.rank.tolist(), layout.call.tolist()) == ([0, 0, 2], [0, 1, 0])


def test_work_of_a_volume_counts_every_matrix_and_every_pair():
    config = VisionConfig(width=8, layers=3, heads=2, mlp=20, table=4)
    per_patch = 3 * (8 * 24 + 8 * 8 + 2 * 8 * 20) + 3 * 14 * 14 * 8
    assert volume_work(np.array([1, 10]), config).tolist() == [per_patch + 48, 10 * per_patch + 4800]


def test_a_model_that_sees_borrowed_features_has_its_own_eyes_again_afterwards():
    model, features = KimiK25(model_config("toy")), torch.zeros(1)
    with seeing(model, features):
        assert model.see(None) is features
    assert model.see.__func__ is KimiK25.see


def test_a_model_without_a_tower_has_nothing_to_decouple():
    blind = KimiK25(dataclasses.replace(model_config("toy"), vision=None, contrastive=None))
    with pytest.raises(ValueError, match="model toy has no vision tower"):
        decoupled(blind, [], lambda model, inputs: torch.zeros(()))
