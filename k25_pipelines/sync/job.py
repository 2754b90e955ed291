"""A sync, looked at before anything moves: what is there, what is to be compared or sent, and what that will cost."""

from dataclasses import dataclass, replace
from typing import Any

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.storage.store import ObjectInfo, Store
from k25_pipelines.sync.access import Access, open_with
from k25_pipelines.sync.digests import reported_md5
from k25_pipelines.sync.price import GB, Cost, Prices, compare_cost, copy_cost, list_cost, total
from k25_pipelines.sync.rclone import Place, Settings, SyncError
from k25_pipelines.sync.selection import Selection, selected_below, selected_of_dataset
from k25_pipelines.sync.targets import SyncTarget, read_verified


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A sync that was looked at: what is there, what is to be sent."""

    lake: Store
    target: SyncTarget
    places: tuple[Place, Place]
    """From where, to where."""
    stores: tuple[Store, Store]
    selection: Selection
    settings: Settings
    prices: Prices
    to_compare: tuple[ObjectInfo, ...]
    """Copies that stand there, and of which nothing is recorded."""
    to_copy: tuple[ObjectInfo, ...]
    num_done: int
    """Copies that stand there and were compared before."""
    overwrite: bool = False
    """Whether other objects under the same keys are replaced."""


def look(
    lake: Store,
    source: str | Manifest,
    destination: str,
    *,
    access: tuple[Access, Access],
    settings: Settings | None = None,
    prices: Prices | None = None,
    overwrite: bool = False,
) -> Job:
    """Return what is to be done, from listings of both stores and what the lake records.

    Args:
        lake: where syncs are recorded.
        source: a dataset version, or the URL below which all objects are meant.
        destination: the URL below which copies stand, under the same keys.
        access: who may use the source, and the destination.
        settings, prices: how bytes are moved, and what they cost (`default_prices` if not given).
        overwrite: replace other objects that stand under the same keys.

    Raises:
        SyncError: other objects stand under some keys at the destination, or it lies in the source.
        ManifestError: an object of the dataset is gone or was overwritten.
        StoreError: a store cannot be asked.
    """
    manifest = source if isinstance(source, Manifest) else None
    stores = open_with(manifest.uri if manifest else str(source), access[0]), open_with(destination, access[1])
    places = Place(url=stores[0].url, access=access[0]), Place(url=stores[1].url, access=access[1])
    target = _target(places, manifest)
    selection = selected_of_dataset(lake, stores[0], manifest) if manifest else selected_below(lake, stores[0])
    to_compare, to_copy, num_done = _compared(lake, target, stores[1], selection, overwrite=overwrite)
    return Job(
        lake=lake,
        target=target,
        places=places,
        stores=stores,
        selection=selection,
        settings=settings or Settings(),
        prices=prices or default_prices(access),
        to_compare=tuple(to_compare),
        to_copy=tuple(to_copy),
        num_done=num_done,
        overwrite=overwrite,
    )


def default_prices(access: tuple[Access, Access]) -> Prices:
    """Return S3's prices, and none for bytes where one server copies by itself."""
    return replace(Prices(), usd_per_gb=0.0) if access[0].variables == access[1].variables else Prices()


def estimate(job: Job) -> dict[str, Any]:
    """Return what a run of all of it will take."""
    cost = total(_costs(job)) + list_cost(len(job.selection.objects), job.num_done + len(job.to_compare))
    return {
        "source": job.target.source,
        "destination": job.target.destination,
        "objects": len(job.selection.objects),
        "bytes": job.selection.num_bytes,
        "withheld": job.selection.withheld,
        "there": job.num_done,
        "to_compare": len(job.to_compare),
        "to_copy": len(job.to_copy),
        "copy_bytes": sum(info.num_bytes for info in job.to_copy),
        "moved_bytes": cost.num_bytes,
        "gets": cost.gets,
        "puts": cost.puts,
        "usd": cost.usd(job.prices),
        "usd_a_month": job.selection.num_bytes / GB * job.prices.usd_per_gb_month,
    }


def _target(places: tuple[Place, Place], manifest: Manifest | None) -> SyncTarget:
    """Return the target's record. Raises SyncError: a place is in memory, or a copy would be copied again."""
    for place in places:
        if place.url.startswith("memory://"):
            raise SyncError(f"{place.url} lives in this process alone; name s3://bucket/prefix or a folder")
    endpoints = [place.access.endpoint if place.is_s3 else "" for place in places]
    if endpoints[0] == endpoints[1] and f"{places[1].url}/".startswith(f"{places[0].url}/"):
        raise SyncError(
            f"{places[1].url} lies in {places[0].url}: a copy of itself would grow for ever; choose another place"
        )
    return SyncTarget(
        source=places[0].url,
        destination=places[1].url,
        source_endpoint=endpoints[0],
        destination_endpoint=endpoints[1],
        destination_access=places[1].access.told,
        dataset=manifest.dataset if manifest else None,
    )


def _compared(
    lake: Store, target: SyncTarget, destination: Store, selection: Selection, *, overwrite: bool
) -> tuple[list[ObjectInfo], list[ObjectInfo], int]:
    """Return copies that are still to be compared, objects that are to be sent, and how many were compared before."""
    there = {info.key: info for info in destination.list()}
    known = read_verified(lake, target)
    to_compare, to_copy, others, num_done = list[ObjectInfo](), list[ObjectInfo](), list[str](), 0
    for info in selection.objects:
        copy, pairs = there.get(info.key), known.get(info.key, set())
        if copy is not None and (info.etag, copy.etag) in pairs:
            num_done += 1
        elif copy is None or any(copied == copy.etag for _, copied in pairs):
            to_copy.append(info)  # not there, or an older state that we sent
        elif copy.num_bytes == info.num_bytes:
            to_compare.append(info)
        else:
            others.append(info.key)
            to_copy.append(info)
    if others and not overwrite:
        raise SyncError(
            f"{destination.url} holds other objects under {len(others)} keys, such as {others[0]}; "
            "choose another destination, or replace them with --overwrite"
        )
    return to_compare, to_copy, num_done


def _costs(job: Job) -> list[Cost]:
    compared = [compare_cost(info, is_whole=reported_md5(info.etag) is not None) for info in job.to_compare]
    return [*compared, *(copy_cost(info, job.settings) for info in job.to_copy)]
