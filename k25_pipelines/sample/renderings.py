"""A raw sample to the ways it may be written under its draws, the fullest first: what was read in, spans out.

What a sample is follows from what it holds: `messages` make it a conversation, a `content` list a document with
media inside, places on its image an object or text-line sample, other media a caption, no media a document.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from k25_pipelines.catalog.clip import window_start
from k25_pipelines.catalog.manifest import MEDIA_KINDS, Part
from k25_pipelines.errors import SampleError
from k25_pipelines.plan.size import Profile, sampled_frames
from k25_pipelines.sample import chat, video
from k25_pipelines.sample.annotations import Annotation, annotations_of, mirrored, moved
from k25_pipelines.sample.augment import Draws, settled
from k25_pipelines.sample.read import RawSample
from k25_pipelines.sample.tasks import task_of, written
from k25_pipelines.sample.words import chosen, mirrored_words, noised, wording

PROMPT_BITS = 32
"""The prompt is chosen by the draw's higher bits, the caption or wording by its lower ones."""


def renderings(raw: RawSample, draws: Draws, profile: Profile) -> Iterator[list[chat.Span]]:
    """Yield the renderings of a sample under its draws, from the one that was drawn down to the plainest.

    The plainest is no longer than the longest of `candidate_spans`, whatever was drawn; what is written of
    objects follows the transform. Noise touches captions and documents alone.

    Args:
        raw: the sample; its media bytes are not needed.
        draws: as planned, after `settled_draws`.
        profile: how much of a video is seen.
    """
    if _is_free(raw):
        yield _free(raw, profile)
    elif not media_parts(raw):
        text = document(raw)
        yield from (chat.render_text(words) for words in dict.fromkeys([noised(text, draws.noise), text]))
    elif found := annotations_of(raw.inline, name=raw.line.key):
        yield from _objects(raw, found, draws, profile)
    else:
        yield from _captions(raw, draws, profile)


def candidate_spans(raw: RawSample, profile: Profile) -> list[list[chat.Span]]:
    """Return renderings of which the longest bounds the sample's tokens under any draws; pads not counted.

    All annotations are kept, and what a mirror may show is also given mirrored. Wordings that only a
    draw would choose are left out: they fall back when they are too long. It is a bound for
    tokenizers that cut all three-digit numbers into equally many tokens.
    """
    if _is_free(raw):
        return [_free(raw, profile)]
    if not media_parts(raw):
        return [chat.render_text(document(raw))]
    media = _joined(media_spans(raw, profile))
    may_flip = settled_draws(raw, Draws(crop=(0.0, 0.0, 1.0, 1.0), width=1, height=1, flip=True)).flip
    if found := annotations_of(raw.inline, name=raw.line.key):
        ways = [found, [mirrored(one) for one in found]] if may_flip else [found]
        return [_rendered(raw, list(zip(way, found, strict=True)), found, (1, 1), media) for way in ways]
    caption = captions(raw)[0]
    ways = [caption, mirrored_words(caption)] if may_flip else [caption]
    return [chat.render_caption(words, media=media) for words in dict.fromkeys(ways)]


def settled_draws(raw: RawSample, draws: Draws) -> Draws:
    """Return the draws without what would change the meaning of this sample's words and annotations."""
    if not (draws.flip or draws.turns) or _is_free(raw) or not media_parts(raw):
        return draws
    found = annotations_of(raw.inline, name=raw.line.key)
    return settled(draws, texts=[] if found else captions(raw), annotations=found)


def media_parts(raw: RawSample) -> tuple[Part, ...]:
    """Return the images and videos of a sample, in order."""
    return tuple(part for part in raw.line.parts if part.kind in MEDIA_KINDS)


def media_spans(raw: RawSample, profile: Profile) -> list[list[chat.Span]]:
    """Return for each medium the places of its vision items; those of a video with their times."""
    spans, first = [], 0
    for part in media_parts(raw):
        if part.kind == "image":
            spans.append(chat.image_media(first=first))
            first += 1
        else:
            runs = frame_runs(raw, part, profile)
            spans.append(chat.video_media(video.start_seconds(runs, part.fps), first=first))
            first += len(runs)
    return spans


def frame_runs(raw: RawSample, part: Part, profile: Profile) -> list[np.ndarray]:
    """Return the frames of each volume of a video.

    Of a video alone with a caption's window the manifest counts the frames of the window; they lie
    from the frame of its `start` on.
    """
    first = window_first(raw, part)
    taken = int(sampled_frames(part.frames, part.fps, profile))
    return video.volumes(first + video.frame_indices(part.frames, taken), profile.volume_frames)


def window_first(raw: RawSample, part: Part) -> int:
    """Return the first frame of a video that its sample is about."""
    alone = len(media_parts(raw)) == 1 and raw.line.inline  # only the manifest's own JSON cuts a window out
    return window_start(raw.inline.get("start"), part.fps) if alone else 0


def captions(raw: RawSample) -> list[str]:
    """Return the wordings of a sample's caption, the plain one first; empty words where it has none."""
    found = [raw.text, *_list(raw, "captions", str), *(one.get("caption") for one in _list(raw, "annotations", dict))]
    words = [words for words in found if words is not None]
    if not all(isinstance(caption, str) for caption in words):
        raise SampleError(f"{raw.line.key}: a caption is not words")
    return list(dict.fromkeys(caption.strip() for caption in words)) or [""]


def document(raw: RawSample) -> str:
    """Return the words of a sample without media. Raises SampleError: it has none."""
    if raw.text is None:
        raise SampleError(f"{raw.line.key}: it has neither words nor media")
    return raw.text


def _objects(raw: RawSample, found: Sequence[Annotation], draws: Draws, profile: Profile) -> Iterator[list[chat.Span]]:
    media, size = _joined(media_spans(raw, profile)), (draws.width, draws.height)
    pairs = [(one, found[place]) for place, one in moved(found, draws.affine, flip=draws.flip)]
    if draws.words:
        yield _rendered(raw, pairs, found, size, media, words=draws.words)
    yield _rendered(raw, pairs, found, size, media)
    if any(sum(map(len, one.polygons)) > sum(map(len, source.polygons)) for one, source in pairs):
        pairs = [(one, found[place]) for place, one in moved(found, draws.affine, flip=draws.flip, simple=True)]
        yield _rendered(raw, pairs, found, size, media)


def _rendered(
    raw: RawSample,
    pairs: Sequence[tuple[Annotation, Annotation]],
    found: Sequence[Annotation],
    size: tuple[int, int],
    media: Sequence[chat.Span],
    *,
    words: int = 0,
) -> list[chat.Span]:
    """Return the rendering of annotations as seen, each with itself as stored, in the wording of the draw."""
    task = task_of(raw.inline, found, name=raw.line.key)
    each = [written(one, source, task, width=size[0], height=size[1]) for one, source in pairs]
    left = [one for one in each if one is not None]
    if task == "lines":
        return chat.render_lines(left, media=media, wording=wording(words, len(chat.LINE_WORDINGS)))
    return chat.render_objects(left, media=media, wording=wording(words, len(chat.OBJECT_WORDINGS)))


def _captions(raw: RawSample, draws: Draws, profile: Profile) -> Iterator[list[chat.Span]]:
    media, wordings = _joined(media_spans(raw, profile)), captions(raw)
    plain, drawn = (
        mirrored_words(caption) if draws.flip else caption for caption in (wordings[0], chosen(wordings, draws.words))
    )
    prompt = chat.PROMPTS[(draws.words >> PROMPT_BITS) % len(chat.PROMPTS)] if draws.words else ""
    ways = [("", plain)]
    if drawn != plain or draws.noise or prompt:
        noisy = noised(drawn, draws.noise)
        ways = [(prompt, noisy), ("", noisy), (prompt, drawn), ("", drawn), ("", noised(plain, draws.noise)), *ways]
    for words, caption in dict.fromkeys(ways):
        yield chat.render_caption(caption, media=media, prompt=words)


def _is_free(raw: RawSample) -> bool:
    """Return whether the sample itself says where its media stand."""
    return "messages" in raw.inline or isinstance(raw.inline.get("content"), list)


def _free(raw: RawSample, profile: Profile) -> list[chat.Span]:
    """Return a conversation, or a document with media inside."""
    waiting = media_spans(raw, profile)
    try:
        if "messages" not in raw.inline:
            spans = chat.render_interleaved(_pieces(raw.inline["content"], waiting))
        else:
            messages = [{**said, "content": _pieces(said.get("content"), waiting)} for said in raw.inline["messages"]]
            nowhere = all(isinstance(said.get("content"), str) for said in raw.inline["messages"])
            media = _joined(waiting) if nowhere else []
            waiting = [] if nowhere else waiting
            spans = chat.render_messages(messages, media=media)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise SampleError(f"{raw.line.key}: its messages or content cannot be written ({why})") from error
    if waiting:
        raise SampleError(f"{raw.line.key}: {len(waiting)} of its media have no place in its words")
    return spans


def _pieces(content: str | list | None, waiting: list[list[chat.Span]]) -> list:
    """Return words and places of media in their order; the media are taken from the front of `waiting`."""
    if content is None or isinstance(content, str):
        return [content] if content else []
    pieces = []
    for item in content:
        if item["type"] not in ("text", "image", "video"):
            raise ValueError(f"a piece of type {item['type']!r}, not text, image or video")
        pieces.append(item["text"] if item["type"] == "text" else waiting.pop(0))
    if not all(isinstance(piece, str | list) for piece in pieces):
        raise ValueError("a text is not words")
    return pieces


def _joined(spans: Sequence[Sequence[chat.Span]]) -> list[chat.Span]:
    return [span for medium in spans for span in medium]


def _list(raw: RawSample, name: str, kind: type) -> list:
    found = raw.inline.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise SampleError(f"{raw.line.key}: {name!r} is not the list it should be")
    return found
