"""The experts' promises: the sorted computation is the plain sum, the load is counted, the bias evens it out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from trainers.config import LanguageConfig
from trainers.model.attention import causal_groups
from trainers.model.language import (
    Language,
    forget_records,
    mla_layers,
    moe_layers,
    record_over_forwards,
    track_logits,
)
from trainers.model.mlp import GatedMLP
from trainers.model.moe import MoE, experts_forward
from trainers.recipes import model_config

CONFIG = replace(model_config("toy").language, experts=6, experts_per_token=3, expert_mlp=20, width=24)


def drawn(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=0.3, generator=generator)
    return module


def layer(config: LanguageConfig = CONFIG) -> MoE:
    return drawn(MoE(config))


def plain(x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return the definition: one place and one expert at a time."""
    rows = []
    for each, chosen, weight in zip(x, indices.tolist(), weights, strict=True):
        parts = []
        for expert, factor in zip(chosen, weight, strict=True):
            gate, up = (gate_up[expert] @ each).chunk(2)
            parts.append(factor * (down[expert] @ (functional.silu(gate) * up)))
        rows.append(sum(parts))
    return torch.stack(rows) if rows else x * (0 * weights.sum() + 0 * gate_up.sum() + 0 * down.sum())


@settings(max_examples=30, deadline=None)
@given(
    places=st.integers(0, 12),
    experts=st.integers(1, 7),
    hidden=st.sampled_from([3, 4, 6, 8]),
    wide=st.booleans(),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_sorted_experts_are_the_sum_over_each_place_s_own_and_so_are_their_gradients(
    places, experts, hidden, wide, seed, data
):
    chosen, kind = data.draw(st.integers(1, experts)), torch.float64 if wide else torch.float32
    indices = torch.rand(places, experts, generator=torch.Generator().manual_seed(seed)).topk(chosen).indices
    shapes = [(places, 8), (places, chosen), (experts, 2 * hidden, 8), (experts, 8, hidden)]
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = [torch.randn(shape, generator=generator, dtype=kind) / 2 for shape in shapes]
    answers = []
    for function in (experts_forward, plain):
        x, weights, gate_up, down = (each.clone().requires_grad_() for each in inputs)
        y = function(x, indices, weights, gate_up, down)
        answers.append([y, *torch.autograd.grad(y.square().sum(), (x, weights, gate_up, down), materialize_grads=True)])
    for mine, wanted in zip(*answers, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    assert answers[0][0].shape == (places, 8)


def test_experts_of_equal_weights_are_one_mlp_whatever_is_chosen():
    moe = layer(replace(CONFIG, routed_scale=1.0, shared_experts=0))
    with torch.no_grad():
        moe.experts.gate_up.copy_(moe.experts.gate_up[:1].expand_as(moe.experts.gate_up))
        moe.experts.down.copy_(moe.experts.down[:1].expand_as(moe.experts.down))
    dense = GatedMLP(24, 20)
    gate, up = moe.experts.gate_up[0].chunk(2)
    dense.load_state_dict(
        {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": moe.experts.down[0]}, strict=True
    )
    x = torch.randn(30, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moe(x), dense(x), rtol=1e-5, atol=1e-5)


def test_the_shared_expert_is_added_and_is_as_wide_as_its_number_says():
    two = layer(replace(CONFIG, shared_experts=2))
    assert two.shared_experts.gate_proj.weight.shape == (40, 24)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    routed = experts_forward(x, *two.route(x), two.experts.gate_up, two.experts.down)
    torch.testing.assert_close(two(x), routed + two.shared_experts(x))


def test_the_load_is_what_each_expert_was_given():
    moe, x = layer(), torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    indices, _ = moe.route(x)
    moe(x)
    assert moe.last_load.dtype == torch.int64
    assert moe.last_load.tolist() == [int((indices == expert).sum()) for expert in range(6)]
    moe(x[:3])
    assert int(moe.last_load.sum()) == 9


def test_loads_and_logits_of_micro_batches_add_up_between_two_forgettings():
    config = replace(CONFIG, width=32)
    language = drawn(Language(config)).train()

    def feed(start: int) -> list:
        count = np.array([9])
        language(language.embed_tokens(torch.arange(start, start + 9)), torch.arange(9), causal_groups(count))
        loads = [m.last_load.clone() for m in moe_layers(language)]
        return [loads, [m.last_max_logit.clone() for m in mla_layers(language)]]

    track_logits(language, True)
    (load_a, logit_a), (load_b, logit_b) = feed(0), feed(50)
    record_over_forwards(language, True)
    forget_records(language)
    feed(0)
    load, logit = feed(50)
    assert [a.tolist() for a in load] == [(a + b).tolist() for a, b in zip(load_a, load_b, strict=True)]
    assert [a.tolist() for a in logit] == [torch.maximum(a, b).tolist() for a, b in zip(logit_a, logit_b, strict=True)]


def test_padding_is_computed_as_before_and_not_counted():
    config = replace(CONFIG, width=32)
    language, ids = drawn(Language(config)).train(), torch.arange(12)
    position, real = torch.arange(12) % 8, torch.arange(12) < 8
    answers, loads = [], []
    for mask in (None, real):
        answers.append(language(language.embed_tokens(ids), position, causal_groups(np.array([8, 4]), mask)))
        loads.append([int(m.last_load.sum()) for m in moe_layers(language)])
    assert torch.equal(*answers)
    sparse = len(moe_layers(language))
    assert loads == [[12 * config.experts_per_token] * sparse, [8 * config.experts_per_token] * sparse]
    language(language.embed_tokens(ids[:8]), position[:8], causal_groups(np.array([8])))
    alone = [m.last_load.tolist() for m in moe_layers(language)]
    language(language.embed_tokens(ids), position, causal_groups(np.array([8, 4]), real))
    assert [m.last_load.tolist() for m in moe_layers(language)] == alone


def test_the_bias_of_a_choice_goes_down_where_the_load_is_above_the_mean():
    moe = layer(replace(CONFIG, balance_rate=0.25))
    moe.update_balance(torch.tensor([12, 6, 6, 0, 6, 6]))
    assert moe.gate.e_score_correction_bias.tolist() == [-0.25, 0, 0, 0.25, 0, 0]


def test_balancing_evens_out_the_load_without_touching_a_weight():
    moe, x = layer(replace(CONFIG, balance_rate=0.01)), torch.randn(600, 24, generator=torch.Generator().manual_seed(1))
    x = x + 1.5 * moe.gate.weight[0] / moe.gate.weight[0].norm()
    before = {name: weight.clone() for name, weight in moe.named_parameters()}
    moe(x)
    first = moe.last_load.max() / moe.last_load.float().mean()
    for _ in range(120):
        moe(x)
        moe.update_balance(moe.last_load)
    moe(x)
    assert first > 1.5
    assert moe.last_load.max() / moe.last_load.float().mean() < 1.1
    assert all(torch.equal(weight, before[name]) for name, weight in moe.named_parameters())
    assert "gate.e_score_correction_bias" in moe.state_dict()


def test_no_gradient_goes_through_the_choice_and_every_weight_of_the_router_has_one():
    moe, x = layer(), torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    moe(x).square().sum().backward()
    assert (moe.gate.weight.grad.abs().amax(1) > 0).all()
    assert not moe.gate.e_score_correction_bias.requires_grad


def test_a_dispatcher_takes_the_place_of_the_local_experts():
    moe, x = layer(), torch.randn(10, 24, generator=torch.Generator().manual_seed(1))
    expected, seen = moe(x), {}

    def dispatch(rows, indices, weights, experts):
        seen.update(indices=indices)
        return experts_forward(rows, indices, weights, experts.gate_up, experts.down)

    moe.dispatcher = dispatch
    assert torch.equal(moe(x), expected)
    assert seen["indices"].shape == (10, 3)


@pytest.mark.parametrize(("dense", "kinds"), [(0, [MoE, MoE]), (1, [GatedMLP, MoE])])
def test_the_first_layers_are_dense(dense, kinds):
    config = replace(model_config("toy").language, dense_layers=dense)
    assert [type(block.mlp) for block in Language(config).layers] == kinds
    assert [type(block.mlp) for block in Language(replace(config, experts=0)).layers] == [GatedMLP, GatedMLP]


def test_no_token_and_an_empty_load():
    moe = layer()
    assert moe(torch.zeros(0, 24)).shape == (0, 24)
    assert moe.last_load.tolist() == [0] * 6
