"""Samples as they are stored: manifest lines in, pictures, words and whereabouts out."""

from collections.abc import Collection, Sequence
from html import escape

import numpy as np

from k25_pipelines.catalog.manifest import Line, Manifest, Part
from k25_pipelines.errors import K25Error, ObjectChangedError, ObjectNotFoundError, SampleError
from k25_pipelines.gallery.kept import link, sample_name
from k25_pipelines.gallery.overlay import SHOWN_SIDE, figure, legend
from k25_pipelines.gallery.page import chip, shortened
from k25_pipelines.insight.words import words_of
from k25_pipelines.keys import random_key
from k25_pipelines.plan.permutation import permute
from k25_pipelines.sample import picture
from k25_pipelines.sample.annotations import Annotation, annotations_of
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.marks import marked
from k25_pipelines.sample.read import RawSample, read_line
from k25_pipelines.sample.renderings import media_parts, window_first
from k25_pipelines.sample.video import decode_volumes
from k25_pipelines.storage.store import Store, open_store

STRIP_FRAMES = 6
"""Frames shown of a video."""
CONTEXT = 60
"""Characters of a text that are shown before the piece that a pack holds."""
WORDS_SHOWN = 1600
"""Characters of a text on a card."""
UNREADABLE = (SampleError, ObjectNotFoundError, ObjectChangedError)
"""What keeps one sample from being shown, not a page."""


def sample_lines(manifest: Manifest, num_samples: int, *, without: Collection[int] = ()) -> list[int]:
    """Return lines of a manifest that are not quarantined, spread by a fixed shuffle, ascending.

    Args:
        manifest: the dataset version.
        num_samples: how many at most.
        without: lines that may not be shown.
    """
    fine = np.flatnonzero(~manifest.quarantined)
    fine = fine[~np.isin(fine, np.asarray(without, dtype=np.int64))] if len(without) else fine
    if not len(fine):
        return []
    places = np.arange(min(num_samples, len(fine)))
    return sorted(fine[permute(places, len(fine), random_key("gallery", manifest.dataset))].tolist())


def read_raw(manifest: Manifest, line: int, store: Store) -> RawSample:
    """Return what stands in the store for a line."""

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return store.get_range(shard, offset, num_bytes, etag=etag or None)

    return read_line(manifest, line, fetch)


def marks_of(raw: RawSample) -> list[Annotation]:
    """Return what is marked on a sample's first image."""
    return annotations_of(raw.inline, name=raw.line.key)


def contact_sheet(lake: Store, manifest: Manifest, lines: Sequence[int]) -> bytes:
    """Return a JPEG with the pictures of the given lines in a grid, boxes drawn; b"" if none has a picture."""
    store, pictures = open_store(manifest.uri), []
    for line in lines:
        raw = read_raw(manifest, line, store)
        for place, (pixels, _) in enumerate(frames_of(raw, most=1)[:1]):
            pictures.append(marked(pixels, marks_of(raw) if place == 0 and _is_image(raw) else [], side=128))
    return picture.encoded(picture.contact_sheet(pictures)) if pictures else b""


def frames_of(raw: RawSample, *, most: int = STRIP_FRAMES) -> list[tuple[np.ndarray, str]]:
    """Return a sample's images, and some frames of its videos, each with a caption: its size, or its time."""
    shown = []
    for part, data in zip(media_parts(raw), raw.media, strict=False):
        if part.kind == "image":
            shown.append((decode_image(data, name=raw.line.key), f"{part.width} x {part.height}"))
        else:
            shown += _strip(raw, part, data, most)
    return shown


def stored_html(raw: RawSample, *, around: str = "", side: int = SHOWN_SIDE) -> str:
    """Return a sample as it is stored: its pictures with their marks, a video as a strip, its words.

    Args:
        raw: the sample.
        around: words near which a long text is shown; "": its beginning.
        side: longer side of a picture on the page [CSS pixels].
    """
    marks, shown = marks_of(raw), []
    for place, (part, data) in enumerate(zip(media_parts(raw), raw.media, strict=False)):
        if part.kind == "image":
            found = marks if place == 0 else []
            caption = f"{part.width} x {part.height}, {_size(part.num_bytes)}"
            shown.append(figure(decode_image(data, name=raw.line.key), found, caption=caption, side=side))
        else:
            strip = [figure(frame, caption=told, side=112) for frame, told in _strip(raw, part, data, STRIP_FRAMES)]
            told = f"{part.width} x {part.height}, {part.frames} frames at {part.fps:g} a second"
            shown.append(f"<div class=strip>{''.join(strip)}</div><p class='small soft'>{told}</p>")
    words = _from(words_of(raw), around)
    told = f"<div class=words>{escape(shortened(words, WORDS_SHOWN))}</div>" if words else ""
    return f"{''.join(shown)}<div>{legend(marks)}</div>{told}"


def whereabouts(manifest: Manifest, number: int, line: Line, contents: Sequence[str | None] = ()) -> str:
    """Return where a sample's bytes stand: object, range and etag of each part, its content id where it is known."""
    rows = []
    for place, part in enumerate(line.parts):
        told = f"{part.shard} [{part.offset:,} +{part.num_bytes:,}]" + (f" row {part.row}" if part.row >= 0 else "")
        content = contents[place] if place < len(contents) else None
        known = f" · sha256 {content[:16]}…" if content else ""
        rows.append(
            f"<div><b>{part.kind}</b> <code>{escape(told)}</code>{escape(f' etag {part.etag[:12]}{known}')}</div>"
        )
    where = f"<div><code>{escape(manifest.uri)}</code></div>"
    said = f"<div>key <code>{escape(line.key)}</code></div>"
    summary = f"<summary>bytes of {manifest.dataset}:{number}</summary>"
    return f"<details class=facts>{summary}{said}{where}{''.join(rows)}</details>"


def stored_card(manifest: Manifest, number: int, store: Store, *, served: bool = False) -> str:
    """Return a card of one sample as it is stored, or of why it cannot be read."""
    line = manifest.line(number)
    name = link(sample_name(manifest.dataset, number), f"{manifest.dataset}:{number}", served=served)
    head = f"<div class=head><b>{name}</b></div>"
    try:
        shown = stored_html(read_raw(manifest, number, store))
    except UNREADABLE as error:
        shown = unreadable(error)
    terms = chip(line.licence) + chip(line.source)
    return f"<div class=card>{head}{shown}<div class=facts>{terms}</div>{whereabouts(manifest, number, line)}</div>"


def unreadable(error: K25Error) -> str:
    """Return words in place of a sample that cannot be read."""
    return f"<p class='bad small'>{escape(str(error))}</p>"


def _strip(raw: RawSample, part: Part, data: bytes, most: int) -> list[tuple[np.ndarray, str]]:
    first = window_first(raw, part)
    frames = first + np.linspace(0, part.frames - 1, min(most, part.frames)).astype(np.int64)
    volumes = decode_volumes(data, [frames], resize=lambda frame: frame, size=(part.width, part.height))
    pixels = [frame for volume in volumes for frame in volume]
    return [(one, f"{place / max(part.fps, 1e-9):.2f} s") for one, place in zip(pixels, frames.tolist(), strict=False)]


def _from(words: str, around: str) -> str:
    """Return a text from a little before the words that are looked for."""
    place = words.find(around) if around else -1
    first = max(0, place - CONTEXT)
    return f"({first:,} characters before) … {words[first:]}" if first else words


def _is_image(raw: RawSample) -> bool:
    parts = media_parts(raw)
    return bool(parts) and parts[0].kind == "image"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 1024:.1f} KiB"
