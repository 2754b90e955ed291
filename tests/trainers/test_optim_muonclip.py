"""MuonClip alone: each weight of a whole model is moved once, by its rule, and its states go where they are wanted."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from k25_pipelines.errors import CheckpointError
from trainers.model.kimi_k25 import KimiK25
from trainers.optim.muon import orthogonalised
from trainers.optim.muonclip import MuonClip
from trainers.optim.rules import matrices_of, rule_of
from trainers.recipes import model_config

RATE = 0.01
Named = list[tuple[str, nn.Parameter]]


def toy(seed: int = 1) -> Named:
    """Return every weight of the toy model: vision, projector, MLA, experts, contrastive head."""
    return list(KimiK25(model_config("toy"), seed=seed).named_parameters())


def give_gradients(named: Named, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, weight in named:
        weight.grad = torch.randn(weight.shape, generator=generator) * 0.01


def gradient_of(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def muonclip(named: Named, **more: Any) -> MuonClip:
    return MuonClip(named, **{"learning_rate": RATE, "weight_decay": 0.1, "gradient_clip": 1.0, **more})


def values(named: Named) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in named}


def matrices(named: Named, moved: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each matrix that is Muon's, experts and their halves one by one, by its weight's name."""
    for name, weight in named:
        rule = rule_of(name, weight.shape)
        if rule.optimizer == "muon":
            for each in moved[name].reshape(matrices_of(rule, weight.shape)):
                yield name, each


def reference(named: Named, seeds: list[int], *, clip: float, decay: float) -> dict[str, Tensor]:
    """Return the weights after steps in float64, one weight and one matrix at a time."""
    weights = {name: weight.detach().double() for name, weight in named}
    momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step, seed in enumerate(seeds, 1):
        give_gradients(named, seed)
        norm = torch.cat([gradient_of(weight).flatten() for _, weight in named]).double().norm()
        for name, weight in named:
            rule, gradient = (
                rule_of(name, weight.shape),
                gradient_of(weight).double() * min(1.0, clip / float(norm + 1e-6)),
            )
            kept = 1 - RATE * decay if rule.decays else 1.0
            if rule.optimizer == "muon":
                momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
                ahead = 0.05 * gradient + 0.95 * momentum[name]
                _, rows, columns = shape = matrices_of(rule, weight.shape)
                update = torch.stack([orthogonalised(each[None])[0] for each in ahead.reshape(shape)])
                update = 0.2 * max(rows, columns) ** 0.5 * update.reshape(weight.shape)
            else:
                momentum[name] = 0.9 * momentum[name] + 0.1 * gradient
                square[name] = 0.95 * square[name] + 0.05 * gradient**2
                root = (square[name] / (1 - 0.95**step)).sqrt() + 1e-8
                update = momentum[name] / (1 - 0.9**step) / root
            weights[name] = weights[name] * kept - RATE * update
    return weights


@pytest.mark.parametrize("clip", [0.1, 1000.0])
def test_three_steps_move_every_weight_as_the_formulas_say_once_a_step(clip):
    named, seeds = toy(), [5, 6, 7]
    expected = reference(named, seeds, clip=clip, decay=0.1)
    optimizer = muonclip(named, gradient_clip=clip)
    for seed in seeds:
        give_gradients(named, seed)
        optimizer.step()
    for name, weight in named:
        torch.testing.assert_close(weight.detach().double(), expected[name], atol=2e-5, rtol=0, msg=name)


def test_each_matrix_moves_by_a_fifth_of_the_rate_and_all_else_by_the_rate_itself():
    named = toy()
    before = values(named)
    give_gradients(named, 2)
    muonclip(named, weight_decay=0.0, gradient_clip=0.0).step()
    moved = {name: weight.detach() - before[name] for name, weight in named}
    by_name: dict[str, list[float]] = {}
    for name, each in matrices(named, moved):
        by_name.setdefault(name, []).append(float(each.square().mean().sqrt()) / RATE)
    unlike = {name for name, weight in named if weight.ndim > 1} - by_name.keys()
    assert unlike == {
        "vision.patch_embed.proj.weight",
        "vision.patch_embed.pos_emb.weight",
        "language.embed_tokens.weight",
        "contrastive.embed_tokens.weight",
    }
    assert {"vision", "projector", "language", "contrastive"} == {name.partition(".")[0] for name in by_name}
    for name, sizes in by_name.items():
        assert all(0.2 * 0.68 < size < 0.2 * 1.14 for size in sizes), (name, sizes)
    for name in moved.keys() - by_name.keys():
        assert float(moved[name].abs().mean()) / RATE == pytest.approx(1.0, rel=2e-3), name


def test_the_norm_is_that_of_all_gradients_before_clipping():
    named = toy()
    give_gradients(named, 3)
    expected = torch.nn.utils.get_total_norm([gradient_of(weight) for _, weight in named])
    optimizer = muonclip(named)
    optimizer.step()
    assert optimizer._global_grad_norm == pytest.approx(float(expected), rel=1e-6)


def test_a_weight_that_nothing_used_only_decays():
    named = toy()
    give_gradients(named, 4)
    unused = {"language.layers.1.mlp.experts.down", "language.norm.weight"}
    for name, weight in named:
        weight.grad = None if name in unused else weight.grad
    before = values(named)
    muonclip(named).step()
    after = values(named)
    assert torch.equal(after["language.norm.weight"], before["language.norm.weight"])
    kept = before["language.layers.1.mlp.experts.down"] * (1 - RATE * 0.1)
    torch.testing.assert_close(after["language.layers.1.mlp.experts.down"], kept)


def test_states_that_were_taken_up_go_on_in_the_same_bits():
    named, other = toy(), toy()
    first = muonclip(named)
    for seed in (1, 2):
        give_gradients(named, seed)
        first.step()
    second = muonclip(other)
    with torch.no_grad():
        for (_, weight), (_, source) in zip(other, named, strict=True):
            weight.copy_(source)
    second.take([first.partition()])
    for each, optimizer in ((named, first), (other, second)):
        give_gradients(each, 3)
        optimizer.step()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named, other, strict=True))


def test_states_of_another_model_are_refused_by_the_names_that_lack():
    partition = muonclip([each for each in toy() if not each[0].startswith("projector.p")]).partition()
    with pytest.raises(CheckpointError, match=r"no state of projector\.pre_norm\.bias, .*projector\.proj\.2\.weight@0"):
        muonclip(toy()).take([partition])


def test_every_weight_has_its_state_and_stands_in_one_group():
    named = toy()
    optimizer = muonclip(named)
    assert optimizer.partition_elements() == sum(weight.numel() for _, weight in named)
    grouped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for _, weight in named)


@pytest.mark.parametrize("name", ["matrix", "norm"])
def test_a_model_may_have_nothing_for_one_of_the_two(name):
    weight = nn.Parameter(torch.ones(*((3, 3) if name == "matrix" else (3,))))
    optimizer = muonclip([(name, weight)])
    weight.grad = torch.eye(3) if name == "matrix" else torch.ones(3)
    optimizer.step()
    optimizer.take([optimizer.partition()])
    assert weight.ne(1).any()
