"""Pages for the eye: samples of a dataset or a step, as stored and as the model sees them. Lake in, HTML out."""

import html
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.catalog.statistics import statistics
from k25_pipelines.errors import SampleError
from k25_pipelines.keys import random_key
from k25_pipelines.loader import Batch, PlanLoader, Provenance
from k25_pipelines.plan.permutation import permute
from k25_pipelines.plan.size import Profile
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.planning import open_plan
from k25_pipelines.sample import picture
from k25_pipelines.sample.annotations import Annotation, annotations_of, moved
from k25_pipelines.sample.augment import draws_of_row
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.marks import marked
from k25_pipelines.sample.patches import pixels_of
from k25_pipelines.sample.read import RawSample, read_line
from k25_pipelines.sample.renderings import media_parts, settled_draws, window_first
from k25_pipelines.sample.tokens import Tokenizer, load_tokenizer
from k25_pipelines.sample.video import decode_volumes
from k25_pipelines.storage.store import Store, open_store

Progress = Callable[[int, int, str], None]

WORDS_SHOWN = 280
"""Characters of a text on a card."""
SIDE = 200
"""Longer side of a picture on a step's page, at most [pixels]."""
STRIP_FRAMES = 4
"""Frames shown of a video."""

STEP_LEGEND = """<p class=faint>A bar is a pack, a block a sample as wide as its tokens, blue where it has media.
Grey words are not predicted.</p>"""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #888; --vision: #4363d8; --pad: #bbb6; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
td, th { text-align: left; padding: .1rem .8rem .1rem 0; }
.faint { color: var(--faint); font-size: .85em; }
.cards { display: grid; align-items: start; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; overflow-wrap: anywhere; }
.card img { max-width: 100%; margin: 0 .3rem .3rem 0; vertical-align: top; }
.pair { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; max-width: 100%; }
figcaption { color: var(--faint); font-size: .75em; }
.pack { display: flex; height: 1.5rem; margin: .2rem 0; border-radius: .3rem; overflow: hidden; }
.pack { background: var(--pad); }
.pack span { border-right: 1px solid #fff8; background: #88c; }
.pack .media { background: var(--vision); }
.masked { color: var(--faint); }
"""


def dataset_page(lake: Store, name: str, *, num_samples: int = 24, progress: Progress | None = None) -> str:
    """Return a self-contained page with samples of a dataset: marked pictures, words, licence and source."""
    manifest = load_manifest(lake, name)
    lines, store = sample_lines(manifest, num_samples), open_store(manifest.uri)
    cards = []
    for done, line in enumerate(lines):
        cards.append(_stored_card(manifest, line, store))
        if progress:
            progress(done + 1, len(lines), f"{name}:{line}")
    facts = statistics(manifest)
    told = "".join(
        f"<tr><th>{name.removeprefix('num_').replace('_', ' ')}<td>{value:,}"
        for name, value in facts.items()
        if isinstance(value, int) and value
    )
    body = f"<table>{told}</table><h2>{len(lines)} samples</h2><div class=cards>{''.join(cards)}</div>"
    return _page(f"{name}@{manifest.digest[:12]}", body)


def step_page(lake: Store, plan_id: str, *, step: int, progress: Progress | None = None) -> str:
    """Return a self-contained page of one training step: a map of its packs and each sample as the model saw it."""
    plan = open_plan(lake, plan_id)
    with PlanLoader(plan, lake) as loader:
        batch = loader.batch(step)
    tokenizer = load_tokenizer(plan.tokenizer, lake)
    rows = plan.rows(step).to_pylist()
    manifests = {name: load_manifest(lake, name, digest) for name, digest in plan.datasets.items()}
    stores = {name: open_store(manifest.uri) for name, manifest in manifests.items()}
    profile, sections = profile_named(plan.profile), []
    for pack in range(len(batch.input_ids)):
        inside = [(row, sample) for row, sample in zip(rows, batch.provenance, strict=True) if sample.pack == pack]
        cards = []
        for row, sample in inside:
            shown = row["media"] and not sample.masked
            raw = _raw(manifests[sample.dataset], sample.line, stores[sample.dataset]) if shown else None
            cards.append(_seen_card(raw, row, sample, batch, tokenizer, profile))
        blocks = _pack_map([row for row, _ in inside], plan.recipe.pack_tokens)
        sections.append(f"<h2>pack {pack}</h2>{blocks}<div class=cards>{''.join(cards)}</div>")
        if progress:
            progress(pack + 1, len(batch.input_ids), f"pack {pack}")
    return _page(f"step {step} of plan {plan.id[:12]} ({plan.recipe.name})", STEP_LEGEND + "".join(sections))


def sample_lines(manifest: Manifest, num_samples: int) -> list[int]:
    """Return lines of a manifest that are not quarantined, spread by a fixed shuffle, ascending."""
    fine = np.flatnonzero(~manifest.quarantined)
    if not len(fine):
        return []
    places = np.arange(min(num_samples, len(fine)))
    return sorted(fine[permute(places, len(fine), random_key("gallery", manifest.dataset))].tolist())


def contact_sheet(lake: Store, manifest: Manifest, lines: Sequence[int]) -> bytes:
    """Return a JPEG with the pictures of the given lines in a grid, boxes drawn; b"" if none has a picture."""
    store = open_store(manifest.uri)
    pictures = [shown for line in lines for shown in stored_pictures(_raw(manifest, line, store), side=128)[:1]]
    return picture.encoded(picture.contact_sheet(pictures)) if pictures else b""


def stored_pictures(raw: RawSample, *, side: int) -> list[np.ndarray]:
    """Return a sample's images, the first with its annotations, or some frames of its videos; none for text."""
    shown = []
    for place, (part, data) in enumerate(zip(media_parts(raw), raw.media, strict=False)):
        if part.kind == "image":
            found = _annotations(raw) if place == 0 else []
            shown.append(marked(decode_image(data, name=raw.line.key), found, side=side))
            continue
        frames = window_first(raw, part) + np.linspace(0, part.frames - 1, min(STRIP_FRAMES, part.frames)).astype(
            np.int64
        )
        volumes = decode_volumes(data, [frames], resize=lambda frame: frame, size=(part.width, part.height))
        shown += [picture.thumbnail(frame, side=side) for volume in volumes for frame in volume]
    return shown


def _annotations(raw: RawSample) -> list[Annotation]:
    return annotations_of(raw.inline, name=raw.line.key)


def _raw(manifest: Manifest, line: int, store: Store) -> RawSample:
    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return store.get_range(shard, offset, num_bytes, etag=etag or None)

    return read_line(manifest, line, fetch)


def _stored_card(manifest: Manifest, line: int, store: Store) -> str:
    try:
        raw = _raw(manifest, line, store)
        shown = stored_pictures(raw, side=220)
    except SampleError as error:
        return f"<div class=card><p class=masked>{html.escape(str(error))}</p></div>"
    images = "".join(f"<img src='{picture.data_uri(one)}' alt=''>" for one in shown)
    labels = [one.label for one in _annotations(raw)] if shown else []
    words = html.escape(_shortened(", ".join(labels) or raw.text or ""))
    origin = f"{line} · {html.escape(raw.line.key)} · {html.escape(raw.line.licence)} · {html.escape(raw.line.source)}"
    return f"<div class=card>{images}<p>{words}</p><p class=faint>{origin}</p></div>"


def _seen_card(
    raw: RawSample | None, row: dict, sample: Provenance, batch: Batch, tokenizer: Tokenizer, profile: Profile
) -> str:
    name = f"{sample.dataset}:{sample.line}, epoch {sample.epoch}, {sample.num_tokens} tokens"
    if sample.masked:
        return (
            f"<div class=card><p class=masked>masked: {html.escape(sample.masked)}</p><p class=faint>{name}</p></div>"
        )
    figures = ""
    if raw is not None:
        figures = _figure("as stored", stored_pictures(raw, side=SIDE)[:1])
        figures += _figure("as the model sees it", _seen_pictures(raw, row, sample, batch, profile))
    words = _marked_words(sample, batch, tokenizer)
    return f"<div class=card><div class=pair>{figures}</div><p>{words}</p><p class=faint>{name}</p></div>"


def _seen_pictures(raw: RawSample, row: dict, sample: Provenance, batch: Batch, profile: Profile) -> list[np.ndarray]:
    """Return the vision items of a sample out of the batch's patches, the first with its moved annotations."""
    draws, shown = settled_draws(raw, draws_of_row(row)), []
    left = [one for _, one in moved(_annotations(raw), draws.affine, flip=draws.flip)]
    ends = np.cumsum(batch.grid_thw.prod(axis=1))
    for item, (pack, start, _) in enumerate(batch.media_slots.tolist()):
        if pack == sample.pack and sample.start <= start < sample.start + sample.num_tokens:
            grid = tuple(batch.grid_thw[item].tolist())
            patches = batch.patches[ends[item] - int(np.prod(grid)) : ends[item]]
            frames = pixels_of(patches, grid, profile=profile)
            shown += [marked(frame, left if not shown else [], side=SIDE) for frame in frames]
    return shown[:STRIP_FRAMES]


def _marked_words(sample: Provenance, batch: Batch, tokenizer: Tokenizer) -> str:
    """Return a sample's words, those that are not predicted in grey, pads left out."""
    span = slice(sample.start, sample.start + sample.num_tokens)
    ids, labels = batch.input_ids[sample.pack, span], batch.labels[sample.pack, span]
    words = (ids != tokenizer.media_pad) & (ids != tokenizer.pad)
    ids, is_target = ids[words], labels[words] >= 0
    edges = [0, *(np.flatnonzero(np.diff(is_target)) + 1).tolist(), len(ids)]
    told = []
    for first, end in pairwise(edges):
        text = html.escape(_shortened(tokenizer.decode(ids[first:end].tolist())))
        told.append(text if first < end and is_target[first] else f"<span class=masked>{text}</span>")
    return "".join(told)


def _pack_map(rows: Sequence[dict], pack_tokens: int) -> str:
    """Return a bar of a pack: a block a sample, as wide as its tokens, blue where it has media."""
    blocks = "".join(
        f"<span class='{'media' if row['media'] else ''}' style='width:{100 * row['num_tokens'] / pack_tokens:.3f}%' "
        f"title='{html.escape(row['dataset'])}:{row['line']}, {row['num_tokens']} tokens'></span>"
        for row in rows
    )
    return f"<div class=pack>{blocks}</div>"


def _figure(caption: str, pictures: Sequence[np.ndarray]) -> str:
    images = "".join(f"<img src='{picture.data_uri(one)}' alt=''>" for one in pictures)
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _shortened(text: str) -> str:
    return text if len(text) <= WORDS_SHOWN else text[:WORDS_SHOWN] + " ..."


def _page(title: str, body: str) -> str:
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
    return f"<!doctype html>{head}<style>{STYLE}</style><h1>{html.escape(title)}</h1>{body}\n"
