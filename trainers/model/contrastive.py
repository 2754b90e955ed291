"""The contrastive half of stage 1a: pictures and captions in, unit vectors with a shared scale and bias out.

Choice, where the sources are silent: a picture's vector is the mean of all its merged patch features (a clip's: of all
its volumes) through one linear map; a caption's is the mean hidden state of its tokens in a small causal tower of its
own, which never sees the picture. The published work starts from SigLIP's own text tower and throws it away as we do.
"""

# Shapes: S samples with a medium, C caption tokens of them all, W contrastive width.

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.config import ContrastiveConfig
from trainers.model.attention import Groups, attend
from trainers.model.mlp import GatedMLP
from trainers.model.rope import rotate, text_turns

FIRST_SCALE = math.log(10.0)
FIRST_BIAS = -10.0


class Contrastive(nn.Module):
    """Both heads, and SigLIP's learned temperature (as a logarithm) and bias, float [1]: DeepSpeed takes no scalars."""

    def __init__(self, config: ContrastiveConfig, *, vision_width: int, vocab: int):
        """Build heads and text tower."""
        super().__init__()
        self.config = config
        self.image_head = nn.Linear(vision_width, config.width)
        self.embed_tokens = nn.Embedding(vocab, config.width)
        self.layers = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.text_head = nn.Linear(config.width, config.width)
        self.log_scale = nn.Parameter(torch.tensor([FIRST_SCALE]))
        self.bias = nn.Parameter(torch.tensor([FIRST_BIAS]))

    def images(self, merged: Tensor, sample: Tensor, num_samples: int) -> Tensor:
        """Return unit vectors float [S, W] of merged features [V, 4, D], whose samples are int64 [V]."""
        return functional.normalize(self.image_head(mean_by(merged.mean(1), sample, num_samples)), dim=-1)

    def texts(self, token: Tensor, position: Tensor, groups: Groups, sample: Tensor, num_samples: int) -> Tensor:
        """Return unit vectors float [S, W] of caption tokens int64 [C], positions restarting in each caption."""
        width = self.config.width // self.config.heads
        turns = text_turns(position, width, theta=10000.0, context=1, factor=1.0)
        x = self.embed_tokens(token)
        for layer in self.layers:
            x = layer(x, turns, groups)
        return functional.normalize(self.text_head(mean_by(self.norm(x), sample, num_samples)), dim=-1)


class Block(nn.Module):
    """A pre-norm block of the text tower: plain causal attention, then a gated MLP of 4 times the width; no biases."""

    def __init__(self, width: int, heads: int):
        """Build the four attention matrices and the MLP."""
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width, bias=False) for name in "qkvo"})
        self.mlp = GatedMLP(width, 4 * width)

    def forward(self, x: Tensor, turns: Tensor, groups: Groups) -> Tensor:
        """Return float [C, W]."""
        y = self.input_layernorm(x)
        q, k, v = (self.self_attn[f"{name}_proj"](y).view(len(y), self.heads, -1) for name in "qkv")
        x = x + self.self_attn["o_proj"](attend(rotate(q, turns), rotate(k, turns), v, groups, causal=True))
        return x + self.mlp(self.post_attention_layernorm(x))


def mean_by(x: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return float [num_groups, D]: the mean of the rows of float [n, D] that share a group, int64 [n]."""
    count = torch.bincount(group, minlength=num_groups).clamp(min=1)
    return x.new_zeros(num_groups, x.shape[-1]).index_add(0, group, x) / count[:, None]
