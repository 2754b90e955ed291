"""The page of look-alikes that a takedown would forget: what was asked for beside each, for a person to decide."""

from collections.abc import Mapping, Sequence
from html import escape

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.gallery.overlay import figure
from k25_pipelines.gallery.page import page, tiles
from k25_pipelines.gallery.stored import UNREADABLE, frames_of, read_raw
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.storage.store import Store, open_store

SIDE = 168
MOST = 400
"""Look-alikes that are shown; more are a distance that is too large."""


def alike_page(
    lake: Store,
    alike: Mapping[tuple[str, int], str],
    spared: Mapping[tuple[str, int], str],
    *,
    asked: Sequence[tuple[str, bytes]] = (),
    selected: Sequence[tuple[str, int]] = (),
) -> str:
    """Return a page with the pictures that a takedown would forget because they look alike.

    Args:
        lake: where their datasets are.
        alike: dataset and line -> how near it is.
        spared: the same of those that stay.
        asked: names and bytes of the images that were asked for.
        selected: samples that were asked for.
    """
    wanted = [figure(decode_image(data, name=name), caption=name, side=SIDE) for name, data in asked]
    nearest = sorted(alike, key=lambda sample: (_bits(alike[sample]), sample))
    parts = [
        tiles([("look alike", len(alike)), ("stay", len(spared) or None)]),
        f"<h2>Asked for</h2>{''.join(wanted)}" if wanted else "",
        _section(lake, "Asked for", selected, {}),
        _section(lake, "Would be forgotten", nearest[:MOST], alike),
        f"<p class=soft>and {len(nearest) - MOST:,} more; a smaller --near finds fewer</p>" if nearest[MOST:] else "",
        _section(lake, "Stay", sorted(spared), spared),
    ]
    under = "Few bits apart is not the same: plain pictures can be near by chance. --spare ID lets one stay."
    return page("Look-alikes", "".join(parts), under=under)


def _section(lake: Store, title: str, samples: Sequence[tuple[str, int]], why: Mapping[tuple[str, int], str]) -> str:
    cards = "".join(_card(lake, *sample, why.get(sample, "")) for sample in samples)
    return f"<h2>{title}</h2><div class=cards>{cards}</div>" if cards else ""


def _card(lake: Store, name: str, line: int, why: str) -> str:
    manifest = load_manifest(lake, name)
    try:
        raw = read_raw(manifest, line, open_store(manifest.uri))
        shown = "".join(figure(pixels, caption=told, side=SIDE) for pixels, told in frames_of(raw, most=1))
    except UNREADABLE as error:
        shown = f"<p class='small bad'>{escape(str(error))}</p>"
    key = f"<div class=facts>{escape(manifest.line(line).key)}</div>"
    apart = f"<span>{_bits(why)} bits apart</span>" if why else ""
    head = f"<div class=head><b>{escape(name)}:{line}</b>{apart}</div>"
    return f"<div class=card>{head}{shown}{key}</div>"


def _bits(why: str) -> int:
    """Return how far apart, from the words that say it."""
    return int(why.rsplit(", ", 1)[1].split()[0])
