"""New lines of a dataset against what was taken down: those that hold it are quarantined, and so never planned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog import registry
from k25_pipelines.catalog.blocked import Blocked, Screen, read_blocked
from k25_pipelines.catalog.columns import one_array
from k25_pipelines.catalog.line import MEDIA_KINDS, SCHEMA
from k25_pipelines.catalog.manifest import Manifest, part_columns
from k25_pipelines.catalog.media import content_id
from k25_pipelines.catalog.partial import PARTIAL_SCHEMA
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.governance.finding import lines_of_words
from k25_pipelines.governance.hashes import image_hash, near
from k25_pipelines.sample.read import cell_reader
from k25_pipelines.storage.store import Store


def index_dataset(lake: Store, name: str, **options: Any) -> Manifest:
    """Index a dataset as `registry.index_dataset` does, and quarantine new samples that were taken down before."""
    return registry.index_dataset(lake, name, screen=screen(read_blocked(lake)), **options)


def screen(blocked: Blocked) -> Screen:
    """Return what quarantines lines that hold blocked media or words.

    Media whose content id the indexer did not learn are read where their length is that of a blocked one; where
    perceptual hashes are blocked, every new image is decoded.
    """

    def screened(registered: Registration, found: pa.Table) -> pa.Table:
        contents = one_array(found["contents"]).flatten().to_pylist()
        manifest = Manifest(
            dataset=registered.name,
            digest="new",
            uri=registered.uri,
            kind=registered.kind,
            chunk_lines=1,
            table=found.select(SCHEMA.names).combine_chunks(),
        )
        reasons = {**_by_words(manifest, blocked), **_by_media(manifest, contents, blocked)}
        if not reasons:
            return found
        quarantine = found["quarantine"].to_pylist()
        for line, takedown in reasons.items():
            quarantine[line] = quarantine[line] or f"taken down: {takedown}"
        place = PARTIAL_SCHEMA.get_field_index("quarantine")
        return found.set_column(place, PARTIAL_SCHEMA.field("quarantine"), pa.array(quarantine, pa.string()))

    return screened


def _by_words(manifest: Manifest, blocked: Blocked) -> dict[int, str]:
    if not blocked.words:
        return {}
    lengths = {int(entry["text_length"]) for entry in blocked.words.values()}
    return {line: blocked.words[w]["takedown"] for line, w in lines_of_words(manifest, lengths) if w in blocked.words}


def _by_media(manifest: Manifest, contents: Sequence[str | None], blocked: Blocked) -> dict[int, str]:
    """Return the lines that hold a blocked medium, with the takedown that blocks it."""
    if not (blocked.media or blocked.perceptual):
        return {}
    columns, cells, first = part_columns(manifest), cell_reader(manifest), manifest.columns.first_part
    sizes = {entry["num_bytes"] for entry in blocked.media.values()}
    wanted = [(words, int(entry["distance"])) for words, entry in blocked.perceptual.items()]
    used = np.isin(columns["kind"], MEDIA_KINDS) & ~manifest.quarantined[columns["line"]]
    reasons: dict[int, str] = {}
    for place in np.flatnonzero(used).tolist():
        line, content = int(columns["line"][place]), contents[place]
        part = manifest.line(line).parts[place - first[line]]
        looks = bool(wanted) and part.kind == "image"
        maybe = content is None and (part.row >= 0 or None in sizes or part.num_bytes in sizes)
        data = cells(part) if looks or maybe else b""
        content = content_id(data) if maybe else content
        if content is not None and content in blocked.media:
            reasons[line] = blocked.media[content]["takedown"]
        elif looks and (alike := near([image_hash(data)], wanted)):
            reasons[line] = _takedown(blocked.perceptual, alike[0][0])
    return reasons


def _takedown(entries: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return str(entries[name]["takedown"])
