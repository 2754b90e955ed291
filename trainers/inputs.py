"""What the model computes on: one rank's batch of arrays in, flat tensors with their places worked out, out.

Packs are laid one after another, so a document is a run of places and a pack's edge is only a document's edge.
"""

# Shapes: B packs, T tokens, N = B * T places, P patches, M media, V vision tokens, n targets, S pairs, C words.

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from k25_pipelines.keys import random_key
from k25_pipelines.loader import Batch
from trainers.model.attention import Groups, causal_groups

IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The samples of a batch with both a medium and words to predict: what stage 1a compares."""

    count: int
    """S."""
    vision: Tensor
    """int64 [V'] rows of the vision tokens that belong to a pair."""
    vision_pair: Tensor
    """int64 [V'] the pair of each."""
    token: Tensor
    """int64 [C] the words of all pairs."""
    position: Tensor
    """int64 [C] restarting in each caption."""
    groups: Groups
    token_pair: Tensor
    """int64 [C]."""
    caption: Tensor
    """int64 [S] equal where two pairs say the same words, on whatever rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One rank's step."""

    input_ids: Tensor
    """int64 [N]."""
    position: Tensor
    """int64 [N]."""
    groups: Groups
    """The documents."""
    patches: Tensor
    """float32 [P, 3, 14, 14]."""
    grid_thw: np.ndarray
    """int64 [M, 3]."""
    slots: Tensor
    """int64 [V] the place of each vision token."""
    source: Tensor
    """int64 [n] the places whose hidden states predict."""
    target: Tensor
    """int64 [n] the tokens to predict."""
    target_document: np.ndarray
    """int64 [n] the document of each target."""
    media_document: np.ndarray
    """int64 [M] the document of each medium."""
    pairs: Pairs


def inputs_of(batch: Batch, pad: int | None = None) -> Inputs:
    """Return the tensors of a loader's `Batch`; an empty batch gives empty tensors.

    A token is a target where its label is not -100 and something of its own document stands before it.

    Args:
        batch: this rank's.
        pad: the padding token, whose places no expert's load counts; None: all places are real.
    """
    labels = np.asarray(batch.labels, np.int64).reshape(-1)
    input_ids = np.asarray(batch.input_ids, np.int64).reshape(-1)
    lengths = np.diff(np.asarray(batch.cu_seqlens, np.int64))
    lengths = lengths[lengths > 0]
    document = np.repeat(np.arange(len(lengths)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = np.flatnonzero((labels != IGNORED) & (np.arange(len(labels)) > first))
    media_slots = np.asarray(batch.media_slots, np.int64).reshape(-1, 3)
    media_start = media_slots[:, 0] * batch.input_ids.shape[1] + media_slots[:, 1]
    slots = _runs(media_start, media_slots[:, 2])
    return Inputs(
        input_ids=torch.from_numpy(input_ids),
        position=torch.from_numpy(np.asarray(batch.position_ids, np.int64).reshape(-1)),
        groups=causal_groups(lengths, None if pad is None else torch.from_numpy(input_ids != pad)),
        patches=torch.from_numpy(np.asarray(batch.patches, np.float32)),
        grid_thw=np.asarray(batch.grid_thw, np.int64).reshape(-1, 3),
        slots=torch.from_numpy(slots),
        source=torch.from_numpy(target - 1),
        target=torch.from_numpy(labels[target]),
        target_document=document[target],
        media_document=document[media_start],
        pairs=_pairs(document[slots], labels[target], document[target]),
    )


def _runs(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return start, start + 1, ... for `count` places, run after run."""
    return np.arange(int(count.sum())) + np.repeat(start - (np.cumsum(count) - count), count)


def _pairs(vision_document: np.ndarray, token: np.ndarray, token_document: np.ndarray) -> Pairs:
    documents = np.intersect1d(vision_document, token_document)
    vision = np.flatnonzero(np.isin(vision_document, documents))
    kept = np.isin(token_document, documents)
    token, token_pair = token[kept], np.searchsorted(documents, token_document[kept])
    lengths = np.bincount(token_pair, minlength=len(documents))
    position = _runs(np.zeros_like(lengths), lengths)
    words = [part.tobytes() for part in np.split(token, np.cumsum(lengths)[:-1])] if len(documents) else []
    return Pairs(
        count=len(documents),
        vision=torch.from_numpy(vision),
        vision_pair=torch.from_numpy(np.searchsorted(documents, vision_document[vision])),
        token=torch.from_numpy(token),
        position=torch.from_numpy(position),
        groups=causal_groups(lengths),
        token_pair=torch.from_numpy(token_pair),
        caption=torch.tensor([random_key("caption", word.hex()) >> 1 for word in words], dtype=torch.int64),
    )
