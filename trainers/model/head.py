"""The end of the decoder: logits and the tokens to come in, a loss for each out, in the memory of the logits.

Plain cross-entropy keeps the logarithms of all probabilities beside the logits, and makes their gradient in a third
place; at 160,000 words these are by far the largest tensors of a step. Here the probabilities, and then the gradient,
take the place of the logits, some rows at a time, so that each row is in the cache while it is worked on.
"""

# Shapes: n targets, V words.

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CACHED_ELEMENTS = 2**18
"""Logits that are worked on at once: 1 MiB in float32."""


def token_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each target, float [n]: torch's bits, and its gradient to rounding.

    Args:
        logits: float [n, V], given away: where they need a gradient and are float32 or wider, their memory is used.
        target: int64 [n].
    """
    if logits.dtype in (torch.float32, torch.float64) and torch.is_grad_enabled() and logits.requires_grad:
        losses = _TokenLosses.apply(logits, target)
        assert isinstance(losses, Tensor)
        return losses
    return functional.cross_entropy(logits, target, reduction="none")


class _TokenLosses(torch.autograd.Function):
    """Backward may be called once: the gradient takes the place of what it is made of."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        losses = logits.new_empty(len(target))
        rows = max(1, CACHED_ELEMENTS // logits.shape[1])
        for first in range(0, len(target), rows):
            part, each = logits[first : first + rows], target[first : first + rows]
            logarithms = part.log_softmax(-1)
            losses[first : first + rows] = logarithms.gather(1, each[:, None])[:, 0].neg()
            torch.exp(logarithms, out=part)
        ctx.probabilities, ctx.target = logits, target
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        gradient, ctx.probabilities = ctx.probabilities, None
        assert gradient is not None, "a second backward pass: the first one took the memory of the probabilities"
        scale = gradients[0][:, None]
        gradient.mul_(scale).scatter_add_(1, ctx.target[:, None], -scale)
        return gradient, None
