"""The losses of targets are torch's, and the logits' memory is all that they take."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.trainers.batches import Media, batch_of
from trainers.inputs import inputs_of
from trainers.model import head
from trainers.model.head import token_losses
from trainers.model.kimi_k25 import KimiK25
from trainers.model.recompute import kept_bytes
from trainers.recipes import model_config


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("targets", [0, 1, 50])
def test_losses_have_the_bits_of_cross_entropy_and_gradients_its_values(monkeypatch, kind, targets):
    monkeypatch.setattr(head, "CACHED_ELEMENTS", 7 * 33)  # several runs of rows, the last one short
    generator = torch.Generator().manual_seed(1)
    logits = 20 * torch.randn(targets, 33, generator=generator, dtype=kind)
    target = torch.randint(0, 33, (targets,), generator=generator)
    weights = torch.randn(targets, generator=generator, dtype=kind)
    mine, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = token_losses(mine * 1, target)
    expected = functional.cross_entropy(wanted, target, reduction="none")
    assert torch.equal(losses, expected)
    losses.backward(weights)
    expected.backward(weights)
    torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-6, atol=1e-6)


def test_an_unlikely_target_has_a_finite_loss():
    logits = torch.tensor([[0.0, 500.0]], requires_grad=True)
    assert token_losses(logits * 1, torch.tensor([0])).tolist() == [500.0]


def test_without_gradients_the_logits_are_left_alone():
    logits = torch.randn(4, 5)
    before = logits.clone()
    token_losses(logits, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(logits, before)


def test_nothing_beside_the_logits_is_kept():
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(512, 8, requires_grad=True)
    target = torch.zeros(64, dtype=torch.int64)
    kept = kept_bytes(lambda: token_losses(functional.linear(hidden, weight), target))
    assert kept == 4 * 64 * 512 + 4 * 64


WORDS, PICTURE = list(range(5, 25)), [1, Media(thw=(1, 4, 6), seed=1), *range(5, 20)]


@pytest.mark.parametrize("packs", [[[WORDS]], [[PICTURE, WORDS]], []], ids=["words", "a picture", "nothing"])
def test_every_trained_weight_has_a_gradient_whatever_the_batch_holds(packs):
    model = KimiK25(model_config("toy"), seed=3)
    outputs = model(inputs_of(batch_of(packs, length=60) if packs else empty()))
    loss = outputs.target_losses.sum()
    if outputs.images is not None:
        scale, bias = model.contrastive.log_scale, model.contrastive.bias
        loss = loss + (scale * outputs.images @ outputs.texts.T + bias).sum()
    loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def empty():
    whole = batch_of([[WORDS]], length=60)
    nothing = {name: getattr(whole, name)[:0] for name in ("input_ids", "labels", "position_ids", "media_slots")}
    return type(whole)(
        **nothing, cu_seqlens=np.zeros(1, np.int32), patches=whole.patches, grid_thw=whole.grid_thw, provenance=[]
    )
