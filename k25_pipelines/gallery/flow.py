"""What came of what, as a picture: columns of boxes and lines between them in, SVG out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

BOX_WIDTH, BOX_HEIGHT, GAP, COLUMN_GAP, TOP = 204, 58, 12, 52, 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One thing."""

    name: str
    """By which lines know it."""
    title: str
    told: Sequence[str] = ()
    """At most two short lines."""
    colour: str = "var(--accent)"
    address: str = ""
    """Where a click leads."""
    is_main: bool = False
    """What the page is about."""
    after: Sequence[str] = field(default=())
    """Names of the boxes it came from."""


def flow(columns: Sequence[tuple[str, Sequence[Box]]]) -> str:
    """Return the boxes of each column under its title, each joined by lines to those it came from."""
    tallest = max((len(boxes) for _, boxes in columns), default=1) or 1
    height = TOP + tallest * (BOX_HEIGHT + GAP)
    width = len(columns) * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + 4
    places, drawn, lines = dict[str, tuple[float, float, str]](), [], []
    for number, (title, boxes) in enumerate(columns):
        x = 2 + number * (BOX_WIDTH + COLUMN_GAP)
        first = TOP + (tallest - len(boxes)) * (BOX_HEIGHT + GAP) / 2
        drawn.append(
            f"<text x={x} y=14 class=label style='font:650 10.5px system-ui' fill='var(--hush)'>{escape(title)}</text>"
        )
        for place, box in enumerate(boxes):
            y = first + place * (BOX_HEIGHT + GAP)
            places[box.name] = x, y, box.colour
            drawn.append(_box(box, x, y))
    for _, boxes in columns:
        for box in boxes:
            lines += [_line(places[source], places[box.name]) for source in box.after if source in places]
    shape = f"<svg viewBox='0 0 {width} {height:g}' style='max-width:{width}px'>"
    return f"<div class=flow>{shape}{''.join(lines)}{''.join(drawn)}</svg></div>"


def _line(source: tuple[float, float, str], target: tuple[float, float, str]) -> str:
    x0, y0 = source[0] + BOX_WIDTH, source[1] + BOX_HEIGHT / 2
    x1, y1 = target[0], target[1] + BOX_HEIGHT / 2
    bend = max(24.0, (x1 - x0) / 2)
    curve = f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
    return f"<path d='{curve}' fill=none stroke='{source[2]}' stroke-opacity=.5 stroke-width=1.5 />"


def _box(box: Box, x: float, y: float) -> str:
    frame = "stroke-width=2 stroke='var(--accent)'" if box.is_main else "stroke='var(--line)'"
    told = "".join(
        f"<text x='{x + 14:g}' y='{y + 34 + 14 * place:g}' style='font:11px system-ui' fill='var(--soft)'>"
        f"{escape(_cut(words, 29))}</text>"
        for place, words in enumerate(box.told[:2])
    )
    shape = (
        f"<g><title>{escape(' | '.join([box.title, *box.told]))}</title>"
        f"<rect x='{x:g}' y='{y:g}' width={BOX_WIDTH} height={BOX_HEIGHT} rx=8 fill='var(--card)' {frame} />"
        f"<rect x='{x:g}' y='{y + 8:g}' width=4 height='{BOX_HEIGHT - 16}' rx=2 fill='{box.colour}' />"
        f"<text x='{x + 14:g}' y='{y + 19:g}' style='font:600 12.5px system-ui' fill='var(--ink)'>"
        f"{escape(_cut(box.title, 22))}</text>{told}</g>"
    )
    return f"<a href='{escape(box.address)}'>{shape}</a>" if box.address else shape


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else f"{words[: length - 9]}…{words[-8:]}"
