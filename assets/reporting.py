"""What an asset tells Dagster: its data version and metadata; tables and pictures as Markdown that the page shows."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

JPEG_START = b"\xff\xd8"
PICTURE_BUDGET_BYTES = 100_000
"""Metadata lies in the event log and is sent with every page: a larger picture is left out."""


def materialized(
    version: str, *, metadata: Mapping[str, Any], checks: Iterable[dg.AssetCheckResult] = ()
) -> dg.MaterializeResult:
    """Return the result of an asset whose content is named by `version`, the digest of what was made.

    Links to pages come first: what people look for.
    """
    pages = {name: value for name, value in metadata.items() if name.endswith("_page")}
    return dg.MaterializeResult(
        metadata={**pages, "digest": version, **metadata},
        data_version=dg.DataVersion(version),
        check_results=list(checks),
    )


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Return rows, all with the same columns, as a Markdown table."""
    return dg.MetadataValue.md(markdown_table(rows))


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as the text of a Markdown table; an empty one says so."""
    if not rows:
        return "(none)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([in_words(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(image: bytes) -> dg.MarkdownMetadataValue:
    """Return a PNG or JPEG as Markdown that shows it, or says that it is too large."""
    if len(image) > PICTURE_BUDGET_BYTES:
        return dg.MetadataValue.md(f"(a picture of {len(image):,} bytes; at most {PICTURE_BUDGET_BYTES:,} are kept)")
    return dg.MetadataValue.md(f"![]({data_url(image)})")


def data_url(image: bytes) -> str:
    """Return a PNG or JPEG as a URL that carries its bytes."""
    kind = "jpeg" if image.startswith(JPEG_START) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def in_words(value: Any) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
