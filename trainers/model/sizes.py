"""What a model weighs, without making its weights: a config in, numbers of parameters out."""

from dataclasses import dataclass

import torch
from torch import nn

from trainers.config import ModelConfig
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import moe_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Numbers of parameters; buffers, such as the router's bias, are none."""

    language: int
    active: int
    """Of `language`, those that one token multiplies with: all but experts not chosen and the table of embeddings,
    which it only looks up; the head counts, tied or not."""
    vision: int
    projector: int
    contrastive: int

    @property
    def total(self) -> int:
        """Parameters of all modules."""
        return self.language + self.vision + self.projector + self.contrastive


def count_parameters(config: ModelConfig) -> Counts:
    """Return the sizes of a model, which is built on the meta device: 1T weights take no memory and seconds."""
    with torch.device("meta"):
        model = KimiK25(config)
    language = config.language
    idle = 0
    for layer in moe_layers(model):
        idle += _size(layer.experts) * (language.experts - language.experts_per_token) // language.experts
    looked_up = 0 if language.tied else model.language.embed_tokens.weight.numel()
    whole = _size(model.language)
    return Counts(
        language=whole,
        active=whole - idle - looked_up,
        vision=_size(model.vision),
        projector=_size(model.projector),
        contrastive=_size(model.contrastive),
    )


def _size(module: nn.Module | None) -> int:
    return sum(weight.numel() for weight in module.parameters()) if module else 0
