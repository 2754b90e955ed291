"""One planned sample as arrays: what was read and its draws in, token ids, targets, patches and grids out.

What a sample is follows from what it holds: boxes make it grounding, other media a caption,
no media a document. `candidate_spans` is the same rendering without pixels, for lengths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from k25_pipelines.errors import SampleError
from k25_pipelines.plan.size import Profile, sampled_frames
from k25_pipelines.sample import chat, video
from k25_pipelines.sample.augment import (
    Draws,
    augmented_boxes,
    augmented_colour,
    chosen,
    mirrored_words,
)
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.geometry import boxes_from_coco
from k25_pipelines.sample.mask import TokenizedSample, tokenized
from k25_pipelines.sample.patches import patches
from k25_pipelines.sample.read import RawSample
from k25_pipelines.sample.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A sample as a model reads it."""

    tokens: TokenizedSample
    """Ids, targets and places of vision items."""
    patches: np.ndarray
    """float32 [p, 3, patch, patch] of all its vision items, in order."""
    grid_thw: np.ndarray
    """int64 [m, 3] frames, rows and columns of patches of each vision item."""


def example(raw: RawSample, draws: Draws, *, tokenizer: Tokenizer, profile: Profile, max_tokens: int) -> Example:
    """Return a sample under its draws.

    Boxes are rendered after the transform, sides are exchanged by a mirror. Words chosen by a draw
    that would exceed the planned length fall back to the plain ones.

    Args:
        raw: what `read.read_line` gave.
        draws: crop, size, mirror, colours and words, as planned.
        tokenizer: words to ids.
        profile: what the model wants of media.
        max_tokens: planned length [tokens].

    Raises:
        SampleError: the media cannot be decoded or are not what the manifest says.
    """
    items = _vision_items(raw, draws, profile)
    cut = [patches(item, patch=profile.patch, merge=profile.merge) for item in items]
    media_tokens = [rows * columns // profile.merge**2 for _, (_, rows, columns) in cut]
    tokens = tokenized(spans(raw, draws, profile), tokenizer, media_tokens=media_tokens)
    if draws.words and len(tokens.ids) > max_tokens:
        plain = spans(raw, draws, profile, choose=False)
        tokens = tokenized(plain, tokenizer, media_tokens=media_tokens)
    none = np.zeros((0, 3, profile.patch, profile.patch), dtype=np.float32)
    return Example(
        tokens=tokens,
        patches=np.concatenate([none, *(array for array, _ in cut)]),
        grid_thw=np.array([grid for _, grid in cut], dtype=np.int64).reshape(-1, 3),
    )


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


def spans(raw: RawSample, draws: Draws, profile: Profile, *, choose: bool = True) -> list[chat.Span]:
    """Return the rendering of a sample under its draws.

    Args:
        raw: the sample; its media bytes are not needed.
        draws: as planned.
        profile: how much of a video is seen.
        choose: let the draw choose among captions; False keeps the first.
    """
    if raw.medium is None:
        return chat.render_text(_document(raw))
    media = media_spans(raw, profile)
    labels, boxes = objects(raw)
    if labels:
        left, kept = augmented_boxes(boxes, draws.affine)
        names = [_facing(labels[place], flip=draws.flip) for place in kept]
        return chat.render_grounding(
            names, chat.normalised_boxes(left, width=draws.width, height=draws.height), media=media
        )
    caption = chosen(captions(raw), draws.words if choose else 0)
    return chat.render_caption(_facing(caption, flip=draws.flip), media=media)


def candidate_spans(raw: RawSample, profile: Profile) -> list[list[chat.Span]]:
    """Return renderings of which the longest bounds the sample's tokens under any draws; pads not counted.

    All boxes are kept, and words that name sides are also given mirrored. Captions that only a
    draw would choose are left out: they fall back when they are too long.
    """
    if raw.medium is None:
        return [chat.render_text(_document(raw))]
    media = media_spans(raw, profile)
    labels, boxes = objects(raw)
    if labels:
        zeros = np.zeros(boxes.shape, dtype=np.int64)
        variants = [labels, [mirrored_words(label) for label in labels]]
        return [chat.render_grounding(names, zeros, media=media) for names in _distinct(variants)]
    caption = captions(raw)[0]
    return [chat.render_caption(words, media=media) for words in _distinct([caption, mirrored_words(caption)])]


def media_spans(raw: RawSample, profile: Profile) -> list[chat.Span]:
    """Return the places of a sample's vision items; those of a video with their times."""
    part = raw.medium
    if part is None:
        return []
    if part.kind == "image":
        return chat.image_media()
    return chat.video_media(video.start_seconds(_runs(raw, profile), part.fps))


def captions(raw: RawSample) -> list[str]:
    """Return the wordings of a sample's caption, the plain one first; empty words where it has none."""
    found = [raw.text, *_list(raw, "captions"), *(item.get("caption") for item in _list(raw, "annotations"))]
    words = [words for words in found if words is not None]
    if not all(isinstance(caption, str) for caption in words):
        raise SampleError(f"{raw.line.key}: a caption is not words")
    return list(dict.fromkeys(caption.strip() for caption in words)) or [""]


def objects(raw: RawSample) -> tuple[list[str], np.ndarray]:
    """Return the labels of a sample's objects and their boxes, float64 [n, 4] in pixel centres, upright.

    An object is an annotation with a COCO `bbox`; its label is its `label`, else its `category`.

    Raises:
        SampleError: an object has no label, or its box is not four finite numbers.
    """
    found = [item for item in _list(raw, "annotations") if "bbox" in item]
    labels = [item.get("label", item.get("category")) for item in found]
    try:
        boxes = np.array([item["bbox"] for item in found], dtype=np.float64).reshape(len(found), 4)
    except (TypeError, ValueError) as error:
        raise SampleError(f"{raw.line.key}: a bbox is not 4 numbers ({error})") from error
    if not all(isinstance(label, str) for label in labels) or not np.isfinite(boxes).all():
        raise SampleError(f"{raw.line.key}: an object has no label, or a bbox that is not finite")
    return labels, boxes_from_coco(boxes)


def _vision_items(raw: RawSample, draws: Draws, profile: Profile) -> list[np.ndarray]:
    """Return the augmented pixels of each vision item, uint8 [t, height, width, 3]."""
    part = raw.medium
    if part is None:
        return []
    if raw.media is None:
        raise SampleError(f"{raw.line.key}: its {part.kind} was not read")
    affine, size = draws.affine, (part.width, part.height)
    if part.kind == "image":
        pixels = decode_image(raw.media, name=raw.line.key)
        if pixels.shape[1::-1] != size:
            seen = "x".join(map(str, pixels.shape[1::-1]))
            raise SampleError(f"{raw.line.key}: {seen} pixels, the manifest says {size[0]}x{size[1]}; index it anew")
        return [augmented_colour(affine.pixels(pixels)[None], draws)]
    runs = _runs(raw, profile)
    seen = video.decode_volumes(raw.media, runs, resize=affine.pixels, size=size, name=raw.line.key)
    coloured = augmented_colour(np.concatenate(list(seen)), draws)
    return np.split(coloured, np.cumsum([len(run) for run in runs])[:-1])


def _runs(raw: RawSample, profile: Profile) -> list[np.ndarray]:
    """Return the frames of each volume: as many as the whole video is planned with, out of the caption's window."""
    part = raw.medium
    assert part is not None
    taken = int(sampled_frames(part.frames, part.fps, profile))
    try:
        start, end = float(raw.inline.get("start") or 0), float(raw.inline.get("end") or part.frames / part.fps)
    except (TypeError, ValueError) as error:
        raise SampleError(f"{raw.line.key}: start and end are not seconds ({error})") from error
    first = min(max(int(start * part.fps + 1e-6), 0), part.frames - 1)
    last = min(max(int(np.ceil(end * part.fps - 1e-6)) - 1, first), part.frames - 1)
    return video.volumes(first + video.frame_indices(last - first + 1, taken), profile.volume_frames)


def _document(raw: RawSample) -> str:
    if raw.text is None:
        raise SampleError(f"{raw.line.key}: it has neither words nor media")
    return raw.text


def _list(raw: RawSample, name: str) -> list:
    found = raw.inline.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, str if name == "captions" else dict) for item in found):
        raise SampleError(f"{raw.line.key}: {name!r} is not the list it should be")
    return found


def _facing(words: str, *, flip: bool) -> str:
    return mirrored_words(words) if flip else words


def _distinct(variants: Sequence) -> list:
    return [variants[0]] if variants[0] == variants[1] else list(variants)
