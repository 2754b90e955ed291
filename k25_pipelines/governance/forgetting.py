"""The whole of a takedown in its order: find, write down, put in force, remove copies, tell who holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k25_pipelines.governance.copies import clear_caches, remove_kept_pages, remove_pages, remove_synced, synced
from k25_pipelines.governance.exposed import Progress, exposure
from k25_pipelines.governance.finding import Catalogue, Found, find
from k25_pipelines.governance.receipt import receipt_facts, steps_bytes
from k25_pipelines.governance.takedown import Takedown, enforce, request, write_receipt
from k25_pipelines.planning.exclusions import tombstones
from k25_pipelines.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where copies may stand on this machine."""

    caches: Sequence[Path] = ()
    pages: Path | None = None
    keep_synced: bool = False
    """Leave copies in other stores as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a takedown would do."""

    found: Found
    facts: dict[str, Any] = field(default_factory=dict)
    """The receipt as it would be."""


def preview(
    lake: Store,
    selectors: Sequence[str],
    *,
    distance: int | None = None,
    copies: bool = True,
    spare: Sequence[str] = (),
    progress: Progress | None = None,
) -> Preview:
    """Return what would be forgotten and who holds it; nothing is written but what speeds up the next question."""
    catalogue = Catalogue(lake, progress)
    found = find(catalogue, selectors, distance=distance, copies=copies, spare=spare)
    samples = {f"{name}:{line}": why for (name, line), why in sorted(found.why.items())}
    told = Takedown(
        id="", at="", author="", reason="", selectors=tuple(selectors), samples=samples, blocked=found.blocked("")
    )
    seen = exposure(lake, told.lines, withheld=tombstones(lake), progress=progress)
    held = [
        {"url": copy["url"], "outcome": "would be deleted" if copy["alone"] else "shared"}
        for copy in synced(lake, catalogue, told.lines)
    ]
    return Preview(found=found, facts=receipt_facts(lake, catalogue, told, seen, removed={"synced": held}))


def forget(
    lake: Store,
    selectors: Sequence[str],
    *,
    reason: str,
    author: str,
    distance: int | None = None,
    copies: bool = True,
    spare: Sequence[str] = (),
    places: Places | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Forget samples and return the receipt, which stands in the lake.

    Killed anywhere, the same call again goes on: what was asked is written down first.

    Args:
        lake: the lake.
        selectors: of samples, see `governance.finding`.
        reason: why.
        author: who.
        distance: also images whose perceptual hashes differ in at most so many bits of 64.
        copies: False forgets only the samples that are named, not others that hold the same.
        spare: `dataset:line` of look-alikes that show something else, and stay.
        places: where copies are removed on this machine.
        progress: told what is done, of how much, and what.

    Raises:
        LineageError: a selector that names nothing, or no reason or author.
    """
    places, catalogue, before = places or Places(), Catalogue(lake, progress), tombstones(lake)
    found = find(catalogue, selectors, distance=distance, copies=copies, spare=spare)
    takedown = request(lake, found, selectors, reason=reason, author=author)
    enforce(lake)
    num_pages, copied_pages = remove_kept_pages(lake)
    removed: dict[str, Any] = {
        "caches": clear_caches(places.caches),
        "pages": num_pages + (remove_pages(places.pages) if places.pages else 0),
    }
    held = synced(lake, catalogue, takedown.lines)
    removed["synced"] = copied_pages + ([] if places.keep_synced else remove_synced(held))
    seen = exposure(lake, takedown.lines, withheld=before, progress=progress)
    return write_receipt(
        lake, takedown, receipt_facts(lake, catalogue, takedown, seen, removed=removed), steps_bytes(seen)
    )
