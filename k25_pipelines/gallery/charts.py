"""Plots as SVG text that a page holds as it is: numbers in, bars and lines out. Colours follow the page's theme."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np

from k25_pipelines.gallery.page import PALETTE, number, percent

WIDTH, HEIGHT = 360, 150
LEFT, BOTTOM, TOP = 8, 18, 18
MOST_BARS = 28
MOST_POINTS = 400


def histogram(title: str, values: np.ndarray, *, unit: str, logarithmic: bool = False) -> str:
    """Return how often values of which size come up; median and largest are told.

    Args:
        title: what is counted.
        values: numbers, any shape.
        unit: of the values.
        logarithmic: classes of equal ratios, not of equal widths; values below 1 count as 1.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    if not values.size:
        return ""
    low, high = (float(values.min()), float(values.max()))
    if logarithmic:
        values = np.maximum(values, 1)
        edges = np.geomspace(max(1.0, low), max(2.0, high) * 1.0001, MOST_BARS + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, MOST_BARS + 1)
    counts, edges = np.histogram(values, edges)
    told = f"median {number(_rounded(float(np.median(values))))}, most {number(_rounded(high))} {unit}"
    names = [f"{number(_rounded(a))} to {number(_rounded(b))} {unit}" for a, b in pairwise(edges.tolist())]
    ends = number(_rounded(float(edges[0]))), f"{number(_rounded(float(edges[-1])))} {unit}"
    return _plot(title, told, _bars(counts.tolist(), names) + _ends(*ends))


def shares(title: str, counts: Mapping[str, int], *, most: int = 7) -> str:
    """Return counts by name as lying bars, the largest first, the rest together."""
    total = sum(counts.values())
    if not total:
        return ""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[most:])
    shown = ranked[:most] + ([(f"{len(ranked) - most} more", rest)] if rest else [])
    height, largest, rows = 20, max(count for _, count in shown), []
    common = _common([name for name, _ in ranked])
    for place, (name, count) in enumerate(shown):
        top, length = place * height, 150 * count / largest
        colour = PALETTE[place % len(PALETTE)] if place < most else "var(--hush)"
        words = name if len(name) <= 21 else _middle(name, common if place < most else 0)
        rows.append(
            f"<text x=120 y='{top + 12}' text-anchor=end>{escape(words)}<title>{escape(name)}</title></text>"
            f"<rect x=126 y='{top + 3}' width='{max(1.0, length):.1f}' height=12 rx=2 fill='{colour}' />"
            f"<text x='{132 + length:.1f}' y='{top + 12}'>{count:,} · {percent(count / total)}</text>"
        )
    return _plot(title, f"{total:,}", "".join(rows), height=len(shown) * height + 4)


def line(
    title: str, values: Sequence[float] | np.ndarray, *, told: str, limit: float | None = None, base: float = 0.0
) -> str:
    """Return values in their order, such as of steps; where there are many, the largest of neighbours.

    Args:
        title: what they are.
        values: numbers from `base` on.
        told: words beside the title.
        limit: a value that is marked across.
        base: the value at the foot.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        return ""
    size = -(-len(values) // MOST_POINTS)
    shown = [float(values[first : first + size].max()) for first in range(0, len(values), size)]
    top = max(*shown, limit or 0.0, base + 1e-9) - base
    room, width = HEIGHT - TOP - BOTTOM, WIDTH - 2 * LEFT
    places = [
        f"{LEFT + width * place / max(1, len(shown) - 1):.1f},{TOP + room * (1 - (value - base) / top):.1f}"
        for place, value in enumerate(shown)
    ]
    drawn = f"<polyline points='{' '.join(places)}' fill=none stroke='var(--accent)' stroke-width=1.3 />"
    if limit is not None:
        y = TOP + room * (1 - (limit - base) / top)
        drawn += f"<path d='M{LEFT} {y:.1f}H{WIDTH - LEFT}' stroke='var(--bad)' stroke-dasharray='4 3' />"
    return _plot(title, told, drawn + _ends("0", f"{len(values) - 1:,}"))


def _bars(counts: Sequence[int], names: Sequence[str]) -> str:
    room, wide = HEIGHT - TOP - BOTTOM, (WIDTH - 2 * LEFT) / len(counts)
    largest = max(*counts, 1) if len(counts) > 1 else max(counts[0], 1)
    return "".join(
        f"<rect x='{LEFT + place * wide:.1f}' y='{TOP + room * (1 - count / largest):.1f}' width='{wide - 1:.1f}' "
        f"height='{room * count / largest:.1f}' rx=1 fill='var(--accent)'>"
        f"<title>{escape(name)}: {count:,}</title></rect>"
        for place, (count, name) in enumerate(zip(counts, names, strict=True))
        if count
    )


def _ends(first: str, last: str) -> str:
    y = HEIGHT - 5
    axis = f"<path d='M{LEFT} {HEIGHT - BOTTOM + 0.5}H{WIDTH - LEFT}' stroke='var(--line)' />"
    right = f"<text x={WIDTH - LEFT} y={y} text-anchor=end>{escape(last)}</text>"
    return f"{axis}<text x={LEFT} y={y}>{escape(first)}</text>{right}"


def _plot(title: str, told: str, drawn: str, *, height: int = HEIGHT) -> str:
    head = f"<div class=head><b>{escape(title)}</b><span>{escape(told)}</span></div>"
    return f"<div class='card plot'>{head}<svg viewBox='0 0 {WIDTH} {height}' role=img>{drawn}</svg></div>"


def _middle(name: str, common: int) -> str:
    """Return so much of a long name as there is room for, from where it differs from the others on."""
    rest = name[max(0, common - 3) :] if common > 6 else name
    return f"{'…' if rest != name else ''}{rest[:19]}{'…' if len(rest) > 19 else ''}"


def _common(names: Sequence[str]) -> int:
    """Return how many letters all of several names begin with."""
    first, last = min(names), max(names)
    differing = [place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b]
    return (differing or [len(first)])[0] if len(names) > 1 else 0


def _rounded(value: float) -> float | int:
    return round(value) if abs(value) >= 10 or float(value).is_integer() else round(value, 2)
