"""Every way to share the work takes the steps that one process takes: two and four real ranks against a plain loop."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.parallel_layouts import (
    CONFIG,
    FROZEN,
    LAYOUTS,
    RATE,
    RESUMED,
    SAME_BITS,
    STEPS,
    built,
    inputs_for,
    precision,
)
from trainers.config import TrainConfig
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import forget_records, mla_layers, moe_layers, record_over_forwards, track_logits
from trainers.optim.muonclip import MuonClip
from trainers.optim.qk_clip import qk_clip

ROOT = Path(__file__).resolve().parent.parent.parent
SPREAD = [name for name, (_, parallel) in LAYOUTS.items() if precision(parallel) == torch.float64]


def plain_loop(config: TrainConfig, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """One process, one batch a step, no engine."""
    model, found = built(config, dtype), []
    track_logits(model, True)
    record_over_forwards(model, True)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    options = {"learning_rate": RATE, "weight_decay": config.weight_decay, "gradient_clip": config.gradient_clip}
    optimizer = MuonClip(named, **options)
    for packs in STEPS[:steps]:
        model.zero_grad()
        forget_records(model)
        losses = model(inputs_for(packs, dtype)).target_losses
        losses.mean().backward()
        optimizer.step()
        losses = losses.detach()
        found.append({"loss": float(losses.mean()), "norm": optimizer._global_grad_norm, "losses": losses})
        found[-1]["seen"] = followed(model, config) if "language" in config.trainable else looked_at(model)
    probe = model(inputs_for(STEPS[0], dtype)).target_losses.detach()
    return {"steps": found, "weights": whole(model), "probe": probe, "moments": sum(w.numel() for _, w in named)}


def followed(model: KimiK25, config: TrainConfig) -> list:
    """Clip and balance, and return what an engine shows of them."""
    loads = tuple(tuple(layer.last_load.tolist()) for layer in moe_layers(model))
    for layer in moe_layers(model):
        layer.update_balance(layer.last_load)
    largest = qk_clip(model, config.qk_clip_threshold)
    assert len(largest) == len(mla_layers(model))
    return [float(largest.max()), int((largest > config.qk_clip_threshold).sum()), loads]


def looked_at(model: KimiK25) -> list:
    """What an engine shows of layers that are frozen: nothing is clipped, nothing moves."""
    largest = max(float(layer.last_max_logit.max()) for layer in mla_layers(model))
    return [largest, 0, tuple(tuple(layer.last_load.tolist()) for layer in moe_layers(model))]


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    """What rank 0 found under each layout."""
    out = tmp_path_factory.mktemp("layouts")
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainers.parallel_layouts", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {name: torch.load(out / f"{name}.pt", weights_only=True) for name in LAYOUTS}


@pytest.fixture(scope="module")
def alone() -> dict[torch.dtype, dict]:
    """What the plain loop finds in either precision."""
    return {dtype: plain_loop(CONFIG, dtype, len(STEPS)) for dtype in (torch.float32, torch.float64)}


def farthest(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """The largest distance of a weight relative to the norm of its way."""
    shapes = [{name: value.shape for name, value in each.items()} for each in (found, expected)]
    assert shapes[0] == shapes[1]
    ways = {name: float((value - start[name]).norm()) for name, value in expected.items()}
    return max(float((found[name] - expected[name]).norm()) / max(ways[name], 1e-9) for name in expected)


def tolerance(name: str) -> float:
    return 1e-9 if name in SPREAD else 2e-2  # in float32 an update near zero may take another sign


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_updates_are_those_of_one_process(seen, alone, name):
    dtype = precision(LAYOUTS[name][1])
    far = farthest(seen[name]["weights"], alone[dtype]["weights"], whole(built(CONFIG, dtype)))
    assert far < tolerance(name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_shows_what_one_process_shows(seen, alone, name):
    rel = 1e-9 if name in SPREAD else 1e-3
    expected = alone[precision(LAYOUTS[name][1])]
    for found, wanted in zip(seen[name]["steps"], expected["steps"], strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=rel)
        assert found["norm"] == pytest.approx(wanted["norm"], rel=rel)
        torch.testing.assert_close(found["losses"], wanted["losses"], rtol=rel, atol=rel)
        assert found["seen"][0] == pytest.approx(wanted["seen"][0], rel=rel)
        assert found["seen"][1:] == wanted["seen"][1:] or name not in SPREAD
    torch.testing.assert_close(seen[name]["probe"], expected["probe"], rtol=rel, atol=rel)
    assert sum(each["seen"][1] for each in expected["steps"]) > 0  # heads were clipped


@pytest.mark.parametrize("name", LAYOUTS)
def test_optimizer_states_are_shared_out_once_and_weights_are_kept_where_they_are_needed(seen, alone, name):
    size, parallel = LAYOUTS[name]
    whole = alone[torch.float64]["moments"]
    assert seen[name]["elements"] == whole
    kept = seen[name]["kept"]
    assert len(kept) == size
    is_spread = parallel.expert_ranks * parallel.pipeline_stages > 1
    assert (max(kept) < whole) == is_spread
    assert is_spread or set(kept) == {whole}


@pytest.mark.parametrize("name", RESUMED)
def test_any_layout_goes_on_from_the_checkpoint_of_another(seen, alone, name):
    loose = next((each for each in (name, RESUMED[name]) if each not in SPREAD), name)
    dtype = precision(LAYOUTS[loose][1])
    far = farthest(seen[name]["resumed"], alone[dtype]["weights"], whole(built(CONFIG, torch.float64)))
    assert far < tolerance(loose)


@pytest.mark.parametrize("name", SAME_BITS)
def test_the_same_layout_goes_on_in_the_same_bits(seen, name):
    assert seen[name]["same bits"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_that_are_not_finite_touch_nothing(seen, name):
    assert not torch.tensor(seen[name]["spoilt"]["norm"]).isfinite()
    assert seen[name]["spoilt"]["untouched"]


@pytest.mark.parametrize("name", FROZEN)
def test_a_projector_learns_alone_through_spread_layers(seen, name):
    expected = plain_loop(replace(CONFIG, trainable=("projector",)), torch.float64, 1)
    found = seen[name]["frozen"]
    far = farthest(found["weights"], expected["weights"], whole(built(CONFIG, torch.float64)))
    assert far < 1e-9
    assert found["seen"][0] == pytest.approx(expected["steps"][0]["seen"][0], rel=1e-9)
    assert found["seen"][1:] == expected["steps"][0]["seen"][1:]


def test_patches_are_encoded_by_all_ranks_alike_or_by_those_whose_packs_hold_them(seen):
    def patches(name: str) -> list:
        return [step["patches"] for step in seen[name]["steps"]]

    for name in ("stages x data", "stages", "experts x data"):
        every = patches(name)
        assert all(max(each) - min(each) <= 80 for each in every)  # the largest medium
        assert sum(each > 0 for each in every[0]) == LAYOUTS[name][0]
    coupled = patches("one virtual stage, coupled")
    assert [each[1:] for each in coupled] == [[0]] * len(STEPS)  # the second stage encodes nothing
    assert sum(coupled[0]) == sum(patches("stages")[0])
    assert patches("experts") == [None] * len(STEPS)
