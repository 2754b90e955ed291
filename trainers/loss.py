"""The losses, as sums: a rank adds up its own, and the step divides by what all ranks counted."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Others:
    """The pairs of all other ranks, without gradient."""

    images: Tensor
    """float [M, W] unit vectors."""
    texts: Tensor
    """float [M, W]."""
    caption: Tensor
    """int64 [M]."""


def siglip_loss(
    images: Tensor, texts: Tensor, *, log_scale: Tensor, bias: Tensor, caption: Tensor, others: Others | None = None
) -> Tensor:
    """Return the sum over all image-caption pairs of -log sigmoid(z * (scale * image . text + bias)).

    Divided by the number of images it is SigLIP's loss. z is 1 where the caption is the image's own and -1
    elsewhere. Choice: z is also 1 where another sample has word for word the same caption, since to push such
    twins apart would teach the opposite of what the words say.

    With `others` it is this rank's part of the sum over the pairs of all ranks: its images against every text. What
    its texts owe to the others' images is added with a gradient and without a value; so the gradients of all ranks
    sum to those of one rank with all pairs, and nothing travels back.

    Args:
        images: float [S, W] unit vectors.
        texts: float [S, W] unit vectors, in the order of the images.
        log_scale: logarithm of the temperature's inverse.
        bias: added to every logit.
        caption: int64 [S], equal where two captions are the same words.
        others: pairs elsewhere; None: there are none.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
    """
    if others is None:
        return _sigmoid_sum(images, texts, log_scale, bias, caption[:, None] == caption[None])
    every, captions = torch.cat([texts, others.texts]), torch.cat([caption, others.caption])
    part = _sigmoid_sum(images, every, log_scale, bias, caption[:, None] == captions[None])
    twins = others.caption[:, None] == caption[None]
    owed = _sigmoid_sum(others.images, texts, log_scale.detach(), bias.detach(), twins)
    return part + (owed - owed.detach())


def _sigmoid_sum(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor, is_own: Tensor) -> Tensor:
    logits = log_scale.exp() * images @ texts.T + bias
    return -functional.logsigmoid(torch.where(is_own, 1.0, -1.0) * logits).sum()
