"""Words under the planned draws: sides exchanged by a mirror, what may not be mirrored or turned, noise."""

import re
from collections.abc import Iterable, Sequence

_SIDE = re.compile(r"(?<![^\W\d_])(left|right)(most|wards?|hand|handed)?(?![^\W\d_])", re.IGNORECASE)
_TURNING = re.compile(r"\b(?:(?:counter|anti)-?)?clockwise\b", re.IGNORECASE)

FOREIGN_SIDES = (
    "links|rechts|linken|rechten|linke|rechte|gauche|droite|izquierda|derecha|sinistra|destra|esquerda|direita|"
    "слева|справа|левый|правый|левая|правая"
)
"""Sides in other languages, which a mirror does not exchange."""
COMPASS = "east|west|eastern|western|north|south|northern|southern"
WRITING = (
    "signs?|texts?|letters?|lettering|logos?|words?|written|writing|reads|says|saying|inscriptions?|labels?|labell?ed|"
    "titled?|titles|numbers?|digits?|numerals?|clocks?|maps?|keyboards?|newspapers?|headlines?|signatures?|"
    "handwriting|handwritten|subtitles?|barcodes?"
)
"""Where a picture shows these, its mirror shows something that does not exist."""
DIRECTIONS = (
    "above|below|under|underneath|beneath|top|bottom|upper|lower|up|down|upwards?|downwards?|upside|horizontal|"
    "horizontally|vertical|vertically|sideways|upright|topmost|bottommost"
)
"""Which way these point changes with a quarter turn."""


def _any_of(*words: str, others: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join([rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", *others]), re.IGNORECASE)


_QUOTED = r"[\"“”„«»]\s*\w"
_HAN_SIDES = "[左右東东西]"
_NOT_SIDES = (
    r"\ball right\b|\bright (?:now|away|before|after|angles?|as)\b|\b(?:has|have|had|been|just) left\b"
    r"|\bleft (?:behind|over|alone|open|unattended)\b"
)
_NO_MIRROR = _any_of(FOREIGN_SIDES, COMPASS, WRITING, others=(_QUOTED, _HAN_SIDES, _NOT_SIDES))
_NO_TURN = _any_of(FOREIGN_SIDES, COMPASS, DIRECTIONS, others=(_SIDE.pattern, _HAN_SIDES, "[上下]"))


def mirrored_words(text: str) -> str:
    """Return the words with `left` and `right` exchanged, whole words in any case, also in `left_eye` and `leftmost`.

    `clockwise` and `counterclockwise` change places too.
    """
    text = _SIDE.sub(lambda found: _other_side(found.group(1)) + (found.group(2) or ""), text)
    return _TURNING.sub(lambda found: _other_turn(found.group()), text)


def mirror_misleads(texts: Iterable[str]) -> bool:
    """Return whether a mirrored picture would not be what one of the texts says, even with its sides exchanged.

    So it is where they speak of writing, quote it, name sides in another language or the points of the
    compass, or use `left` and `right` for something else ("all right", "left behind").
    """
    return any(_NO_MIRROR.search(text) for text in texts)


def turn_misleads(texts: Iterable[str]) -> bool:
    """Return whether one of the texts names directions, which a quarter turn would change."""
    return any(_NO_TURN.search(text) for text in texts)


def mirrored_order(names: Sequence[str]) -> list[int]:
    """Return which keypoint stands at each place after a mirror: the one of the opposite side, where there is one."""
    places = {name: place for place, name in enumerate(names)}
    return [places.get(mirrored_words(name), place) for place, name in enumerate(names)]


def pairs_are_whole(names: Sequence[str]) -> bool:
    """Return whether every keypoint that names a side has its opposite, so that a mirror can exchange them."""
    return all(mirrored_words(name) in names for name in names)


def chosen(variants: Sequence[str], words: int) -> str:
    """Return one of several wordings by its draw; the first for 0."""
    return variants[wording(words, len(variants))]


def wording(words: int, num_variants: int) -> int:
    """Return which of several wordings a draw means; the first for 0."""
    return (words >> 1) % num_variants  # the planner sets the lowest bit of every draw


def noised(text: str, bits: int) -> str:
    """Return a text with noise of letter case and of whitespace, each in about half of the draws; as it is for 0.

    Case: all small, all capital, or the first letter's case exchanged. Whitespace: runs made one
    space, lines stripped, some spaces doubled, or one added in front or a line end behind.
    """
    if not bits:
        return text
    case, space = (bits >> 1) & 7, (bits >> 4) & 7
    if case < 3:
        text = (text.lower(), text.upper(), text[:1].swapcase() + text[1:])[case]
    if space == 0:
        return " ".join(text.split())
    if space == 1:
        return "\n".join(line.strip() for line in text.split("\n"))
    if space == 2:
        pieces = text.split(" ")
        doubled = [(bits >> (7 + 5 * place % 53)) & 7 == 0 for place in range(len(pieces))]
        return " ".join(" " + piece if double else piece for piece, double in zip(pieces, doubled, strict=True))
    if space == 3:
        return f" {text}" if bits >> 7 & 1 else f"{text}\n"
    return text


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    return _cased(other, word)


def _other_turn(word: str) -> str:
    return _cased("counterclockwise" if word.lower() == "clockwise" else "clockwise", word)


def _cased(other: str, word: str) -> str:
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
