"""Samples as the model saw them: a batch and a plan's rows in, its own pixels, tokens and loss mask out."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise

import numpy as np

from k25_pipelines.gallery.overlay import SHOWN_SIDE, figure, legend
from k25_pipelines.gallery.page import chip
from k25_pipelines.gallery.stored import STRIP_FRAMES, marks_of
from k25_pipelines.loader import Batch, Provenance
from k25_pipelines.plan.size import Profile
from k25_pipelines.sample.annotations import moved
from k25_pipelines.sample.augment import Draws, draws_of_row
from k25_pipelines.sample.patches import pixels_of
from k25_pipelines.sample.read import RawSample
from k25_pipelines.sample.renderings import media_parts, settled_draws
from k25_pipelines.sample.tokens import Tokenizer

WORDS_SHOWN = 2400
"""Characters of a run of words on a card; a run is cut in its middle."""
MOST_ITEMS = 4
"""Vision items of a sample that are shown."""


def seen_pictures(raw: RawSample, row: Mapping, sample: Provenance, batch: Batch, profile: Profile) -> str:
    """Return the vision items of a sample out of the batch's own patches, a square a token, with what is left marked.

    Args:
        raw: the sample, for its annotations.
        row: of the plan.
        sample: its place in the batch.
        batch: what the model was fed.
        profile: of the plan.
    """
    draws = settled_draws(raw, draws_of_row(row))
    left = [one for _, one in moved(marks_of(raw), draws.affine, flip=draws.flip)]
    ends, levels = np.cumsum(batch.grid_thw.prod(axis=1)), batch.normalised_patches
    side, shown = profile.patch * profile.merge, []
    mine = [item for item, slot in enumerate(batch.media_slots.tolist()) if _is_inside(slot, sample, batch)]
    for item in mine[:MOST_ITEMS]:
        grid = tuple(batch.grid_thw[item].tolist())
        patches = levels[ends[item] - int(np.prod(grid)) : ends[item]]
        frames = pixels_of(patches, grid, profile=profile)
        told = f"{grid[1]} x {grid[2]} patches, {batch.media_slots[item, 2]} tokens"
        if grid[0] == 1 and not _is_video(raw):
            marks = left if item == mine[0] else []
            shown.append(figure(frames[0], marks, caption=told, token_pixels=side, side=SHOWN_SIDE))
            continue
        strip = [figure(frame, side=112, token_pixels=side) for frame in frames[:STRIP_FRAMES]]
        told = f"a volume of {len(frames)} frames, {told}"
        shown.append(f"<div class=strip>{''.join(strip)}</div><p class='small soft'>{told}</p>")
    more = f"<p class='small soft'>and {len(mine) - MOST_ITEMS} more vision items</p>" if len(mine) > MOST_ITEMS else ""
    return f"{''.join(shown)}{more}<div>{legend(left)}</div><div>{what_was_done(row, draws, raw)}</div>"


def what_was_done(row: Mapping, draws: Draws, raw: RawSample) -> str:
    """Return the draws that a sample really went through, in words, and which its words forbade."""
    first = media_parts(raw)[0]
    done = []
    if draws.crop != (0, 0, first.width, first.height) and first.kind == "image":
        x, y, width, height = draws.crop
        done.append(f"crop {width:g} x {height:g} from {x:g}, {y:g}")
    if (draws.crop[2], draws.crop[3]) != (draws.width, draws.height):
        done.append(f"resized to {draws.width} x {draws.height}")
    done += ["mirrored"] if draws.flip else []
    done += [f"{90 * draws.turns}° turn"] if draws.turns else []
    done += [f"rotated {draws.angle:.1f}°"] if draws.angle else []
    for name in ("brightness", "contrast", "saturation"):
        done += [f"{name} x {getattr(draws, name):.2f}"] if getattr(draws, name) != 1 else []
    done += [f"blur {draws.blur:.2f}"] if draws.blur else []
    done += [f"JPEG {draws.jpeg}"] if draws.jpeg else []
    done += ["other wording"] if draws.words else []
    done += ["noise in words"] if draws.noise else []
    kept = ["mirror left out: it would change the words"] if row["flip"] and not draws.flip else []
    kept += ["turn left out: it would change the words"] if row["turns"] and not draws.turns else []
    return "".join(chip(words) for words in [*(done or ["as it is"]), *kept])


def seen_words(sample: Provenance, batch: Batch, tokenizer: Tokenizer) -> str:
    """Return a sample's tokens: what is not predicted stands in grey, special tokens are framed.

    Pads of a vision item are one frame with their number, as are those that fill a span.
    """
    row = _row(sample, batch)
    span = slice(sample.start, sample.start + sample.num_tokens)
    ids, is_target = batch.input_ids[row, span], batch.labels[row, span] >= 0
    names = {number: name for name, number in tokenizer.special.items()}
    kind = np.array([token if token in names else -1 for token in ids.tolist()], dtype=np.int64)
    changes = (np.diff(kind) != 0) | (np.diff(is_target) != 0)
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(ids)]
    told = []
    for first, end in pairwise(edges):
        if kind[first] >= 0:
            told.append(_special(names[int(kind[first])], end - first, is_target=bool(is_target[first])))
        else:
            text = escape(_cut(tokenizer.decode(ids[first:end].tolist())))
            told.append(f"<span class={'taught' if is_target[first] else 'masked'}>{text}</span>")
    return f"<div class=words>{''.join(told)}</div>"


def first_words(sample: Provenance, batch: Batch, tokenizer: Tokenizer, *, most: int = 24) -> str:
    """Return the words of a piece of a text a few tokens after its start, where no letter is cut."""
    ids = batch.input_ids[_row(sample, batch), sample.start : sample.start + min(sample.num_tokens, most)]
    return tokenizer.decode(ids[2:].tolist()).strip("\ufffd")


def taught_tokens(sample: Provenance, batch: Batch) -> int:
    """Return how many tokens of a sample are predicted."""
    span = slice(sample.start, sample.start + sample.num_tokens)
    return int((batch.labels[_row(sample, batch), span] >= 0).sum())


def _row(sample: Provenance, batch: Batch) -> int:
    """Return the row of a batch that a sample's pack is, whichever rank's batch it is."""
    return sample.pack - min(place.pack for place in batch.provenance)


def _is_inside(slot: list[int], sample: Provenance, batch: Batch) -> bool:
    return slot[0] == _row(sample, batch) and sample.start <= slot[1] < sample.start + sample.num_tokens


def _is_video(raw: RawSample) -> bool:
    return any(part.kind == "video" for part in media_parts(raw))


def _special(name: str, count: int, *, is_target: bool) -> str:
    if name == "media_pad":
        return f"<span class='token see'>▦ {count} vision token{'s' if count > 1 else ''}</span>"
    words = name if count == 1 else f"{name} x {count}"
    return f"<span class='token{' on' if is_target else ''}'>{words}</span>"


def _cut(text: str) -> str:
    if len(text) <= WORDS_SHOWN:
        return text
    half = WORDS_SHOWN // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} more characters …\n{text[-half:]}"
