"""What a dataset version looks like: a manifest in, plain data out."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from k25_pipelines.catalog.manifest import Manifest, part_columns

PIXEL_EDGES = (0, 128**2, 256**2, 512**2, 1024**2, 2048**2)
TEXT_EDGES = (0, 1, 100, 1_000, 10_000, 100_000)
FRAME_EDGES = (0, 2, 30, 300, 3_000)


def statistics(manifest: Manifest, *, annotations: Mapping[str, int] | None = None) -> dict:
    """Return counts, bytes, licences, sources, histograms and the reasons of quarantine, as plain data.

    A histogram maps the lower edge of each class to a count; the last class has no upper edge.
    Licences, sources and histograms are of the lines that are used.

    Args:
        manifest: the dataset version.
        annotations: counts by kind, as `contents.annotation_totals` gives them.
    """
    used, parts, media = ~manifest.quarantined, part_columns(manifest), manifest.media_table()
    seen = used & (media["num_media"] > 0)
    table = manifest.table
    lengths = table["text_length"].to_numpy()
    return {
        "dataset": manifest.dataset,
        "digest": manifest.digest,
        "kind": manifest.kind,
        "uri": manifest.uri,
        "num_lines": manifest.num_lines,
        "num_used": int(used.sum()),
        "num_quarantined": int((~used).sum()),
        "num_chunks": manifest.num_chunks,
        "chunk_lines": manifest.chunk_lines,
        "num_shards": len(set(parts["shard"].tolist())),
        "num_bytes": _extent_bytes(parts),
        "num_parts": _counts(parts["kind"].tolist()),
        "annotations": dict(annotations or {}),
        "text_characters": int(lengths[used].sum()),
        "video_frames": int(media["frames"][seen & (media["frames"] > 1)].sum()),
        "by_licence": _counts(table["licence"].filter(used).to_pylist()),
        "by_source": _counts(table["source"].filter(used).to_pylist()),
        "pixels": _histogram(media["width"][seen] * media["height"][seen], PIXEL_EDGES),
        "text_length": _histogram(lengths[used], TEXT_EDGES),
        "frames": _histogram(media["frames"][seen], FRAME_EDGES),
        "quarantined": _counts(table["quarantine"].filter(~used).to_pylist()),
    }


def _extent_bytes(parts: dict[str, np.ndarray]) -> int:
    extents = zip(*(parts[name].tolist() for name in ("shard", "offset", "num_bytes")), strict=True)
    return sum(num_bytes for _, _, num_bytes in set(extents))


def _counts(values: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _histogram(values: np.ndarray, edges: tuple[int, ...]) -> dict[str, int]:
    classes = np.searchsorted(np.asarray(edges), values, side="right") - 1
    return {
        str(edge): int(count) for edge, count in zip(edges, np.bincount(classes, minlength=len(edges)), strict=True)
    }
