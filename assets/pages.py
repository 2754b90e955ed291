"""Pages for people, written to the lake when an asset is materialised: page names out, as links that can be clicked.

A page that cannot be written never fails the asset that it is about: the link's place says why.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.experiments import mlflow_run
from assets.pictures import curves
from assets.reporting import picture, table
from assets.resources import TrainerResource, mlflow_from_env, pages_url_from_env
from k25_pipelines.errors import K25Error
from k25_pipelines.storage.store import Store

if TYPE_CHECKING:
    from k25_pipelines.gallery.insight import DatasetInsight
    from k25_pipelines.insight.balance import Balance
    from k25_pipelines.planning import Plan

PROJECTED_RANKS = 8
"""Ranks that a plan's balance is told for where trainers have one: at most, and no more than packs of a step."""
GIB = 2**30
ALL_PAGES = ("all pages", "/")


def page_link(lake: Store, name: str, make: Callable[[], str]) -> dg.MetadataValue:
    """Write a page to the lake and return its address; where it cannot be made, why."""
    from k25_pipelines.gallery.kept import address, keep_page

    try:
        return dg.MetadataValue.url(f"{pages_url_from_env()}{address(keep_page(lake, name, make()))}")
    except K25Error as error:
        return dg.MetadataValue.text(f"not written: {error}")


def gallery_link(lake: Store, dataset: str, version: str) -> dg.MetadataValue:
    """Return the link to a dataset version's page of samples."""
    from k25_pipelines.gallery import dataset_page  # loads the codecs, which the definitions do without
    from k25_pipelines.gallery.kept import gallery_name

    return page_link(
        lake, gallery_name(dataset, version), lambda: dataset_page(lake, dataset, digest=version, served=True)
    )


def insight_link(lake: Store, known: "DatasetInsight") -> dg.MetadataValue:
    """Return the link to a dataset version's page of statistics."""
    from k25_pipelines.gallery.insight import insight_page
    from k25_pipelines.gallery.kept import address, gallery_name, insight_name

    name, version = known.manifest.dataset, known.manifest.digest
    links = [("samples", address(gallery_name(name, version))), ALL_PAGES]
    return page_link(lake, insight_name(name, version), lambda: insight_page(lake, known, links=links))


def plan_metadata(lake: Store, plan: "Plan", trainer: TrainerResource) -> dict[str, Any]:
    """Return how evenly a plan loads ranks, as numbers, table and plot, and links to its pages."""
    from k25_pipelines.gallery.insight import balance_page
    from k25_pipelines.gallery.kept import balance_name, step_name
    from k25_pipelines.gallery.serving import served_step
    from k25_pipelines.insight.balance import step_balance

    ranks = trainer.num_ranks if trainer.num_ranks > 1 else min(PROJECTED_RANKS, plan.recipe.packs_per_step)
    balance = step_balance(plan, num_ranks=ranks)
    lines = {f"over {ranks} ranks": balance.imbalance}
    return {
        "balance_page": page_link(
            lake, balance_name(plan.id), lambda: balance_page(plan, balance, num_ranks=ranks, links=[ALL_PAGES])
        ),
        "step_page": page_link(lake, step_name(plan.id, 0), lambda: served_step(lake, plan.id, 0)),
        "balance": table(_balance_rows(balance, ranks)),
        "imbalance": picture(curves(lines, title="cost of the busiest rank by the mean", unit="times", level=1.0)),
    }


def checkpoint_metadata(lake: Store, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return links to where a checkpoint came from and to its first step, and its run in MLflow where that is used."""
    from k25_pipelines.gallery.kept import checkpoint_name, step_name
    from k25_pipelines.gallery.lineage import checkpoint_lineage_page
    from k25_pipelines.gallery.serving import served_step

    key, plan = record["key"], record["plan"]
    return {
        **_mlflow(record["run"]),
        "lineage_page": page_link(lake, checkpoint_name(key), lambda: checkpoint_lineage_page(lake, key, served=True)),
        "step_page": page_link(lake, step_name(plan, 0), lambda: served_step(lake, plan, 0)),
    }


def _mlflow(run: str) -> dict[str, Any]:
    """Return id and page of a run in MLflow, where one is used."""
    uri, experiment = mlflow_from_env()
    if not uri:
        return {}
    told = mlflow_run(run, uri=uri, experiment=experiment)
    if "id" not in told:
        return {"mlflow_run": dg.MetadataValue.text(told["unknown"])}
    return {"mlflow_run": dg.MetadataValue.text(told["id"]), "mlflow_page": dg.MetadataValue.url(told["url"])}


def _balance_rows(balance: "Balance", ranks: int) -> list[dict[str, Any]]:
    """Return what steps ask of the busiest rank: of most steps, and of the worst."""
    import numpy as np

    figures = {
        f"cost by the mean of {ranks} ranks": balance.imbalance,
        "patches on the fullest rank": balance.most_patches,
        "GiB the vision tower keeps there": balance.tower_bytes / GIB,
    }
    return [
        {
            "of a step": name,
            "median": float(np.median(values)),
            "99 of 100": float(np.quantile(values, 0.99)),
            "most": float(values.max()),
            "at step": int(balance.steps[values.argmax()]),
        }
        for name, values in figures.items()
    ]
