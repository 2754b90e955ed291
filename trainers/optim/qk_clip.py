"""QK-Clip: the largest attention logits of a step in, query and key weights that keep to the threshold out.

A head of multi-head latent attention has content parts of its own, whose scale is shared between query and key, and a
rotary key that all heads read: what is asked of that pair is asked of the head's rotary query alone.
"""

# Shapes: L attention layers, H heads, R rank of a projection's input.

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from trainers.model.language import mla_layers
from trainers.model.mla import MLA

THRESHOLD = 100.0


def trained_attentions(model: nn.Module) -> list[MLA]:
    """Return the latent attention of every layer whose queries are trained, in the model's order."""
    return [attention for attention in mla_layers(model) if query_projection(attention).weight.requires_grad]


def query_projection(attention: MLA) -> nn.Linear:
    """Return the map whose rows are the queries, head by head: from a latent or straight from the hidden state."""
    return attention.q_b_proj if hasattr(attention, "q_b_proj") else attention.q_proj


def largest_logits(attentions: Sequence[MLA], group: ProcessGroup | None = None) -> Tensor:
    """Return float [L, H]: the largest logit of each head on any rank, as the last forward pass recorded it."""
    if not attentions:
        return torch.empty(0, 0)
    largest = torch.stack([each.last_max_logit for each in attentions])
    if torch.distributed.is_initialized() and torch.distributed.get_world_size(group) > 1:
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
    return largest


def qk_clip(model: nn.Module, threshold: float = THRESHOLD, *, group: ProcessGroup | None = None) -> Tensor:
    """Scale down the heads whose largest logit passed `threshold`, and return the largest logits, float [L, H].

    Collective over `group`. To be called after the optimizer's step: the logits are those of the weights before it.

    Args:
        model: with attention layers as `trainers.model.mla.MLA`.
        threshold: of logits after scaling, before the softmax.
        group: the ranks that hold the same weights; all where None.
    """
    attentions = trained_attentions(model)
    largest = largest_logits(attentions, group)
    for attention, logits in zip(attentions, largest, strict=True):
        clip_heads(attention, logits, threshold)
    return largest


@torch.no_grad()
def clip_heads(attention: MLA, logits: Tensor, threshold: float) -> None:
    """Scale the heads of one layer whose logit, float [H], is over `threshold`; the others keep their bits.

    Source: Kimi K2 report, section 2.1: gamma = threshold / logit, sqrt(gamma) on the content parts of query and key,
        gamma on the rotary query, 1 on the rotary key. Each logit of the head is then gamma times what it was.
    """
    heads = torch.nonzero(logits > threshold).flatten()
    if not len(heads):
        return
    gamma = (threshold / logits[heads].double())[:, None, None]
    query = query_projection(attention).weight.unflatten(0, (len(logits), -1))
    key = attention.kv_b_proj.weight.unflatten(0, (len(logits), -1))
    scale = gamma.expand(-1, query.shape[1], -1).clone()
    scale[:, : attention.head_nope].sqrt_()
    query[heads] = (query[heads] * scale).to(query.dtype)
    key[heads, : attention.head_nope] = (key[heads, : attention.head_nope] * gamma.sqrt()).to(key.dtype)
