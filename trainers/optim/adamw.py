"""Which weights decay under AdamW: a model in, torch's optimizer out."""

import torch
from torch import nn

from trainers.config import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trained weights in two groups: matrices decay; norms, biases and tables do not."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    still = [weight for name, weight in trained if weight.ndim < 2 or "embed_tokens" in name or "pos_emb" in name]
    names = {id(weight) for weight in still}
    moving = [weight for _, weight in trained if id(weight) not in names]
    groups = [{"params": moving, "weight_decay": config.weight_decay}, {"params": still, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas
    )
