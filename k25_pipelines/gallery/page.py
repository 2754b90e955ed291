"""What every page is made of: one style, a frame, tiles, chips and cards. Words and numbers in, HTML text out.

A page is one file: no script, no font and no picture from elsewhere. It follows the reader's light or dark theme.
"""

import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

PALETTE = ("#4363d8", "#e08a1e", "#2a9d6f", "#b5489a", "#d1495b", "#1f9ab5", "#8a6d3b", "#7a5cc7", "#6b8e23", "#a04030")
"""Of datasets, by their place in the list of all that a page is about."""

STYLE = """
:root { color-scheme: light dark; --ink: #17202b; --soft: #5d6b7a; --line: #dfe4ea; --paper: #fbfcfd; --card: #fff;
  --hush: #8b97a4; --mask: #eceff3; --accent: #4363d8; --good: #2a9d6f; --bad: #c8402f;
  --shadow: 0 1px 2px #1b2a3a14, 0 4px 14px #1b2a3a0d }
@media (prefers-color-scheme: dark) { :root { --ink: #e7edf3; --soft: #9fadbb; --line: #2e3945; --paper: #11161c;
  --card: #19212a; --hush: #748292; --mask: #242e38; --accent: #8ba3ff; --good: #5fd0a0; --bad: #ff8b7b;
  --shadow: none } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 82rem; padding: 2rem 1.4rem 4rem }
header { border-bottom: 1px solid var(--line); margin-bottom: 1.4rem; padding-bottom: 1rem }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .7rem; letter-spacing: -.005em }
h3 { font-size: .95rem; margin: 0 0 .4rem }
p { margin: .4rem 0 } a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
code, .mono { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace }
.soft { color: var(--soft) } .small { font-size: .84em } .right { text-align: right }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .5rem .9rem;
  box-shadow: var(--shadow) }
.tile b { display: block; font-size: 1.2rem; font-weight: 650; letter-spacing: -.01em; white-space: nowrap }
.tile span { color: var(--soft); font-size: .8rem }
.cards { display: grid; align-items: start; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)) }
.wide { grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)) }
@media (max-width: 34rem) { .cards, .wide { grid-template-columns: 1fr } }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .8rem;
  box-shadow: var(--shadow); overflow-wrap: anywhere; min-width: 0 }
.card:target { outline: 2px solid var(--accent) }
.card > .head { display: flex; justify-content: space-between; gap: .6rem; font-size: .8rem; color: var(--soft);
  margin-bottom: .5rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .9rem }
.pair > div { min-width: 0 }
.label { font-size: .68rem; font-weight: 650; letter-spacing: .07em; text-transform: uppercase; color: var(--hush);
  margin-bottom: .35rem }
figure { margin: 0 .4rem .4rem 0; display: inline-block; vertical-align: top; max-width: 100% }
figure svg, figure img { display: block; border-radius: .35rem; max-width: 100%; height: auto;
  background: repeating-conic-gradient(#8881 0 25%, transparent 0 50%) 0 0 / 14px 14px }
figcaption { color: var(--soft); font-size: .74rem; margin-top: .15rem }
.strip { display: flex; gap: 3px; overflow-x: auto; padding: 8px 6px; border-radius: .4rem; background: #1c2128;
  background-image: linear-gradient(#1c2128 2px, transparent 2px 5px, #1c2128 5px calc(100% - 5px), transparent
  calc(100% - 5px) calc(100% - 2px), #1c2128 calc(100% - 2px)), repeating-linear-gradient(90deg, #e8e8e8 0 6px,
  #1c2128 6px 12px) }
.strip figure { margin: 0; flex: none } .strip figcaption { color: #b9c3cd } .strip svg { border-radius: 2px }
.words { white-space: pre-wrap; font-size: .88rem; max-height: 15rem; overflow: auto; margin-top: .4rem }
.masked { color: var(--hush); background: var(--mask); border-radius: .2rem; padding: .05em .1em }
.taught { color: var(--ink) }
.token { font: .74em/1.4 ui-monospace, Menlo, Consolas, monospace; color: var(--soft); border: 1px solid var(--line);
  border-radius: .3rem; padding: 0 .3em; margin: 0 .1em; white-space: nowrap; background: var(--card) }
.token.on { border-color: var(--good); color: var(--good) }
.token.see { border-color: var(--accent); color: var(--accent) }
.chip { display: inline-block; font-size: .74rem; border: 1px solid var(--line); border-radius: 1rem; margin: 0 .25rem
  .25rem 0; padding: .02rem .55rem; color: var(--soft); white-space: nowrap; max-width: 100%; overflow: hidden;
  text-overflow: ellipsis; vertical-align: bottom }
.chip i { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .4em }
.bad { color: var(--bad) } .good { color: var(--good) }
.facts { margin-top: .5rem; font-size: .78rem; color: var(--soft) }
details > summary { cursor: pointer; color: var(--soft); font-size: .78rem }
table { border-collapse: collapse; font-size: .87rem } .scroll { overflow-x: auto }
th { text-align: left; color: var(--soft); font-weight: 550; border-bottom: 1px solid var(--line) }
td, th { padding: .22rem 1.1rem .22rem 0; vertical-align: top } td.n, th.n { text-align: right; font-variant-numeric:
  tabular-nums }
tr + tr td { border-top: 1px solid color-mix(in srgb, var(--line) 55%, transparent) }
.pack { display: flex; align-items: center; gap: .7rem; margin: .22rem 0 } .pack > a { width: 3.6rem; flex: none;
  font-size: .78rem }
.bar { display: flex; flex: 1; height: 1.7rem; border-radius: .35rem; overflow: hidden; background: var(--mask)
  repeating-linear-gradient(-45deg, transparent 0 5px, #8882 5px 6px) }
.bar a { position: relative; min-width: 0; border-right: 1px solid var(--paper); overflow: hidden } .bar a:hover {
  filter: brightness(1.13) }
.bar a i { position: absolute; inset: auto 0 0 0; height: 34%; background: #0005 }
.bar a i.vision { height: 100%; inset: 0 auto 0 0; background: repeating-linear-gradient(90deg, #fff6 0 2px, #fff0 2px
  4px) }
.bar a b { position: absolute; inset: 0; font: 600 .68rem/1.7rem system-ui; color: #fff; padding-left: .35rem;
  white-space: nowrap; text-shadow: 0 0 2px #0006 }
.beside { display: flex; gap: 1rem; align-items: flex-start } .beside > .cards { flex: 1 }
@media (max-width: 48rem) { .beside { display: block } }
.one { display: flex; gap: .4rem; align-items: center; margin-bottom: .3rem } .one figure { flex: none; margin: 0 }
.plots { display: grid; align-items: start; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)) }
.plot svg { width: 100%; height: auto; display: block } .plot text { font: 10px system-ui; fill: var(--soft) }
nav { display: flex; gap: 1rem; font-size: .85rem; margin-top: .4rem }
.flow { overflow-x: auto } .flow svg { min-width: 60rem; width: 100%; height: auto }
"""


def page(title: str, body: str, *, under: str = "", links: Sequence[tuple[str, str]] = ()) -> str:
    """Return a whole page.

    Args:
        title: plain words.
        body: HTML.
        under: HTML below the title.
        links: words and address of other pages beside this one.
    """
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    told = f"<p class=soft>{under}</p>" if under else ""
    nav = "".join(f"<a href='{escape(address, quote=True)}'>{escape(words)}</a>" for words, address in links)
    top = f"<header><h1>{escape(title)}</h1>{told}{f'<nav>{nav}</nav>' if nav else ''}</header>"
    shell = f"<!doctype html><html lang=en>{head}<title>{escape(title)}</title><style>{STYLE}</style>"
    return f"{shell}<body>{top}{body}</body></html>\n"


def tiles(facts: Iterable[tuple[str, object]]) -> str:
    """Return what a page is about in numbers: name and value of each; those without value are left out."""
    shown = [(name, value) for name, value in facts if value not in (None, "")]
    told = "".join(
        f"<div class=tile><b>{escape(number(value))}</b><span>{escape(name)}</span></div>" for name, value in shown
    )
    return f"<div class=tiles>{told}</div>"


def chip(words: str, colour: str = "") -> str:
    """Return a word in a rounded frame, with a dot of a colour where one is given."""
    dot = f"<i style='background:{colour}'></i>" if colour else ""
    return f"<span class=chip title='{escape(words)}'>{dot}{escape(words)}</span>"


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return a table; numbers stand to the right. A cell that begins with `<` is HTML, any other is plain."""
    right = [bool(rows) and all(isinstance(row[place], int | float) for row in rows) for place in range(len(header))]

    def line(cells: Sequence[object], tag: str) -> str:
        pairs = zip(cells, right, strict=True)
        return "<tr>" + "".join(f"<{tag}{' class=n' if is_right else ''}>{_cell(cell)}" for cell, is_right in pairs)

    return f"<div class=scroll><table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table></div>"


def number(value: object) -> str:
    """Return a value as people read it: thousands apart, four digits of a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.1f}%"


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name, by its place in their order."""
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(sorted(set(names)))}


def file_name(words: str) -> str:
    """Return a name for a file that a person recognises: any other letters become a line, long ones are cut."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in words).strip(".-")
    return plain if len(plain) <= 96 else f"{plain[:80]}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


def write_page(folder: Path, name: str, text: str) -> Path:
    """Write a page whole or not at all, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_name(name)}.html"
    draft = path.with_suffix(".html.part")
    draft.write_text(text, encoding="utf-8")
    return draft.replace(path)


def shortened(text: str, length: int) -> str:
    """Return a text that is no longer than so many characters, and says how many were left out."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text) - length:,} more characters)"


def _cell(cell: object) -> str:
    words = "-" if cell is None else number(cell)
    return words if words.startswith("<") and isinstance(cell, str) else escape(words)
