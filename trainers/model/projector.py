"""The projector: merged patch features in, embeddings of the language model's width out."""

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """LayerNorm on each of a token's patches, their concatenation, and an MLP with the exact GELU."""

    def __init__(self, *, vision_width: int, merge: int, language_width: int):
        """Build norm and MLP; the MLP's hidden width is that of the concatenation."""
        super().__init__()
        joined = vision_width * merge**2
        self.pre_norm = nn.LayerNorm(vision_width, eps=1e-5)
        self.proj = nn.Sequential(nn.Linear(joined, joined), nn.GELU(), nn.Linear(joined, language_width))

    def forward(self, merged: Tensor) -> Tensor:
        """Return float [V, language width] of features float [V, merge * merge, vision width]."""
        return self.proj(torch.flatten(self.pre_norm(merged), 1))
