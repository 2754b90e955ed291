"""Batches taken apart into their samples and put together another way: a sample to a row, padded."""

# Shapes: n tokens and P patches of a sample, M media, B rows of T places.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from k25_pipelines.loader import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One sample of a pack."""

    input_ids: np.ndarray
    """int64 [n]."""
    labels: np.ndarray
    """int64 [n]."""
    patches: np.ndarray
    """float32 [P, 3, 14, 14]."""
    grid_thw: np.ndarray
    """int64 [M, 3]."""
    slots: np.ndarray
    """int64 [M, 2] first place in the sample, and number of places."""


def documents_of(batch: Batch) -> list[Document]:
    """Return the samples of a batch, padding left out."""
    sizes = batch.grid_thw.prod(axis=1)
    ends = np.cumsum(sizes)
    told = []
    for row in range(len(batch.input_ids)):
        for place in (each for each in batch.provenance if each.pack == batch.provenance[0].pack + row):
            span = slice(place.start, place.start + place.num_tokens)
            slots = batch.media_slots
            media = np.flatnonzero((slots[:, 0] == row) & (slots[:, 1] >= span.start) & (slots[:, 1] < span.stop))
            parts = [batch.patches[ends[each] - sizes[each] : ends[each]] for each in media]
            told.append(
                Document(
                    input_ids=batch.input_ids[row, span],
                    labels=batch.labels[row, span],
                    patches=np.concatenate([batch.patches[:0], *parts]),
                    grid_thw=batch.grid_thw[media],
                    slots=slots[media, 1:] - [span.start, 0],
                )
            )
    return told


def padded_batches(documents: Sequence[Document], *, rows: int, length: int | None = None) -> list[Batch]:
    """Return batches with a sample in each row.

    Args:
        documents: in any order.
        rows: samples of a batch; the last may have fewer.
        length: of every row; None: of the longest sample in the batch, samples of like length together.
    """
    if length is None:
        documents = sorted(documents, key=lambda each: len(each.input_ids))
    runs = [documents[first : first + rows] for first in range(0, len(documents), rows)]
    return [_padded(run, length or max(len(each.input_ids) for each in run)) for run in runs]


def _padded(documents: Sequence[Document], length: int) -> Batch:
    shape = len(documents), length
    ids, labels = np.zeros(shape, np.int64), np.full(shape, -100)
    for row, each in enumerate(documents):
        ids[row, : len(each.input_ids)], labels[row, : len(each.input_ids)] = each.input_ids, each.labels
    slots = [np.insert(each.slots, 0, row, axis=1) for row, each in enumerate(documents)]
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=np.tile(np.arange(length), (len(documents), 1)),
        cu_seqlens=np.arange(0, ids.size + 1, length, dtype=np.int32),
        patches=np.concatenate([each.patches for each in documents]),
        grid_thw=np.concatenate([each.grid_thw for each in documents]),
        media_slots=np.concatenate(slots),
        provenance=[],
    )
