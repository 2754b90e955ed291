"""QK-Clip bounds the logits of the heads that passed the threshold, and touches nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.config import LanguageConfig
from trainers.model.attention import Groups, causal_groups
from trainers.model.language import Language, forget_records, track_logits
from trainers.model.mla import MLA
from trainers.model.rope import rotate
from trainers.optim.qk_clip import largest_logits, qk_clip, query_projection, trained_attentions

# Shapes: N places, D width, H heads.

THRESHOLD = 4.0
LOUD = {1: 9.0, 3: 4.0}
"""Head -> factor of its content and rotary queries."""
CONFIG = LanguageConfig(
    width=24, layers=2, heads=4, mlp=32, vocab=40, q_rank=12, kv_rank=10, head_nope=6, head_rope=4, head_value=5
)


@pytest.fixture(params=[12, None], ids=["queries-through-a-latent", "queries-direct"])
def model(request) -> Language:
    """Two layers; in the second, two heads shout."""
    torch.manual_seed(3)
    language = Language(replace(CONFIG, q_rank=request.param)).train()
    track_logits(language, True)
    with torch.no_grad():
        for attention in trained_attentions(language):
            for weight in attention.parameters():
                if weight.ndim == 2:
                    weight.normal_(std=0.7 * weight.shape[1] ** -0.5)
        rows = query_projection(trained_attentions(language)[1]).weight.unflatten(0, (4, 10))
        for head, factor in LOUD.items():
            rows[head] *= factor
    return language


def documents() -> tuple[Tensor, Tensor, Groups]:
    """Return hidden states [N, D], positions [N] and groups of three documents."""
    lengths = np.array([9, 1, 14])
    position = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
    return torch.randn(24, 24, generator=torch.Generator().manual_seed(8)), position, causal_groups(lengths)


def logits(attention: MLA, model: Language) -> Tensor:
    """Return [H, N, N] of all pairs that see each other, -inf elsewhere: the plain way, from the weights."""
    x, position, _ = documents()
    latent = attention.q_a_layernorm(attention.q_a_proj(x)) if model.config.q_rank else x
    q = query_projection(attention)(latent).view(24, 4, 10)
    down = attention.kv_a_proj_with_mqa(x)
    k = attention.kv_b_proj(attention.kv_a_layernorm(down[:, :10])).view(24, 4, 11)
    q = torch.cat([q[..., :6], rotate(q[..., 6:], model.turns(position))], dim=-1)
    k = torch.cat([k[..., :6], rotate(down[:, None, 10:], model.turns(position)).expand(-1, 4, -1)], dim=-1)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor([9, 1, 14]))
    seen = (document[:, None] == document) & (position[:, None] >= position)
    return (torch.einsum("nhd,mhd->hnm", q, k) * attention.scale).masked_fill(~seen, -torch.inf).detach()


def run(model: Language) -> None:
    """Let each layer see the same inputs."""
    x, position, groups = documents()
    for attention in trained_attentions(model):
        attention(x, model.turns(position), groups)


def test_it_fires_for_the_heads_over_the_threshold_and_brings_each_of_their_logits_down_by_one_factor(model):
    quiet, loud = trained_attentions(model)
    before = [logits(each, model) for each in (quiet, loud)]
    largest = torch.stack([each.flatten(1).amax(1) for each in before])
    over = largest > THRESHOLD
    assert over.tolist() == [[False] * 4, [head in LOUD for head in range(4)]]
    run(model)
    torch.testing.assert_close(qk_clip(model, THRESHOLD), largest, rtol=1e-5, atol=1e-5)
    gamma = torch.where(over, THRESHOLD / largest, 1.0)
    for attention, was, factor in zip((quiet, loud), before, gamma, strict=True):
        torch.testing.assert_close(logits(attention, model), was * factor[:, None, None], rtol=2e-5, atol=1e-5)
    run(model)
    bounded = largest_logits([loud])[0]
    assert bounded.tolist() == pytest.approx(torch.where(over[1], THRESHOLD, largest[1]).tolist(), rel=1e-5)


def test_content_parts_take_the_root_the_rotary_query_all_of_it_and_everything_else_keeps_its_bits(model):
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run(model)
    largest = qk_clip(model, THRESHOLD)[1]
    prefix = "layers.1.self_attn."
    query = f"{prefix}{'q_b_proj' if model.config.q_rank else 'q_proj'}"
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {f"{query}.weight", f"{prefix}kv_b_proj.weight"}
    after = dict(model.named_parameters())
    for name, content in ((f"{query}.weight", 6), (f"{prefix}kv_b_proj.weight", 6)):
        was, now = (each[name].detach().unflatten(0, (4, -1)) for each in (before, after))
        for head in range(4):
            if largest[head] <= THRESHOLD:
                assert torch.equal(now[head], was[head])
                continue
            gamma = float(THRESHOLD / largest[head])
            rest = gamma if name.startswith(query) else 1.0
            torch.testing.assert_close(now[head, :content], was[head, :content] * gamma**0.5, rtol=1e-6, atol=0)
            torch.testing.assert_close(now[head, content:], was[head, content:] * rest, rtol=1e-6, atol=0)
    values = after[f"{prefix}kv_b_proj.weight"].detach().unflatten(0, (4, -1))[:, 6:]
    assert torch.equal(values, before[f"{prefix}kv_b_proj.weight"].unflatten(0, (4, -1))[:, 6:])


def test_under_the_published_threshold_a_quiet_model_keeps_all_its_bits(model):
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run(model)
    qk_clip(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_frozen_layer_and_one_that_recorded_nothing_are_left_alone(model):
    run(model)
    model.layers[1].requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert qk_clip(model, THRESHOLD).shape == (1, 4)
    model.layers[1].requires_grad_(True)
    forget_records(model)
    assert qk_clip(model, THRESHOLD).tolist() == [[-torch.inf] * 4] * 2
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
