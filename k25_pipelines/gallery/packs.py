"""Maps of packs: the rows of a step in, a bar a pack with its samples, and which tokens see each other, out."""

from collections.abc import Mapping, Sequence
from html import escape

from k25_pipelines.gallery.page import chip

SIDE = 132
"""Of the map of who sees whom [pixels]."""


def legend(colours: Mapping[str, str]) -> str:
    """Return what colours and shades of the bars mean."""
    names = "".join(chip(name, colour) for name, colour in colours.items())
    told = "a block is a sample, as wide as its tokens; striped from the left: vision; dark below: not predicted"
    return f"<p>{names}</p><p class='small soft'>{told}; hatched: padding. Samples of a bar share a sequence.</p>"


def pack_bar(
    number: int, rows: Sequence[Mapping], pack_tokens: int, colours: Mapping[str, str], *, taught: Mapping[int, int]
) -> str:
    """Return the bar of a pack.

    Args:
        number: of the pack in its step.
        rows: of the plan, its samples in their order.
        pack_tokens: its length [tokens].
        colours: of the datasets.
        taught: by slot, how many tokens are predicted, where that is known.
    """
    blocks = []
    for row in rows:
        tokens, known = row["num_tokens"], taught.get(row["slot"])
        told = f"{row['dataset']}:{row['line']}, epoch {row['epoch']}, {tokens} tokens, {row['vision_tokens']} vision"
        told += "" if known is None else f", {known} predicted"
        vision = (
            f"<i class=vision style='width:{100 * row['vision_tokens'] / tokens:.2f}%'></i>"
            if row["vision_tokens"]
            else ""
        )
        masked = f"<i style='width:{100 * (1 - known / tokens):.2f}%'></i>" if known is not None else ""
        name = f"<b>{escape(row['dataset'])}</b>" if tokens > pack_tokens / 9 else ""
        blocks.append(
            f"<a href='#p{number}s{row['slot']}' title='{escape(told, quote=True)}' style='width:"
            f"{100 * tokens / pack_tokens:.3f}%;background:{colours[row['dataset']]}'>{vision}{masked}{name}</a>"
        )
    return f"<div class=pack><a href='#p{number}'>pack {number}</a><div class=bar>{''.join(blocks)}</div></div>"


def who_sees_whom(rows: Sequence[Mapping], pack_tokens: int, colours: Mapping[str, str]) -> str:
    """Return the attention of a pack as a map: a token sees those before it in its own sample and no others."""
    scale, start, shapes = SIDE / pack_tokens, 0, []
    for row in rows:
        first, end = start * scale, (start + row["num_tokens"]) * scale
        told = f"<title>{escape(row['dataset'])}:{row['line']}</title>"
        triangle = f"{first:.2f},{first:.2f} {first:.2f},{end:.2f} {end:.2f},{end:.2f}"
        shapes.append(f"<polygon points='{triangle}' fill='{colours[row['dataset']]}'>{told}</polygon>")
        start += row["num_tokens"]
    frame = f"<rect width={SIDE} height={SIDE} fill='var(--mask)' rx=4 />"
    drawn = f"<svg viewBox='0 0 {SIDE} {SIDE}' width={SIDE} height={SIDE}>{frame}{''.join(shapes)}</svg>"
    return f"<figure>{drawn}<figcaption>who sees whom</figcaption></figure>"
