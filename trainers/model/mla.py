"""Multi-head latent attention: hidden states of packed documents in, what each place heard out.

Queries and keys have a part without position and a rotated part; the rotated part of the keys is one for all heads.
Keys and values are unfolded from one narrow latent, which is all that a cache would have to keep.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1, equations 9 to 19; names and epsilons as in the public
code of DeepSeek-V3.
"""

# Shapes: N places, D width, H heads, A = head_nope, R = head_rope, E = head_value, C = kv_rank.

import torch
from torch import Tensor, nn

from trainers.config import LanguageConfig
from trainers.model.attention import Groups, attend, max_logits
from trainers.model.recompute import forgetting
from trainers.model.rope import rotate, yarn_scale

LATENT_EPS = 1e-6
"""Epsilon of the two latent norms: the public code keeps its default there, where all other norms have 1e-5."""


class MLA(nn.Module):
    """One layer's attention. `last_max_logit`, float32 [H], is what QK-Clip looks at; kept where `track_logits`."""

    recompute: frozenset[str] = frozenset()
    last_max_logit: Tensor

    def __init__(self, config: LanguageConfig):
        """Build the projections; with `q_rank` None queries come from one matrix and not through a latent."""
        super().__init__()
        self.heads, self.q_rank, self.kv_rank = config.heads, config.q_rank, config.kv_rank
        self.head_nope, self.head_rope, self.head_value = config.head_nope, config.head_rope, config.head_value
        self.scale = yarn_scale(config.yarn_factor) * (config.head_nope + config.head_rope) ** -0.5
        self.track_logits = False
        self.keep_records = False
        queries = config.heads * (config.head_nope + config.head_rope)
        if config.q_rank is None:
            self.q_proj = nn.Linear(config.width, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.width, config.q_rank, bias=False)
            self.q_a_layernorm = nn.RMSNorm(config.q_rank, eps=LATENT_EPS)
            self.q_b_proj = nn.Linear(config.q_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.width, config.kv_rank + config.head_rope, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(config.kv_rank, eps=LATENT_EPS)
        unfolded = config.heads * (config.head_nope + config.head_value)
        self.kv_b_proj = nn.Linear(config.kv_rank, unfolded, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_value, config.width, bias=False)
        self.register_buffer("last_max_logit", torch.zeros(config.heads), persistent=False)

    def forward(self, x: Tensor, turns: Tensor, groups: Groups) -> Tensor:
        """Return float [N, D].

        Args:
            x: float [N, D], normalised.
            turns: complex64 [N, R / 2] of the places' positions.
            groups: the documents.
        """
        latents = self.fold(x)
        q, k, v = self.unfold(*latents, turns)
        if self.track_logits and self.training:
            self._record(max_logits(q, k, groups, scale=self.scale))
        remake = (lambda: self.unfold(*latents, turns)) if "mla_up" in self.recompute else None
        return self.o_proj(attend(q, k, v, groups, causal=True, scale=self.scale, remake=remake))

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries' latent (without one: the queries) and the latent of keys and values, [N, C + R]."""
        queries = self.q_proj if self.q_rank is None else self.q_a_proj
        return queries(x), self.kv_a_proj_with_mqa(x)

    def unfold(self, folded: Tensor, kv_folded: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys float [N, H, A + R] and values float [N, H, E] of what `fold` gave."""
        q = folded if self.q_rank is None else self._up(folded, self.q_a_layernorm, self.q_b_proj)
        q = q.view(len(q), self.heads, self.head_nope + self.head_rope)
        q_nope, q_rope = q.split([self.head_nope, self.head_rope], dim=-1)
        latent, k_rope = kv_folded.split([self.kv_rank, self.head_rope], dim=-1)
        kv = self._up(latent, self.kv_a_layernorm, self.kv_b_proj)
        kv = kv.view(len(kv), self.heads, self.head_nope + self.head_value)
        k_nope, v = kv.split([self.head_nope, self.head_value], dim=-1)
        k_rope = rotate(k_rope[:, None], turns).expand(-1, self.heads, -1)
        return torch.cat([q_nope, rotate(q_rope, turns)], dim=-1), torch.cat([k_nope, k_rope], dim=-1), v

    def _up(self, latent: Tensor, norm: nn.Module, up: nn.Module) -> Tensor:
        normed = norm(latent)
        with forgetting(normed, lambda: norm(latent), when="mla_up" in self.recompute):
            return up(normed)

    def _record(self, highest: Tensor) -> None:
        highest = highest.to(self.last_max_logit.dtype)
        if self.keep_records:
            highest = torch.maximum(highest, self.last_max_logit)
        self.last_max_logit.copy_(highest)
