"""Making activations again changes no bit of a gradient and keeps fewer bytes."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from tests.trainers.batches import Media, batch_of
from trainers.inputs import inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.model.recompute import PARTS, forgetting, kept_bytes, set_recompute
from trainers.recipes import model_config

TOY = model_config("toy")
CONFIG = replace(TOY, contrastive=None, language=replace(TOY.language, head_value=12, yarn_factor=4.0))
PACKS = [[[1, Media(thw=(1, 4, 6), seed=1), *range(5, 90)], list(range(11, 40))], [list(range(50, 170))]]
SUBSETS = [parts for size in range(len(PARTS) + 1) for parts in combinations(PARTS, size)]


@pytest.fixture(scope="module")
def inputs():
    return inputs_of(batch_of(PACKS, length=130))


def step(inputs, parts, *, offload: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    model = KimiK25(CONFIG, seed=3).train()
    set_recompute(model, parts)
    model.language.offload = offload
    losses = model(inputs).target_losses
    losses.mean().backward()
    return losses.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_every_choice_of_parts_gives_the_same_bits(inputs):
    losses, gradients = step(inputs, ())
    for parts, offload in [*((parts, False) for parts in SUBSETS), ((), True), (PARTS, True)]:
        again, others = step(inputs, parts, offload=offload)
        assert torch.equal(losses, again)
        assert others.keys() == gradients.keys()
        assert [name for name in gradients if not torch.equal(gradients[name], others[name])] == []


def test_each_part_keeps_fewer_bytes_and_all_together_the_fewest(inputs):
    kept = {}
    for parts in SUBSETS:
        model = KimiK25(replace(CONFIG, vision=None), seed=3).train()
        set_recompute(model, parts)
        x = torch.randn(260, CONFIG.language.width, requires_grad=True)
        kept[parts] = kept_bytes(lambda m=model, x=x: m.language(x, inputs.position, inputs.groups))
    assert all(kept[(part,)] < kept[()] for part in PARTS)
    assert kept[PARTS] == min(kept.values())
    cells = 3 * 4 * CONFIG.language.heads * 16 * int(inputs.groups.gather.numel())
    assert kept[()] - kept[("mla_up",)] >= CONFIG.language.layers * cells  # queries, keys and values of every layer
    assert kept[PARTS] < 0.7 * kept[()]


def test_what_is_kept_is_counted_once_and_what_is_freed_is_not():
    x, weight = torch.ones(100, requires_grad=True), torch.ones(100)
    assert kept_bytes(lambda: x.exp() * weight) == 800  # exp keeps its result, the product is the answer
    assert kept_bytes(lambda: (x + weight).sum()) == 4
    assert kept_bytes(lambda: x.view(10, 10)) == 0


def test_a_forgotten_tensor_is_made_once_a_pass_and_what_is_around_still_applies():
    x, made, packed = torch.arange(1.0, 5.0, requires_grad=True), [], []

    def make() -> Tensor:
        made.append(1)
        return x * 2

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.tolist())
        return tensor

    other = torch.full((4,), 3.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = x * 2
        with forgetting(y, make, when=True):
            z = (y[:2] * y[2:]).sum() + (y * y).sum() + (x * other).sum()
    packed_inside = packed[1:] if packed and packed[0] == x.tolist() else packed
    z.backward(retain_graph=True)
    assert made == [1]
    first = x.grad.clone()
    z.backward()
    assert made == [1, 1]
    assert torch.equal(x.grad, 2 * first)
    assert [3.0] * 4 in packed_inside
    assert (x * 2).tolist() not in packed_inside


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="recompute names attention; there are norm, swiglu, mla_up"):
        set_recompute(KimiK25(CONFIG), ["attention"])
