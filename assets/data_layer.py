"""The data layer as assets: datasets indexed in place, their token lengths, and the catalog of them all."""

import json
import time
from collections.abc import Callable

import dagster as dg

from assets.insight import insight_metadata
from assets.pages import gallery_link, insight_link
from assets.partitions import DATASETS
from assets.pictures import histogram
from assets.policies import STORE, retry_the_store
from assets.reporting import materialized, picture, table
from assets.resources import LakeResource
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import (
    dataset_names,
    dataset_versions,
    load_manifest,
    register,
)
from k25_pipelines.catalog.statistics import statistics
from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store
from k25_pipelines.verdicts import Verdict, write_verdict

GROUP = "data_layer"
DEMO = {"k25/demo": ""}
OWNERS = ["team:data-platform"]
QUARANTINE_BUDGET = 0.02
"""Share of a dataset's lines that may be unreadable before the check fails."""
LISTED_DATASETS = "raw/datasets.json"
"""Object that lists the datasets which lie ready in the lake, not yet registered."""
SHOWN_SAMPLES = 12
QUARANTINE_CHECK = "quarantine_within_budget"
LOG_EVERY_SECONDS = 2.0
PROFILE = "kimi_k25"

Progress = Callable[[int, int, str], None]


@dg.asset(
    partitions_def=DATASETS,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"s3", "parquet"},
    tags=DEMO,
    code_version="1",
    pool=STORE,
    check_specs=[
        dg.AssetCheckSpec(
            QUARANTINE_CHECK, asset="dataset_manifest", description="Few samples are broken.", blocking=True
        )
    ],
)
@retry_the_store
def dataset_manifest(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """One registered dataset, indexed where it lies: a line a sample, with sizes, licences and what is broken."""
    objects, name = lake.open(), context.partition_key
    register_listed(objects, name)
    return index_one(objects, name, progress=log_progress(context))


def index_one(objects: Store, name: str, *, progress: Progress | None = None) -> dg.MaterializeResult:
    """Index what is new in a dataset; return what its manifest is now, with the verdict of its check."""
    from k25_pipelines.governance import index_dataset  # loads the codecs, which the definitions do without

    before = _current_digest(objects, name)
    manifest = index_dataset(objects, name, progress=progress)
    facts = statistics(manifest)
    return materialized(
        manifest.digest,
        metadata={
            "dagster/row_count": manifest.num_lines,
            "dagster/uri": manifest.uri,
            "cached": before == manifest.digest,
            "kind": manifest.kind,
            "num_bytes": facts["num_bytes"],
            "quarantined": facts["num_quarantined"],
            "licences": table([{"licence": name, "samples": count} for name, count in facts["by_licence"].items()]),
            "gallery_page": gallery_link(objects, name, manifest.digest),
            "gallery": _gallery(objects, manifest),
            "statistics": facts,
        },
        checks=[_quarantine_check(objects, facts)],
    )


@dg.asset(
    partitions_def=DATASETS,
    deps=[dataset_manifest],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"parquet", "numpy"},
    tags=DEMO,
    code_version="1",
    pool=STORE,
)
@retry_the_store
def dataset_lengths(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """How many text tokens each sample has under the tokenizer and profile of the recipes."""
    from k25_pipelines.sample.lengths import text_lengths  # loads the codecs, which the definitions do without

    objects, name = lake.open(), context.partition_key
    manifest, tokenizer = load_manifest(objects, name), load_tokenizer("default", objects)
    lengths = text_lengths(objects, manifest, tokenizer, PROFILE, progress=log_progress(context))
    return materialized(
        digest(manifest.digest, tokenizer.digest, PROFILE, lengths),
        metadata={
            "dagster/row_count": len(lengths),
            "tokens": int(lengths.sum()),
            "longest": int(lengths.max(initial=0)),
            "tokenizer": tokenizer.digest,
            "lengths": picture(histogram(lengths, title=f"{name}: text tokens a sample", unit="tokens")),
        },
    )


class Compared(dg.Config):
    """What a dataset is looked at beside."""

    against: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """Datasets that it may share samples with, such as one that is held out."""


@dg.asset(
    partitions_def=DATASETS,
    deps=[dataset_manifest, dataset_lengths],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"parquet", "html"},
    tags=DEMO,
    code_version="1",
    pool=STORE,
)
@retry_the_store
def dataset_insight(context: dg.AssetExecutionContext, config: Compared, lake: LakeResource) -> dg.MaterializeResult:
    """What a dataset is in tokens, patches, shapes, languages and licences, and which samples are there twice."""
    from k25_pipelines.gallery.insight import dataset_insight as look  # loads the codecs, which definitions do without
    from k25_pipelines.gallery.insight import insight_facts

    objects, name = lake.open(), context.partition_key
    known = look(objects, name, against=config.against, progress=log_progress(context))
    shown = {"insight_page": insight_link(objects, known), **insight_metadata(known)}
    return materialized(digest(insight_facts(known)), metadata=shown)


@dg.asset(
    deps=[
        dg.AssetDep(dataset_manifest, partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep(dataset_lengths, partition_mapping=dg.AllPartitionMapping()),
    ],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"parquet"},
    tags=DEMO,
    code_version="1",
)
def lake_catalog(lake: LakeResource) -> dg.MaterializeResult:
    """Every dataset's current version in one name: it changes when any of them does, so plans show as stale."""
    objects = lake.open()
    manifests = [load_manifest(objects, name) for name in dataset_names(objects)]
    rows = [_catalog_row(manifest) for manifest in manifests]
    return materialized(
        digest([[manifest.dataset, manifest.digest] for manifest in manifests]),
        metadata={"dagster/row_count": sum(manifest.num_lines for manifest in manifests), "datasets": table(rows)},
    )


def known_datasets(lake: Store) -> list[str]:
    """Return the names of the datasets that are registered, or lie ready to be, sorted."""
    return sorted({*dataset_names(lake), *_listed(lake)})


def register_listed(lake: Store, name: str) -> None:
    """Register a dataset that the lake lists as ready; one that is not listed was registered by hand."""
    if entry := _listed(lake).get(name):
        register(lake, Registration(**entry))


def _listed(lake: Store) -> dict[str, dict]:
    try:
        entries = json.loads(lake.get(LISTED_DATASETS))
    except ObjectNotFoundError:
        return {}
    return {entry["name"]: entry for entry in entries}


def _current_digest(lake: Store, name: str) -> str | None:
    return load_manifest(lake, name).digest if dataset_versions(lake, name) else None


def log_progress(context: dg.AssetExecutionContext) -> Progress:
    """Return a progress callback that writes a line to the run's log, at most one every two seconds."""
    said_at = time.monotonic()

    def progress(done: int, total: int, what: str = "") -> None:
        nonlocal said_at
        if time.monotonic() - said_at > LOG_EVERY_SECONDS:
            said_at = time.monotonic()
            context.log.info(f"{what or 'done'}: {done:,} of {total:,}")

    return progress


def _quarantine_check(lake: Store, facts: dict) -> dg.AssetCheckResult:
    share = facts["num_quarantined"] / max(1, facts["num_lines"])
    figures = {"quarantined": facts["num_quarantined"], "share": share, "budget": QUARANTINE_BUDGET}
    passed = share <= QUARANTINE_BUDGET
    subject = facts["digest"]
    write_verdict(lake, Verdict(subject=subject, check=QUARANTINE_CHECK, passed=passed, blocking=True, figures=figures))
    return dg.AssetCheckResult(
        check_name=QUARANTINE_CHECK,
        passed=passed,
        metadata={**figures, "reasons": dg.MetadataValue.json(facts["quarantined"])},
    )


def sample_pictures(lake: Store, manifest: Manifest) -> bytes:
    """Return a sheet of samples spread over a dataset, with their boxes; empty for text."""
    from k25_pipelines.gallery import contact_sheet, sample_lines  # loads the codecs, which the definitions do without

    if not manifest.media_table()["num_media"].any():
        return b""
    return contact_sheet(lake, manifest, sample_lines(manifest, SHOWN_SAMPLES))


def _gallery(lake: Store, manifest: Manifest) -> dg.MarkdownMetadataValue:
    sheet = sample_pictures(lake, manifest)
    return picture(sheet) if sheet else dg.MetadataValue.md("(text alone)")


def _catalog_row(manifest: Manifest) -> dict:
    facts = statistics(manifest)
    return {
        "dataset": manifest.dataset,
        "kind": manifest.kind,
        "samples": manifest.num_lines,
        "bytes": facts["num_bytes"],
        "licences": ", ".join(facts["by_licence"]),
        "version": manifest.digest,
    }
