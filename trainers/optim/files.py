"""MuonClip's files in a checkpoint: weights and states in, the same on any number of ranks out.

The names are those that DeepSpeed gives to weights and to the partitions of its ZeRO.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from k25_pipelines.errors import CheckpointError
from trainers.optim.muonclip import MuonClip
from trainers.optim.together import partition_together

MODEL = "mp_rank_00_model_states.pt"
"""The whole weights, and whatever else is one for all ranks."""
PARTITION = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
"""A rank's states."""


def write_states(folder: Path, optimizers: Sequence[MuonClip], *, rank: int) -> None:
    """Write a rank's states below `folder`; all ranks' files together are the optimizer's."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(partition_together(optimizers), folder / PARTITION.format(rank))


def write_model(folder: Path, weights: Mapping[str, Tensor], **state: Any) -> None:
    """Write the whole model's weights by name, and state beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"module": dict(weights), **state}, folder / MODEL)


def read_model(folder: Path) -> dict[str, Any]:
    """Return what `write_model` wrote; weights stay on disk until they are used. Raises CheckpointError."""
    if not (folder / MODEL).exists():
        raise CheckpointError(f"{folder} holds no state of an engine: its record names no {MODEL}")
    return torch.load(folder / MODEL, weights_only=True, mmap=True)


def take_states(folder: Path, optimizers: Sequence[MuonClip]) -> None:
    """Take up a rank's states from the files of all that wrote, however they shared them. Raises CheckpointError."""
    files = sorted(folder.glob(PARTITION.format("*")))
    for each in optimizers:
        each.take(torch.load(file, weights_only=True, mmap=True) for file in files)
