"""What may never be indexed again: the lake's list of media and words that were taken down.

k25/blocked/current.json     pointer, overwritten: {"digest"}
k25/blocked/<digest>.json    {"media": {...}, "words": {...}, "perceptual": {...}}, each id -> what is known of it

The list is written by `governance`; the registry only asks whether there is one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

BLOCKED = "k25/blocked/"
Screen = Callable[[Registration, pa.Table], pa.Table]
"""Takes lines that were found (`partial.PARTIAL_SCHEMA`), and returns them with those quarantined that are blocked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocked:
    """Ids of what was taken down; each with {"takedown": its id} and what makes it cheap to look for."""

    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Content id of a medium -> {"num_bytes"}, None where nobody knew the medium."""
    words: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Digest of the words of a sample without media -> {"text_length"}."""
    perceptual: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Perceptual hash of an image, 16 hexadecimal characters -> {"distance"}, the most bits that may differ."""

    def __bool__(self) -> bool:
        """Whether anything is blocked."""
        return bool(self.media or self.words or self.perceptual)


def read_blocked(lake: Store) -> Blocked:
    """Return the list in force. Raises ManifestError: it is gone, or not the one it is named for."""
    try:
        name = json.loads(lake.get(f"{BLOCKED}current.json"))["digest"]
    except ObjectNotFoundError:
        return Blocked()
    key = f"{BLOCKED}{name}.json"
    try:
        told = json.loads(lake.get(key))
    except ObjectNotFoundError as error:
        raise ManifestError(f"no list of blocked media {lake.url}/{key}; restore it") from error
    if digest("blocked", told) != name:
        raise ManifestError(f"{lake.url}/{key} is not the list of blocked media it is named for; restore it")
    return Blocked(**told)


def write_blocked(lake: Store, blocked: Blocked) -> str:
    """Put a list in force and return its name."""
    told = {name: {key: dict(value) for key, value in getattr(blocked, name).items()} for name in Blocked.__slots__}
    name = digest("blocked", told)
    lake.put_new(f"{BLOCKED}{name}.json", json.dumps(told, sort_keys=True).encode())
    lake.put(f"{BLOCKED}current.json", json.dumps({"digest": name}).encode())
    return name
