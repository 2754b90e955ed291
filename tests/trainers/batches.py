"""Small batches as the loader makes them: documents as lists of words and pictures in, a Batch out."""

from dataclasses import dataclass

import numpy as np

from k25_pipelines.loader import Batch, Provenance

# Shapes: B packs, T tokens, P patches, M media.


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """One volume; `tokens` places are left for it."""

    thw: tuple[int, int, int]
    seed: int = 0

    @property
    def tokens(self) -> int:
        return self.thw[1] * self.thw[2] // 4

    @property
    def patches(self) -> np.ndarray:
        count = int(np.prod(self.thw))
        return np.random.default_rng(self.seed).uniform(-1, 1, (count, 3, 14, 14)).astype(np.float32)


def batch_of(packs: list[list[list]], *, length: int) -> Batch:
    """Return a batch of packs of documents; a document is a list of token ids and `Media`; ids are targets."""
    ids, labels = np.zeros((len(packs), length), np.int64), np.full((len(packs), length), -100)
    positions = np.zeros((len(packs), length), np.int64)
    edges, slots, grid, patches, provenance = [0], [], [], [np.empty((0, 3, 14, 14), np.float32)], []
    for row, documents in enumerate(packs):
        at = 0
        for slot, document in enumerate(documents):
            start = at
            for item in document:
                if isinstance(item, Media):
                    slots.append((row, at, item.tokens))
                    grid.append(item.thw)
                    patches.append(item.patches)
                    at += item.tokens
                else:
                    ids[row, at] = labels[row, at] = item
                    at += 1
            positions[row, start:at] = np.arange(at - start)
            edges.append(row * length + at)
            place = {"pack": row, "slot": slot, "line": len(provenance), "start": start, "num_tokens": at - start}
            provenance.append(Provenance(**place, dataset="toy", key=str(len(provenance)), epoch=0, masked=None))
        positions[row, at:] = np.arange(length - at)
        if at < length:
            edges.append((row + 1) * length)
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=positions,
        cu_seqlens=np.array(edges, np.int32),
        patches=np.concatenate(patches),
        grid_thw=np.array(grid, np.int64).reshape(-1, 3),
        media_slots=np.array(slots, np.int64).reshape(-1, 3),
        provenance=provenance,
    )
