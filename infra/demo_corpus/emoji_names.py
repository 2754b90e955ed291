"""What emoji are called: code points in, the English name of Unicode's CLDR out, and which emoji belong together."""

import emoji

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
DROPPED = SKIN_TONES | {0xFE0F, 0x200D, 0x2640, 0x2642, 0x27A1, 0x1F9B0, 0x1F9B1, 0x1F9B2, 0x1F9B3}
PERSON, MAN, WOMAN = 0x1F9D1, 0x1F468, 0x1F469
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
TAG_LETTERS = range(0xE0020, 0xE0080)


def names() -> dict[str, str]:
    """Return the name of each fully qualified emoji by its hex code (`1F1EB-1F1F7` is `flag: France`), by code."""
    status = emoji.STATUS["fully_qualified"]
    found = {
        _hex_code(text): _name(text, facts["en"])
        for text, facts in emoji.EMOJI_DATA.items()
        if facts["status"] == status
    }
    return dict(sorted(found.items()))


def has_skin_tone(hex_code: str) -> bool:
    """Return whether an emoji is a variant that shows a skin tone."""
    return not SKIN_TONES.isdisjoint(_points(hex_code))


def family(hex_code: str) -> str:
    """Return the base that an emoji shares with its variants of skin tone, gender, hair and direction.

    Held-out data is chosen by family, so that no variant of what is trained on is evaluated.
    """
    kept = [PERSON if point in (MAN, WOMAN) else point for point in _points(hex_code) if point not in DROPPED]
    return "-".join(f"{point:04X}" for point in kept or _points(hex_code))


def _points(hex_code: str) -> list[int]:
    return [int(point, 16) for point in hex_code.split("-")]


def _hex_code(text: str) -> str:
    return "-".join(f"{ord(letter):04X}" for letter in text)


def _name(text: str, short_code: str) -> str:
    name = short_code.strip(":").replace("_", " ")
    is_flag = ord(text[0]) in REGIONAL_INDICATORS or ord(text[-2:][0]) in TAG_LETTERS
    return f"flag: {name}" if is_flag else name
