"""The attention's promises: narrow values cost nothing in truth, and the largest logit of a head is the real one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainers.model import attention as attention_module
from trainers.model.attention import attend, causal_groups, max_logits
from trainers.model.mla import MLA
from trainers.model.rope import rotate, text_turns
from trainers.recipes import model_config

CONFIG = replace(model_config("toy").language, heads=3, head_nope=10, head_rope=6, head_value=12, yarn_factor=2.0)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention(config=CONFIG) -> MLA:
    module = MLA(config)
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight.copy_(drawn(*weight.shape, seed=number) * 0.4)
    return module


def turns(lengths: np.ndarray, config=CONFIG) -> Tensor:
    position = torch.cat([torch.arange(int(n)) for n in lengths])
    c = config
    return text_turns(position, c.head_rope, theta=c.rope_theta, context=c.context, factor=c.yarn_factor)


def dense_mask(lengths: np.ndarray) -> Tensor:
    document = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    return (document[:, None] == document[None]).tril()


@pytest.mark.parametrize(("width", "out"), [(8, 8), (16, 12), (8, 20)])
def test_values_may_be_narrower_or_wider_than_keys(width, out):
    lengths = np.array([3, 40, 1, 18])
    q, k, v = drawn(62, 2, width), drawn(62, 2, width, seed=1), drawn(62, 2, out, seed=2)
    mask = dense_mask(lengths)
    expected = functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask)
    answer = attend(q, k, v, causal_groups(lengths), causal=True)
    torch.testing.assert_close(answer, expected.transpose(0, 1).flatten(1), **CLOSE)


@pytest.mark.parametrize("at_once", [1, 700, 2**22])
def test_the_largest_logit_is_that_of_the_dense_computation(monkeypatch, at_once):
    monkeypatch.setattr(attention_module, "LOGITS", at_once)
    lengths = np.array([3, 70, 1, 71, 18])
    q, k = drawn(int(lengths.sum()), 2, 8), drawn(int(lengths.sum()), 2, 8, seed=1)
    dense = (q.transpose(0, 1) @ k.permute(1, 2, 0) * 0.5).masked_fill(~dense_mask(lengths), -torch.inf)
    torch.testing.assert_close(max_logits(q, k, causal_groups(lengths), scale=0.5), dense.amax((1, 2)), **CLOSE)


def test_the_largest_logit_may_be_below_zero_and_is_never_one_that_no_place_sees():
    lengths = np.array([2, 9])
    k = drawn(11, 1, 4).abs()
    q = -k
    k[1] *= -50  # what the first document's second place says is for itself alone, and the first must not hear it
    q[1] = 0
    highest = max_logits(q, k, causal_groups(lengths), scale=1.0)
    dense = (q[:, 0] @ k[:, 0].T).masked_fill(~dense_mask(lengths), -torch.inf)
    torch.testing.assert_close(highest, dense.max()[None], **CLOSE)
    assert max_logits(q[:0], k[:0], causal_groups(np.array([], np.int64)), scale=1.0).tolist() == [-torch.inf]


def test_logits_are_kept_in_training_and_on_request_only_and_are_what_softmax_sees():
    module, lengths = attention(), np.array([7, 12])
    x, groups = drawn(19, CONFIG.width), causal_groups(lengths)
    module.train()(x, turns(lengths), groups)
    assert module.last_max_logit.tolist() == [0, 0, 0]
    module.track_logits = True
    module.eval()(x, turns(lengths), groups)
    assert module.last_max_logit.tolist() == [0, 0, 0]
    module.train()(x, turns(lengths), groups)
    q, k, _ = module.unfold(*module.fold(x), turns(lengths))
    logits = (q.transpose(0, 1) @ k.permute(1, 2, 0) * module.scale).masked_fill(~dense_mask(lengths), -torch.inf)
    torch.testing.assert_close(module.last_max_logit, logits.amax((1, 2)).detach(), **CLOSE)
    assert "last_max_logit" not in module.state_dict()
    assert not module.last_max_logit.requires_grad


def test_the_rotated_key_is_one_for_all_heads_and_the_rest_of_a_query_has_no_position():
    module, lengths = attention(), np.array([15])
    q, k, v = module.unfold(*module.fold(drawn(15, CONFIG.width)), turns(lengths))
    assert (q.shape, k.shape, v.shape) == ((15, 3, 16), (15, 3, 16), (15, 3, 12))
    assert (k[:, :, 10:] == k[:, :1, 10:]).all()
    still, *_ = module.unfold(*module.fold(drawn(15, CONFIG.width)), turns(np.ones(15, np.int64)))
    assert torch.equal(q[:, :, :10], still[:, :, :10])
    torch.testing.assert_close(q[:, :, 10:], rotate(still[:, :, 10:], turns(lengths)), **CLOSE)


def test_turning_keeps_the_type_and_computes_in_float32_at_least():
    turn = turns(np.array([9]))
    for kind in (torch.bfloat16, torch.float32, torch.float64):
        assert rotate(drawn(9, 2, 6).to(kind), turn).dtype == kind
    coarse = drawn(9, 2, 6).to(torch.bfloat16)
    assert torch.equal(rotate(coarse, turn), rotate(coarse.float(), turn).to(torch.bfloat16))
