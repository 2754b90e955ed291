"""Media that an annotation file describes: which of its entries are new, and whether the old ones still hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from k25_pipelines.catalog.manifest import Line, Part
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.errors import DatasetError, ManifestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the annotation file says of one sample, before its medium is looked at."""

    key: str
    shard: str
    """Key of the medium, below the dataset's URI."""
    licence: str
    source: str
    inline: str = ""
    text_length: int = 0
    width: int = 0
    """As the annotations state it; 0 if they do not."""
    height: int = 0


def line_of(entry: Entry, part: Part, reason: str = "") -> Line:
    """Return the manifest line of an entry."""
    return Line(
        key=entry.key,
        parts=(part,),
        text_length=entry.text_length,
        licence=entry.licence,
        source=entry.source,
        inline=entry.inline,
        quarantine=reason,
    )


def new_entries(job: ScanJob, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that no earlier version has, in the order of their keys.

    An entry whose old line is quarantined is new again when its object is another than then.

    Raises:
        DatasetError: two entries share a key.
        ManifestError: an entry that an earlier version has is gone, or says something else now.
    """
    by_key = {entry.key: entry for entry in entries}
    if len(by_key) < len(entries):
        seen: set[str] = set()
        twice = next(entry.key for entry in entries if entry.key in seen or seen.add(entry.key))
        raise DatasetError(f"{job.registration.name}: {twice!r} is annotated twice; name every sample once")
    known = _known_keys(job, by_key)
    return [by_key[key] for key in sorted(by_key) if key not in known]


def _known_keys(job: ScanJob, by_key: dict[str, Entry]) -> set[str]:
    if job.previous is None:
        return set()
    known, new_shards = set(), {info.key for info in job.new}
    for number in range(job.previous.num_lines):
        line = job.previous.line(number)
        entry = by_key.get(line.key)
        if line.quarantine:
            known |= {line.key} if line.parts[0].shard not in new_shards else set()
        elif entry is None or (entry.inline, entry.licence, entry.source) != (line.inline, line.licence, line.source):
            change = "are gone" if entry is None else "changed"
            raise ManifestError(
                f"{job.registration.name}: the annotations of {line.key!r} (line {number}) {change} since"
                f" version {job.previous.digest[:8]}; restore them, or register a new dataset"
            )
        else:
            known.add(line.key)
    return known
