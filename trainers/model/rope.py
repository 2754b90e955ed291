"""Rotary positions as unit complex numbers: positions or grids in, one turn for each pair of channels out."""

# Shapes: N places, H heads, D head width; turns are complex64 [N, D / 2].

import math

import torch
from torch import Tensor

BETA_FAST = 32.0
BETA_SLOW = 1.0
AXIAL_THETA = 10000.0


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Return float [N, H, D] with each neighbouring pair of channels turned by its place, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x.dtype)


def text_turns(position: Tensor, width: int, *, theta: float, context: int, factor: float) -> Tensor:
    """Return the turns of text positions under RoPE, or YaRN where `factor` is above 1.

    Args:
        position: int64 [N], restarting at 0 in each document.
        width: head width, even.
        theta: base of the frequencies.
        context: positions the frequencies were first trained for [tokens].
        factor: how far YaRN stretches the context; at 1 the frequencies are the plain ones.
    """
    frequency = yarn_frequencies(width, theta=theta, context=context, factor=factor).to(position.device)
    angle = position[:, None].double() * frequency
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def yarn_frequencies(width: int, *, theta: float, context: int, factor: float) -> Tensor:
    """Return float64 [width / 2] radians a position.

    A pair that turns more than BETA_FAST times over `context` keeps its frequency, one that turns less than
    BETA_SLOW times is slowed by `factor`, and a ramp over the pair's number lies between.

    Source: Peng et al. 2023, "YaRN", section 3.2; bounds and rounding as in DeepSeek-V3's public code.
    """
    pair = torch.arange(width // 2, dtype=torch.float64)
    frequency = theta ** (-2 * pair / width)
    if factor <= 1:
        return frequency
    low, high = (_pair_turning(beta, width, theta, context) for beta in (BETA_FAST, BETA_SLOW))
    low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
    slowed = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency * (1 - slowed) + frequency / factor * slowed


def yarn_scale(factor: float) -> float:
    """Return what the attention logits are multiplied by beyond D ** -0.5: (0.1 ln factor + 1) squared."""
    return (0.1 * math.log(max(factor, 1.0)) + 1.0) ** 2


def axial_turns(row: Tensor, column: Tensor, width: int) -> Tensor:
    """Return the 2-D turns of patches: pair 2i turns by the column, pair 2i + 1 by the row.

    Args:
        row, column: int64 [N] a patch's place in its picture, the same in every frame.
        width: head width, a multiple of 4; frequency i is 10000 ** (-4 i / width).

    Source: the public MoonViT code; column first, whatever its docstring says.
    """
    frequency = AXIAL_THETA ** (-4 * torch.arange(width // 4, dtype=torch.float64, device=row.device) / width)
    angle = torch.stack([column[:, None] * frequency, row[:, None] * frequency], dim=-1).flatten(1)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def _pair_turning(times: float, width: int, theta: float, context: int) -> float:
    return width * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))
