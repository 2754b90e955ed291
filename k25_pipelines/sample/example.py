"""One planned sample as arrays: what was read and its draws in, token ids, targets, patches and grids out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from k25_pipelines.catalog.manifest import Part
from k25_pipelines.errors import SampleError
from k25_pipelines.plan.size import Profile, resized_size
from k25_pipelines.sample import video
from k25_pipelines.sample.augment import Draws, augmented_pixels
from k25_pipelines.sample.decode import dct_scale, decode_image
from k25_pipelines.sample.mask import TokenizedSample, tokenized
from k25_pipelines.sample.patches import grid_of, patches_into
from k25_pipelines.sample.read import RawSample
from k25_pipelines.sample.renderings import candidate_spans, frame_runs, media_parts, renderings, settled_draws
from k25_pipelines.sample.tokens import Tokenizer

__all__ = ["Example", "as_planned", "candidate_spans", "example"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A sample as a model reads it."""

    tokens: TokenizedSample
    """Ids, targets and places of vision items."""
    patches: np.ndarray
    """float32, or uint8 levels, [p, 3, patch, patch] of all its vision items, in order."""
    grid_thw: np.ndarray
    """int64 [m, 3] frames, rows and columns of patches of each vision item."""


def example(
    raw: RawSample,
    draws: Draws,
    *,
    tokenizer: Tokenizer,
    profile: Profile,
    max_tokens: int,
    max_image_tokens: int | None = None,
    out: np.ndarray | None = None,
) -> Example:
    """Return a sample under its draws.

    What is written of annotations is rendered after the transform, sides are exchanged by a mirror;
    a mirror or quarter turn that would change the meaning is left out (`augment.settled`). Words of a draw
    that would exceed the planned length fall back towards the plain ones (`renderings`).

    Args:
        raw: what `read.read_line` gave.
        draws: as planned; of several media they are the first's, the others are whole and plain.
        tokenizer: words to ids.
        profile: what the model wants of media.
        max_tokens: planned length [tokens].
        max_image_tokens: the recipe's budget for the media after the first; None: the profile's [tokens].
        out: float32 or uint8 [planned patches, 3, patch, patch], in which they are written if they are as many.

    Raises:
        SampleError: the media cannot be decoded or are not what the manifest says.
    """
    draws = settled_draws(raw, draws)
    items = _vision_items(raw, draws, profile, max_image_tokens or profile.max_image_tokens)
    grids = [grid_of(item, patch=profile.patch, merge=profile.merge) for item in items]
    cut = _cut(items, grids, profile, out)
    media_tokens = [rows * columns // profile.merge**2 for _, rows, columns in grids]
    tokens = None
    for spans in renderings(raw, draws, profile):
        tokens = tokenized(spans, tokenizer, media_tokens=media_tokens)
        if len(tokens.ids) <= max_tokens:
            break
    assert tokens is not None  # every sample has a plain rendering
    return Example(tokens=tokens, patches=cut, grid_thw=np.array(grids, dtype=np.int64).reshape(-1, 3))


def as_planned(made: Example, row: Mapping, *, name: str, pack_tokens: int) -> Example:
    """Return the part of an example that a plan row counts: of a split document its slice, else all of it.

    Args:
        made: the whole sample.
        row: the plan's row: token_start, num_tokens, patches.
        name: what the sample is called in errors.
        pack_tokens: T; a document is split every T tokens.

    Raises:
        SampleError: it is longer than planned, has other patches, or ends before its slice.
    """
    first, planned, tokens = row["token_start"], row["num_tokens"], made.tokens
    if len(made.patches) != row["patches"]:
        raise SampleError(f"{name}: {len(made.patches)} patches where {row['patches']} were planned")
    left = len(tokens.ids) - first
    is_slice = not len(tokens.media) and planned == pack_tokens
    if left <= 0 or (left > planned and not is_slice):
        raise SampleError(f"{name}: {left} tokens from token {first} on, where {planned} were planned")
    if not first and left <= planned:
        return made
    cut = slice(first, first + planned)
    part = TokenizedSample(ids=tokens.ids[cut], is_target=tokens.is_target[cut], media=tokens.media)
    return Example(tokens=part, patches=made.patches, grid_thw=made.grid_thw)


def _cut(
    items: Sequence[np.ndarray], grids: Sequence[tuple[int, int, int]], profile: Profile, out: np.ndarray | None
) -> np.ndarray:
    """Return the patches of all vision items, in order, written into `out` where it has their number."""
    sizes = [frames * rows * columns for frames, rows, columns in grids]
    if out is None or len(out) != sum(sizes):
        kind = np.float32 if out is None else out.dtype
        out = np.empty((sum(sizes), 3, profile.patch, profile.patch), dtype=kind)
    start = 0
    for item, size in zip(items, sizes, strict=True):
        patches_into(item, out[start : start + size], patch=profile.patch, merge=profile.merge, profile=profile)
        start += size
    return out


def _vision_items(raw: RawSample, draws: Draws, profile: Profile, budget: int) -> list[np.ndarray]:
    """Return the augmented pixels of each vision item, uint8 [t, height, width, 3]."""
    parts = media_parts(raw)
    if len(raw.media) != len(parts):
        raise SampleError(f"{raw.line.key}: its {parts[0].kind} was not read")
    items = []
    for place, (part, data) in enumerate(zip(parts, raw.media, strict=True)):
        items += _items(raw, part, data, draws if place == 0 else _plain(part, profile, budget), profile)
    return items


def _items(raw: RawSample, part: Part, data: bytes, draws: Draws, profile: Profile) -> list[np.ndarray]:
    """Return the vision items of one medium."""
    affine, size = draws.affine, (part.width, part.height)
    if part.kind == "image":
        reduce = _reduction(part, draws)
        pixels = decode_image(data, name=raw.line.key, reduce=reduce)
        if pixels.shape[1::-1] != (-(-size[0] // reduce), -(-size[1] // reduce)):
            seen = "x".join(map(str, pixels.shape[1::-1]))
            stated = f"{size[0]}x{size[1]}" + (f" (decoded at 1/{reduce})" if reduce > 1 else "")
            raise SampleError(f"{raw.line.key}: {seen} pixels, the manifest says {stated}; index it anew")
        return [augmented_pixels(affine.pixels(pixels, reduced=reduce)[None], draws)]
    runs = frame_runs(raw, part, profile)
    seen = video.decode_volumes(data, runs, resize=affine.pixels, size=size, name=raw.line.key)
    frames = augmented_pixels(np.concatenate(list(seen)), draws)
    return np.split(frames, np.cumsum([len(run) for run in runs])[:-1])


def _reduction(part: Part, draws: Draws) -> int:
    """Return by how much an image is reduced while it is decoded: 1 where it is shown as it is or mirrored."""
    if not draws.is_augmented(part.width, part.height):
        return 1
    size = (draws.height, draws.width) if draws.turns % 2 else (draws.width, draws.height)
    crop, source = draws.crop[2:], (part.width, part.height)
    return dct_scale(crop=crop, size=size, source=source, orientation=part.orientation)


def _plain(part: Part, profile: Profile, budget: int) -> Draws:
    """Return the draws of a medium that is shown whole, at the published size."""
    limit = min(budget, profile.max_frame_tokens if part.kind == "video" else profile.max_image_tokens)
    width, height = resized_size(part.width, part.height, limit, profile)
    return Draws(crop=(0.0, 0.0, float(part.width), float(part.height)), width=int(width), height=int(height))
