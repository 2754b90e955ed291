"""Attention inside the samples of a batch and nowhere else: lengths in, groups out, one SDPA call a group.

A loop over documents is an order of magnitude cheaper on CPU than one dense block-diagonal mask (0.04 against 0.55 CPU
seconds at 4,096 tokens of 20 documents); documents of like length then share a call.
"""

# Shapes: N places (tokens or patches) on this rank, K gathered places (K >= N), H heads, D head width.

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Which places look at each other, as rectangles of documents."""

    gather: Tensor
    """int64 [K] the place that stands at each cell of the rectangles, one rectangle after the other."""
    shapes: tuple[tuple[int, int], ...]
    """(documents, length) of each rectangle; their products sum to K."""
    scatter: Tensor
    """int64 [N] the cell that holds each place's answer."""


def causal_groups(lengths: np.ndarray) -> Groups:
    """Return groups for causal attention over documents that lie one after another.

    Documents whose lengths agree to an eighth share a rectangle; a shorter one is filled up with copies of its
    last place, which under a causal mask no real place can see.

    Args:
        lengths: int64 [documents] places of each; none is empty.
    """
    top = 2 ** np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    quantum = np.maximum(top // 8, 8)
    return _groups(lengths, -(-lengths // quantum) * quantum)


def volume_groups(lengths: np.ndarray) -> Groups:
    """Return groups for full attention over volumes: only equal sizes share a rectangle, none is filled up."""
    return _groups(lengths, lengths)


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Groups, *, causal: bool, scale: float | None = None) -> Tensor:
    """Return softmax attention of [N, H, D] queries, keys and values within each document, as [N, H * D].

    Args:
        q, k, v: float [N, H, D].
        groups: from `causal_groups` or `volume_groups`; fill only hides behind a causal mask.
        causal: whether a place sees only itself and what stands before it.
        scale: factor of the logits; D ** -0.5 where None.
    """
    if not groups.shapes:
        return q.flatten(1)
    heads, width = q.shape[1:]
    cells = torch.stack([q, k, v]).index_select(1, groups.gather)
    answers = []
    for (count, length), part in zip(groups.shapes, cells.split([c * n for c, n in groups.shapes], dim=1), strict=True):
        queries, keys, values = part.view(3, count, length, heads, width).transpose(2, 3).unbind(0)
        answer = functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=scale)
        answers.append(answer.transpose(1, 2).reshape(count * length, heads * width))
    return torch.cat(answers).index_select(0, groups.scatter)


def _groups(lengths: np.ndarray, classes: np.ndarray) -> Groups:
    starts = np.cumsum(lengths) - lengths
    gather, shapes, scatter, cells = [], [], np.empty(int(lengths.sum()), np.int64), 0
    for size in np.unique(classes):
        members = np.flatnonzero(classes == size)
        length = int(lengths[members].max())
        offset = np.minimum(np.arange(length), lengths[members, None] - 1)
        places = starts[members, None] + offset
        gather.append(places.ravel())
        real = np.arange(length) < lengths[members, None]
        scatter[places[real]] = cells + np.flatnonzero(real.ravel())
        shapes.append((len(members), length))
        cells += places.size
    joined = np.concatenate(gather) if gather else np.empty(0, np.int64)
    return Groups(gather=torch.from_numpy(joined), shapes=tuple(shapes), scatter=torch.from_numpy(scatter))
