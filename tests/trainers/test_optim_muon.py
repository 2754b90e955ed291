"""Newton-Schulz against SVD and torch's Muon; which weights Muon has."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainers.optim.muon import momentum_update, orthogonalised, update_scale
from trainers.optim.muonclip import MuonClip
from trainers.optim.rules import matrices_of, rule_of

BAND = (0.68, 1.14)
"""Where five steps take singular values from 1/100 of the largest on: the quintic does not converge to 1."""


def quintic(value: float) -> float:
    """Five steps of the published polynomial on one singular value."""
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


def matrix_with(singular: torch.Tensor, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(singular), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(singular), generator=generator, dtype=torch.float64))
    return (left * singular.double() @ right.mT).float()


def torch_step(weight: nn.Parameter, gradients: list[torch.Tensor], *, rate: float, decay: float) -> torch.Tensor:
    """Return what torch's Muon makes of a weight; it orthogonalises in bfloat16."""
    moved = nn.Parameter(weight.detach().clone())
    muon = torch.optim.Muon([moved], lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        moved.grad = gradient.clone()
        muon.step()
    return moved.detach()


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (1, 8), (8, 1)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    singular = torch.logspace(-2, 0, min(shape))
    left, _, right = torch.linalg.svd(matrix_with(singular, *shape).double(), full_matrices=False)
    inner = left.mT @ orthogonalised(matrix_with(singular, *shape)[None])[0].double() @ right.mT
    expected = [quintic(float(each) / float(singular.norm())) for each in singular.flip(0)]
    torch.testing.assert_close(inner, torch.diag(torch.tensor(expected, dtype=torch.float64)), atol=2e-4, rtol=0)


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 48), columns=st.integers(1, 48))
@settings(max_examples=40, deadline=None)
def test_what_is_well_conditioned_ends_in_the_known_band_around_the_orthogonal_matrix(seed, rows, columns):
    singular = torch.logspace(-1, 0, min(rows, columns))
    matrix = matrix_with(singular, rows, columns, seed % 1000)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(orthogonalised(matrix[None])[0])
    assert BAND[0] < values.min() <= values.max() < BAND[1]
    distance = torch.linalg.matrix_norm(orthogonalised(matrix[None])[0] - left @ right, ord=2)
    assert distance < max(1 - BAND[0], BAND[1] - 1)


def test_matrices_of_a_stack_do_not_see_each_other_and_none_of_zeros_moves():
    stack = torch.stack([matrix_with(torch.ones(6), 6, 9, seed) * 10.0**seed for seed in range(3)])
    stack[1] = 0
    alone = torch.stack([orthogonalised(each[None])[0] for each in stack])
    torch.testing.assert_close(orthogonalised(stack), alone, atol=1e-6, rtol=0)
    assert orthogonalised(stack)[1].eq(0).all()


def test_the_input_stays_as_it_is():
    matrix = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    before = matrix.clone()
    orthogonalised(matrix)
    assert torch.equal(matrix, before)


def test_the_update_has_a_fifth_of_the_rate_as_root_mean_square_whatever_the_shape():
    for rows, columns in [(8, 8), (4, 64), (64, 4)]:
        exact = matrix_with(torch.ones(min(rows, columns)), rows, columns)
        assert float((exact * update_scale(rows, columns)).square().mean().sqrt()) == pytest.approx(0.2)


def test_momentum_looks_ahead_as_nesterov_does():
    momentum, gradient = torch.tensor([1.0]), torch.tensor([3.0])
    ahead = momentum_update(momentum, gradient, rate=0.75)
    assert (momentum.tolist(), ahead.tolist()) == ([1.5], [0.25 * 3 + 0.75 * 1.5])


@pytest.mark.parametrize("shape", [(12, 12), (10, 24), (24, 10)])
def test_steps_are_those_of_torchs_muon_bit_for_bit_in_its_precision_and_close_in_ours(shape, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    weight = nn.Parameter(torch.randn(*shape, generator=generator))
    gradients = [torch.randn(*shape, generator=generator) for _ in range(4)]
    expected = torch_step(weight, gradients, rate=0.02, decay=0.1)

    def ours() -> torch.Tensor:
        moved = nn.Parameter(weight.detach().clone())
        optimizer = MuonClip([("matrix", moved)], learning_rate=0.02, weight_decay=0.1, momentum=0.95)
        for gradient in gradients:
            moved.grad = gradient.clone()
            optimizer.step()
        return moved.detach()

    in_float32 = ours()
    monkeypatch.setattr("trainers.optim.muonclip.orthogonalised", lambda m: orthogonalised(m.bfloat16()))
    assert torch.equal(ours(), expected)
    moved_by = (expected - weight.detach()).square().mean().sqrt()
    assert (in_float32 - expected).square().mean().sqrt() < 0.02 * moved_by


@pytest.mark.parametrize(
    ("name", "shape", "kind", "decays"),
    [
        ("language.embed_tokens.weight", (64, 8), "adamw", False),
        ("contrastive.embed_tokens.weight", (64, 8), "adamw", False),
        ("language.lm_head.weight", (64, 8), "adamw", True),
        ("vision.patch_embed.pos_emb.weight", (4, 4, 8), "adamw", False),
        ("vision.patch_embed.proj.weight", (8, 3, 14, 14), "adamw", True),
        ("vision.patch_embed.proj.bias", (8,), "adamw", False),
        ("language.layers.1.mlp.gate.weight", (4, 8), "muon", True),
        ("language.layers.1.mlp.experts.gate_up", (4, 32, 8), "muon", True),
        ("language.layers.1.mlp.experts.down", (4, 8, 16), "muon", True),
        ("language.layers.0.mlp.gate_proj.weight", (16, 8), "muon", True),
        ("language.layers.0.self_attn.kv_a_proj_with_mqa.weight", (12, 8), "muon", True),
        ("language.layers.0.input_layernorm.weight", (8,), "adamw", False),
        ("projector.proj.0.weight", (32, 32), "muon", True),
    ],
)
def test_each_kind_of_weight_has_its_rule(name, shape, kind, decays):
    rule = rule_of(name, torch.Size(shape))
    assert (rule.optimizer, rule.decays) == (kind, decays)


def test_stacked_experts_are_a_matrix_each_and_gate_and_up_are_two():
    shapes = {"experts.gate_up": (4, 32, 8), "experts.down": (4, 8, 16), "q_b_proj.weight": (24, 8)}
    seen = {name: matrices_of(rule_of(name, torch.Size(shape)), torch.Size(shape)) for name, shape in shapes.items()}
    assert seen == {"experts.gate_up": (8, 16, 8), "experts.down": (4, 8, 16), "q_b_proj.weight": (1, 24, 8)}


def test_a_weight_that_may_be_one_matrix_or_many_is_refused_by_name():
    with pytest.raises(ValueError, match=r"tower\.kernel has shape \(2, 3, 4\): say in .*rules.py"):
        rule_of("tower.kernel", torch.Size((2, 3, 4)))


def test_the_band_is_that_of_the_published_polynomial():
    values = [quintic(value) for value in torch.linspace(0.01, 1, 2000).tolist()]
    assert (min(values), max(values)) == pytest.approx((0.6838, 1.1309), abs=5e-3)
    assert math.isclose(3.4445**5, quintic(1e-9) / 1e-9, rel_tol=1e-6)
