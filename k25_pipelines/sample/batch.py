"""Samples to a batch: loaded samples and their places in, one rank's arrays out, and the digests of its packs.

Shapes: B packs on this rank, T tokens in a pack, P patches and M vision items on this rank.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from k25_pipelines.keys import canonical_bytes
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.sample.example import Example
from k25_pipelines.sample.mask import IGNORED, labels_of
from k25_pipelines.sample.patches import PATCH, normalised

DIGEST_FIELDS = ("input_ids", "labels", "position_ids", "cu_seqlens", "patches", "grid_thw", "media_slots")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Which sample stands where in a batch."""

    pack: int
    """Number of the pack in its step, over all ranks."""
    slot: int
    """Place in the pack."""
    dataset: str
    line: int
    key: str
    """What the dataset calls the sample."""
    epoch: int
    start: int
    """First column in the pack [tokens]."""
    num_tokens: int
    """Planned length [tokens]."""
    masked: str | None
    """Why its span is padding; None if the sample is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one rank's model sees at one step."""

    input_ids: np.ndarray
    """int64 [B, T] token ids."""
    labels: np.ndarray
    """int64 [B, T], the token where it is to be predicted, else -100; unshifted."""
    position_ids: np.ndarray
    """int64 [B, T], from 0 in each sample, padding included."""
    cu_seqlens: np.ndarray
    """int32 [samples + 1] where samples begin among the B * T places; a pack's padding is one of its own."""
    patches: np.ndarray
    """float32 [P, 3, 14, 14] pixels in [-1, 1], vision items in the order of the packs; or uint8 levels of them."""
    grid_thw: np.ndarray
    """int64 [M, 3] frames, rows and columns of patches of each vision item."""
    media_slots: np.ndarray
    """int64 [M, 3] pack of this batch, first column and number of tokens of each vision item."""
    provenance: list[Provenance]
    """A line a sample, in the order of the packs."""
    profile: str = "kimi_k25"
    """Whose mean and deviation normalise levels."""
    _digests: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def normalised_patches(self) -> np.ndarray:
        """The patches as float32, whatever they are kept as."""
        is_levels = self.patches.dtype == np.uint8
        return normalised(self.patches, profile=profile_named(self.profile)) if is_levels else self.patches

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each pack, in order: what `pack_digest` says of it. Hashed when first asked for, and kept."""
        if not self._digests:
            self._digests.extend([pack_digest(pack) for pack in packs_of(self)])
        return list(self._digests)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedSample:
    """One sample and its place."""

    provenance: Provenance
    example: Example | None
    """At most `provenance.num_tokens` long; None where the span is masked."""


def assembled(
    samples: Sequence[PlacedSample],
    packs: Sequence[int],
    *,
    pack_tokens: int,
    pad: int,
    patches: np.ndarray | None = None,
    profile: str = "kimi_k25",
) -> Batch:
    """Return the batch of some packs.

    A sample shorter than planned is followed by padding that is part of its span; a masked one is
    nothing but padding and has no vision items. No label stands on padding.

    Args:
        samples: in the order of packs and slots.
        packs: which packs of the step these are, ascending.
        pack_tokens: T.
        pad: id of the padding token.
        patches: the buffer in whose consecutive slices the samples' patches stand, as planned; it becomes the
            batch's where none is masked. None: they are put together here.
        profile: whose patches they are.
    """
    shape = len(packs), pack_tokens
    row_of = {pack: row for row, pack in enumerate(packs)}
    input_ids, labels = np.full(shape, pad, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    starts, slots, kept = list(range(0, len(packs) * pack_tokens + 1, pack_tokens)), [], []
    for sample in samples:
        place = sample.provenance
        row, start = row_of[place.pack], place.start
        starts += (row * pack_tokens + start, row * pack_tokens + start + place.num_tokens)
        if sample.example is None:
            continue
        tokens = sample.example.tokens
        columns = slice(start, start + len(tokens.ids))
        input_ids[row, columns] = tokens.ids
        labels[row, columns] = labels_of(tokens.ids, tokens.is_target)
        if len(tokens.media):
            slots += [(row, start + first, length) for first, length in tokens.media.tolist()]
            kept.append(sample.example)
    cu_seqlens = np.array(sorted(set(starts)), dtype=np.int32)
    position_ids = np.arange(input_ids.size) - np.repeat(cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens))
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids.reshape(shape),
        cu_seqlens=cu_seqlens,
        patches=_joined([made.patches for made in kept], patches),
        grid_thw=np.concatenate([np.zeros((0, 3), dtype=np.int64), *(made.grid_thw for made in kept)]),
        media_slots=np.array(slots, dtype=np.int64).reshape(-1, 3),
        provenance=[sample.provenance for sample in samples],
        profile=profile,
    )


def packs_of(batch: Batch) -> Iterator[Batch]:
    """Yield each pack as a batch of its own, B = 1, offsets counted from the pack's start; no provenance."""
    num_packs, pack_tokens = batch.input_ids.shape
    ends = np.concatenate([[0], np.cumsum(batch.grid_thw.prod(axis=1))])
    for row in range(num_packs):
        begin, end = row * pack_tokens, (row + 1) * pack_tokens
        inside = (batch.cu_seqlens >= begin) & (batch.cu_seqlens <= end)
        first, last = np.searchsorted(batch.media_slots[:, 0], [row, row + 1])
        yield Batch(
            input_ids=batch.input_ids[row : row + 1],
            labels=batch.labels[row : row + 1],
            position_ids=batch.position_ids[row : row + 1],
            cu_seqlens=batch.cu_seqlens[inside] - np.int32(begin),
            patches=batch.patches[ends[first] : ends[last]],
            grid_thw=batch.grid_thw[first:last],
            media_slots=batch.media_slots[first:last] - np.array([row, 0, 0]),
            provenance=[],
            profile=batch.profile,
        )


def pack_digest(pack: Batch) -> str:
    """Return the SHA-256 of one pack as 64 hexadecimal characters.

    Hashed are, for each of DIGEST_FIELDS in this order: field name, dtype (such as `<i8`) and shape
    as `keys.canonical_bytes` frames them, then the little-endian row-major bytes. Patches are hashed
    normalised, whatever they are kept as.

    Args:
        pack: a batch of one pack.
    """
    hashed = hashlib.sha256()
    for name in DIGEST_FIELDS:
        array = pack.normalised_patches if name == "patches" else getattr(pack, name)
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        hashed.update(canonical_bytes([name, little.dtype.str, list(little.shape)]))
        hashed.update(little.data if little.size else b"")
    return hashed.hexdigest()


def step_digest(digests: Sequence[str]) -> str:
    """Return the SHA-256 of the hexadecimal digests of all of a step's packs, in pack order, one after another."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _joined(pieces: Sequence[np.ndarray], buffer: np.ndarray | None) -> np.ndarray:
    """Return the patches one after another: the buffer itself where they fill it, else a copy."""
    if buffer is not None and sum(map(len, pieces)) == len(buffer):
        return buffer
    kind = np.float32 if buffer is None else buffer.dtype
    return np.concatenate([np.zeros((0, 3, PATCH, PATCH), dtype=kind), *pieces])
