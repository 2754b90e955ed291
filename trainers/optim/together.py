"""Several MuonClips as one: where ranks keep different weights, each kind of weight has an optimizer and a group."""

from collections.abc import Sequence
from typing import Any

import torch

from trainers.optim.muonclip import MuonClip


@torch.no_grad()
def step_together(optimizers: Sequence[MuonClip]) -> float:
    """Move all weights by one norm over all ranks and return that norm; one that is not finite moves nothing.

    Collective over all ranks. What a group shares out, it owns once, and groups share no weights: the squares of what
    each rank owns sum to that of the whole gradient.
    """
    square = torch.stack([each.own_square() for each in optimizers]).sum()
    torch.distributed.all_reduce(square)
    norm = float(square.sqrt())
    for optimizer in optimizers:
        optimizer.move(norm)
    return norm


def partition_together(optimizers: Sequence[MuonClip]) -> dict[str, Any]:
    """Return this rank's states of all as one partition."""
    parts = [optimizer.partition() for optimizer in optimizers]
    return {
        "steps": parts[0]["steps"],
        "momentum": {name: value for part in parts for name, value in part["momentum"].items()},
        "moments": [each for part in parts for each in part["moments"]],
    }
