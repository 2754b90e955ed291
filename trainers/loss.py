"""The losses, as sums: a rank adds up its own, and the step divides by what all ranks counted."""

import torch
from torch import Tensor
from torch.nn import functional


def siglip_loss(images: Tensor, texts: Tensor, *, log_scale: Tensor, bias: Tensor, caption: Tensor) -> Tensor:
    """Return the sum over all image-caption pairs of -log sigmoid(z * (scale * image . text + bias)).

    Divided by the number of images it is SigLIP's loss. z is 1 where the caption is the image's own and -1
    elsewhere. Choice: z is also 1 where another sample has word for word the same caption, since to push such
    twins apart would teach the opposite of what the words say.

    Args:
        images: float [S, W] unit vectors.
        texts: float [S, W] unit vectors, in the order of the images.
        log_scale: logarithm of the temperature's inverse.
        bias: added to every logit.
        caption: int64 [S], equal where two captions are the same words.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
    """
    logits = log_scale.exp() * images @ texts.T + bias
    sign = torch.where(caption[:, None] == caption[None], 1.0, -1.0)
    return -functional.logsigmoid(sign * logits).sum()
