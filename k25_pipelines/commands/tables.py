"""Facts as aligned lines: rows of words and numbers in, text out."""

from collections.abc import Sequence

UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def aligned(rows: Sequence[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Return rows as lines of columns as wide as they need: words to the left, numbers to the right."""
    whole = [*([list(header)] if header else []), *rows]
    told = [["-" if cell is None else _words(cell) for cell in row] for row in whole]
    widths = [max(len(row[place]) for row in told) for place in range(len(told[0]))]
    is_number = [all(_is_number(row[place]) for row in rows) and bool(rows) for place in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        for row in told
    ]
    return "\n".join(line.rstrip() for line in lines)


def short(number: float) -> str:
    """Return a number in three or four digits with its unit, such as 12.3M."""
    for size, unit in UNITS:
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}" if abs(number) < 1000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.3g}"


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.2f}%"


def _words(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _is_number(cell: object) -> bool:
    return cell is None or isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit())
