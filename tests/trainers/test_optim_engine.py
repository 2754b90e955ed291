"""The optimizer inside the engine, on one rank: what follows a step, what is frozen, several backward passes."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainers.batches import Media, batch_of
from tests.trainers.conftest import as_one_rank
from trainers.config import MODULES, TrainConfig
from trainers.engine import Engine, Seen
from trainers.inputs import Inputs, inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import mla_layers, moe_layers
from trainers.parallel.learn import learn
from trainers.recipes import model_config

CONFIG = TrainConfig(
    stage="joint",
    model=replace(model_config("toy"), contrastive=None),
    plan="none",
    steps=1,
    learning_rate=0.01,
    trainable=("vision", "projector", "language"),
    optimizer="muonclip",
)


@pytest.fixture(autouse=True)
def alone(one_rank) -> Iterator[None]:
    with as_one_rank():
        yield


def engine_of(**changes: Any) -> Engine:
    config = replace(CONFIG, **changes)
    model = KimiK25(config.model, seed=2)
    for name in MODULES:
        if (module := getattr(model, name)) is not None:
            module.requires_grad_(name in config.trainable)
    return Engine(model, config)


def inputs(seed: int = 0) -> Inputs:
    picture = Media(thw=(1, 4, 6), seed=seed)
    words = [(7 * seed + 5 * i) % 200 + 20 for i in range(30)]
    return inputs_of(batch_of([[words[:12], [*words[12:20], picture, *words[20:]]]], length=64))


def loss_of(engine: Engine, seed: int = 0) -> Tensor:
    return engine.forward(inputs(seed)).target_losses.mean()


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.model.state_dict().items()}


def biases(engine: Engine) -> list[Tensor]:
    return [layer.gate.e_score_correction_bias.clone() for layer in moe_layers(engine.model)]


def test_a_step_moves_what_is_trained_and_tells_what_it_saw():
    engine = engine_of()
    before = weights(engine)
    norm = engine.step(loss_of(engine), 0.01)
    unmoved = {name for name, value in weights(engine).items() if torch.equal(value, before[name])}
    assert unmoved == set()
    assert norm > 0
    seen = engine.seen
    assert seen.max_logit is not None
    assert seen.max_logit == pytest.approx(max(float(each.last_max_logit.max()) for each in mla_layers(engine.model)))
    assert (seen.clipped_heads, len(seen.expert_loads)) == (0, len(moe_layers(engine.model)))
    assert seen.backward_seconds > 0
    assert seen.optimizer_seconds > 0


def test_the_balance_moves_by_its_rate_against_the_loads_of_the_step_alone():
    engine = engine_of()
    layers = moe_layers(engine.model)
    with torch.no_grad():
        engine.model(inputs(3))  # a look at other data between steps counts for nothing
    engine.step(loss_of(engine), 0.01)
    places = len(inputs().input_ids)
    for layer, load, bias in zip(layers, engine.seen.expert_loads, biases(engine), strict=True):
        assert sum(load) == places * layer.experts_per_token
        mean = torch.tensor(load).float().mean()
        assert torch.equal(bias, layer.balance_rate * (mean - torch.tensor(load)).sign())


@pytest.mark.parametrize(("optimizer", "fires"), [("muonclip", True), ("adamw", False)])
def test_heads_are_clipped_under_muonclip_and_only_there(optimizer, fires):
    engine = engine_of(optimizer=optimizer, qk_clip_threshold=1e-3, weight_decay=0.0)
    engine.step(loss_of(engine), 0.0)
    first = mla_layers(engine.model)[0]
    before, clipped = first.last_max_logit.clone(), engine.seen.clipped_heads
    engine.step(loss_of(engine), 0.0)
    assert (clipped > 0) == fires
    expected = before.clamp(max=1e-3) if fires else before
    torch.testing.assert_close(first.last_max_logit, expected, rtol=1e-4, atol=1e-7)


def test_a_frozen_language_model_keeps_its_bits_its_bias_and_its_heads():
    engine = engine_of(trainable=("projector",), qk_clip_threshold=1e-3)
    before = weights(engine)
    engine.step(loss_of(engine), 0.01)
    after = weights(engine)
    assert {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])} == {"projector"}
    assert engine.seen.clipped_heads == 0
    assert engine.seen.max_logit is not None
    assert engine.seen.max_logit > 1e-3  # told, though nothing may move
    assert sum(map(sum, engine.seen.expert_loads)) > 0


def test_several_backward_passes_make_one_step():
    whole, parts = engine_of(), engine_of()
    whole.step(loss_of(whole, 0) + loss_of(whole, 1), 0.01)
    parts.begin_step()
    for seed in (0, 1):
        parts.model(inputs(seed)).target_losses.mean().backward()
    parts.update(0.01)
    assert parts.seen.expert_loads == whole.seen.expert_loads
    assert parts.seen.max_logit == whole.seen.max_logit
    after = weights(parts)
    for name, value in weights(whole).items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=2e-5, msg=name)


def test_deepspeeds_zero_hands_an_optimizer_flat_shards_and_ours_whole_weights():
    flat = engine_of(optimizer="adamw")._engine.optimizer.optimizer.param_groups
    assert {weight.ndim for group in flat for weight in group["params"]} == {1}
    ours = engine_of()._muonclips[0].param_groups
    assert {weight.ndim for group in ours for weight in group["params"] if group["optimizer"] == "muon"} == {2, 3}


def test_an_unknown_optimizer_is_refused_by_the_name_of_its_field():
    with pytest.raises(ValueError, match=r"config\.optimizer is 'sgd'; expected one of muonclip, adamw"):
        engine_of(optimizer="sgd")


@pytest.mark.parametrize("optimizer", ["muonclip", "adamw"])
@pytest.mark.parametrize("worth", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_move_nothing(optimizer, worth):
    engine = engine_of(optimizer=optimizer, qk_clip_threshold=1e-3)
    engine.step(loss_of(engine), 0.01)
    before, states = weights(engine), copy.deepcopy(states_of(engine))
    norm = engine.step(loss_of(engine, 1) * worth, 0.01)
    after = weights(engine)
    assert not math.isfinite(norm)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(torch.equal(*pair) for pair in zip(states, states_of(engine), strict=True))
    assert replace(engine.seen, backward_seconds=0.0, optimizer_seconds=0.0) == Seen()


def states_of(engine: Engine) -> list[Tensor]:
    """Every tensor that the optimizer remembers."""
    if engine._muonclips:
        told = engine._muonclips[0].partition()
        return [*told["momentum"].values(), *[each for row in told["moments"] for each in row[2:]]]
    states = engine._engine.optimizer.optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def test_one_rank_learns_the_same_whether_its_vision_is_decoupled_or_not():
    found = []
    for force in (False, True):
        engine = engine_of()
        learnt = learn(engine, inputs(), both_of, force=force)
        found.append((float(learnt.loss), engine.update(0.01), weights(engine)))
        assert min(learnt.seconds) > 0
        assert learnt.target_losses.shape == inputs().target.shape
        assert (learnt.patches is None) == (not force)
    (loss, norm, coupled), (decoupled_loss, decoupled_norm, decoupled) = found
    assert (decoupled_loss, decoupled_norm) == (loss, pytest.approx(norm, rel=1e-6))
    for name, value in coupled.items():
        torch.testing.assert_close(decoupled[name], value, rtol=0, atol=2e-5, msg=name)


def both_of(model: KimiK25, inputs: Inputs) -> tuple[Tensor, Tensor]:
    losses = model(inputs).target_losses
    return losses.mean(), losses


def test_a_look_at_losses_makes_no_gradient():
    engine = engine_of()
    losses = engine.target_losses(inputs())
    assert not losses.requires_grad
    assert torch.equal(losses, engine.model(inputs()).target_losses)
