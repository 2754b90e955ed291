"""The decoder: embeddings of packed documents in, hidden states out; attention never leaves a document.

RMSNorm, SwiGLU, rotary positions with YaRN. Plain multi-head attention and dense MLPs stand where the published
model has MLA and experts; a block is replaced without touching what is around it.
"""

# Shapes: N places of all packs on this rank, D width, H heads.

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.config import LanguageConfig
from trainers.model.attention import Groups, attend
from trainers.model.rope import rotate, text_turns, yarn_scale


class Language(nn.Module):
    """Embedding, blocks and head; the three are called one by one, since vision enters between the first two."""

    def __init__(self, config: LanguageConfig):
        """Build embedding, blocks and head."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Block(config.width, config.heads, config.mlp) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)

    def forward(self, embedded: Tensor, position: Tensor, groups: Groups) -> Tensor:
        """Return normalised hidden states, float [N, D].

        Args:
            embedded: float [N, D] token embeddings, vision embeddings in their slots.
            position: int64 [N], restarting in each document.
            groups: the documents, from `causal_groups`.
        """
        c = self.config
        turns = text_turns(position, c.width // c.heads, theta=c.rope_theta, context=c.context, factor=c.yarn_factor)
        scale = yarn_scale(c.yarn_factor) * (c.width // c.heads) ** -0.5
        for layer in self.layers:
            embedded = layer(embedded, turns, groups, scale=scale)
        return self.norm(embedded)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [n, vocab] of hidden states float [n, D]."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return functional.linear(hidden, weight)


class Block(nn.Module):
    """A pre-norm decoder block: causal attention, then a gated MLP; no biases."""

    def __init__(self, width: int, heads: int, mlp: int):
        """Build the four attention matrices and the three of the MLP."""
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width, bias=False) for name in "qkvo"})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, mlp, bias=False),
                "up_proj": nn.Linear(width, mlp, bias=False),
                "down_proj": nn.Linear(mlp, width, bias=False),
            }
        )

    def forward(self, x: Tensor, turns: Tensor, groups: Groups, *, scale: float) -> Tensor:
        """Return float [N, D]."""
        q, k, v = self._qkv(self.input_layernorm(x))
        heard = attend(rotate(q, turns), rotate(k, turns), v, groups, causal=True, scale=scale)
        x = x + self.self_attn["o_proj"](heard)
        y = self.post_attention_layernorm(x)
        gated = functional.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y)
        return x + self.mlp["down_proj"](gated)

    def _qkv(self, y: Tensor) -> tuple[Tensor, ...]:
        weight = torch.cat([cast(nn.Linear, self.self_attn[f"{name}_proj"]).weight for name in "qkv"])
        return functional.linear(y, weight).view(len(y), 3, self.heads, y.shape[1] // self.heads).unbind(1)
