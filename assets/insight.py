"""What Dagster shows of a dataset's statistics: the numbers of `insight` in, metadata out (figures, tables, plots)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np

from assets.pictures import bars, histograms
from assets.reporting import picture, table

if TYPE_CHECKING:
    from k25_pipelines.gallery.insight import DatasetInsight

SHOWN = 12
"""Languages, licences and sources that a table names."""
FIGURES = ("unreadable", "text_tokens", "vision_tokens", "vision_share", "patches", "longest_tokens", "most_patches")


def insight_metadata(known: "DatasetInsight") -> dict[str, Any]:
    """Return the statistics of a dataset as metadata: figures, what is there twice, tables, and plots as pictures."""
    from k25_pipelines.gallery.insight import insight_facts

    facts, sizes = insight_facts(known), known.sizes
    media = known.manifest.media_table()
    seen = sizes.used & (media["num_media"] > 0)
    panels = {"tokens of a sample": sizes.tokens[sizes.used], "text tokens": sizes.text_tokens[sizes.used]}
    if seen.any():
        panels |= {"patches of a sample": sizes.patches[seen]}
        panels |= {"width by height": (media["width"] / media["height"].clip(1))[seen]}
    return {
        "dagster/row_count": facts["samples"],
        **{name: facts[name] for name in FIGURES},
        "duplicates": table([{"found by": way, **found} for way, found in facts["duplicates"].items()]),
        "languages": _counted("language", facts["languages"]),
        "licences": _counted("licence", facts["by_licence"]),
        "sources": _counted("source", facts["by_source"]),
        "sizes": picture(histograms(panels, title=f"{known.manifest.dataset}: samples by size")),
        **_licence_shares(known.manifest.dataset, facts["by_licence"]),
    }


def _counted(what: str, counts: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """Return the commonest words of a kind with their samples and shares."""
    total, largest = sum(counts.values()), sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [{what: name, "samples": count, "share": f"{count / total:.1%}"} for name, count in largest[:SHOWN]]
    if rest := largest[SHOWN:]:
        count = sum(number for _, number in rest)
        rows.append({what: f"{len(rest):,} more", "samples": count, "share": f"{count / total:.1%}"})
    return table(rows)


def _licence_shares(dataset: str, counts: Mapping[str, int]) -> dict[str, dg.MarkdownMetadataValue]:
    """Return the picture of the shares of licences, where there are several."""
    if len(counts) < 2:
        return {}
    names = sorted(counts, key=lambda name: (-counts[name], name))[:SHOWN]
    shares = np.array([counts[name] for name in names]) / sum(counts.values())
    drawn = bars(dict(zip(names, shares.tolist(), strict=True)), title=f"{dataset}: licences", unit="share of samples")
    return {"licence_shares": picture(drawn)}
