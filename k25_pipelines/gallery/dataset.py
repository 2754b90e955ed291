"""The page of a dataset: a name in, what it is in numbers and samples as they are stored out."""

from collections.abc import Callable
from html import escape

from k25_pipelines.catalog.contents import annotation_totals
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.catalog.statistics import statistics
from k25_pipelines.gallery import charts
from k25_pipelines.gallery.page import page, tiles
from k25_pipelines.gallery.stored import sample_lines, stored_card
from k25_pipelines.planning import tombstones
from k25_pipelines.storage.store import Store, open_store

Progress = Callable[[int, int, str], None]


def dataset_page(
    lake: Store,
    name: str,
    *,
    num_samples: int = 24,
    digest: str | None = None,
    served: bool = False,
    progress: Progress | None = None,
) -> str:
    """Return a self-contained page with samples of a dataset: marked pictures, words, licence, source and whereabouts.

    Args:
        lake: where its manifest is.
        name: of the dataset.
        num_samples: how many samples are shown; those that are forgotten never are.
        digest: of a version; None: the newest.
        served: link each sample to its lineage, on the server of the lake's pages.
        progress: told samples done, samples in all, and which.
    """
    manifest = load_manifest(lake, name, digest)
    forgotten = tombstones(lake).lines.get(name, ())
    lines, store = sample_lines(manifest, num_samples, without=forgotten), open_store(manifest.uri)
    cards = []
    for done, line in enumerate(lines):
        cards.append(stored_card(manifest, line, store, served=served))
        if progress:
            progress(done + 1, len(lines), f"{name}:{line}")
    facts = statistics(manifest, annotations=annotation_totals(lake, manifest))
    shown = (
        f"<h2>{len(lines):,} of {facts['num_used']:,} samples, as stored</h2><div class=cards>{''.join(cards)}</div>"
    )
    under = f"version <code>{manifest.digest}</code> · {manifest.kind} at <code>{escape(manifest.uri)}</code>"
    return page(name, _numbers(facts, len(forgotten)) + _plots(manifest, facts) + shown, under=under)


def _numbers(facts: dict, num_forgotten: int) -> str:
    named = [
        ("samples", facts["num_used"]),
        ("quarantined", facts["num_quarantined"] or None),
        ("forgotten", num_forgotten or None),
        ("objects", facts["num_shards"]),
        ("MiB", round(facts["num_bytes"] / 2**20, 1)),
        ("characters", facts["text_characters"] or None),
        ("video frames", facts["video_frames"] or None),
    ]
    return tiles([*named, *((kind.replace("_", " "), count) for kind, count in facts["annotations"].items())])


def _plots(manifest: Manifest, facts: dict) -> str:
    media, used = manifest.media_table(), ~manifest.quarantined
    seen = used & (media["num_media"] > 0)
    lengths = manifest.table["text_length"].to_numpy()[used]
    plots = [
        charts.shares("licences", facts["by_licence"]),
        charts.shares("sources", facts["by_source"]),
        charts.histogram("text", lengths, unit="characters", logarithmic=True) if lengths.any() else "",
        charts.histogram("width by height", (media["width"] / media["height"].clip(1))[seen], unit=": 1"),
        charts.histogram("longer side", media["width"].clip(media["height"])[seen], unit="pixels"),
        charts.shares("quarantined because", facts["quarantined"]),
    ]
    return f"<div class=plots>{''.join(plots)}</div>"
