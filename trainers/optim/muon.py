"""Muon's arithmetic: momentum and matrices in, updates out. Pure, in the precision of its input (float32 here)."""

# Shapes: n matrices of r rows and c columns.

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic: steepest at zero, and singular values end near 1 rather than at it."""
STEPS = 5
EPSILON = 1e-7
CONSISTENT_RMS = 0.2
"""Root mean square of an update over the learning rate: about AdamW's, so that both share one learning rate."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return each matrix with its singular vectors as they are and its singular values all near 1.

    Source: Jordan et al. 2024, "Muon": five Newton-Schulz steps X <- aX + (bA + cA^2)X with A = X X^T, from X over
        its Frobenius norm. In float32: bfloat16, its usual home, is 27 times as slow on a CPU.

    Args:
        matrices: float [n, r, c]; a matrix of zeros stays one.

    Returns:
        float [n, r, c], in a new tensor.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x


def momentum_update(momentum: Tensor, gradient: Tensor, *, rate: float) -> Tensor:
    """Move `momentum` towards `gradient`, in place, and return Nesterov's look ahead.

    The moving average, not the sum: they differ by a factor, which orthogonalising takes away.

    Args:
        momentum: float, any shape.
        gradient: float, the same shape.
        rate: how much of the momentum stays, in [0, 1).
    """
    momentum.lerp_(gradient, 1 - rate)
    return gradient.lerp(momentum, rate)


def update_scale(rows: int, columns: int) -> float:
    """Return what an orthogonalised matrix is multiplied by, so that its root mean square is `CONSISTENT_RMS`.

    Source: Moonlight (arXiv 2502.16982), section 2.2: an orthogonal matrix has RMS 1 / sqrt(max(rows, columns)).
    """
    return CONSISTENT_RMS * math.sqrt(max(rows, columns))
