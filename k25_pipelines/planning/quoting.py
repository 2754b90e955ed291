"""A recipe -> what a run of it will take: tokens, shares, epochs, requests, bytes, hours, cores, money.

Nothing is written but the token counts of datasets that have none yet.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.plan.admission import usable
from k25_pipelines.plan.planner import begun, next_segment
from k25_pipelines.plan.rates import Rates
from k25_pipelines.plan.recipe import Recipe, recipe_at
from k25_pipelines.plan.segment import Segment
from k25_pipelines.plan.size import profile
from k25_pipelines.planning.exclusions import tombstones
from k25_pipelines.planning.make import open_inputs
from k25_pipelines.planning.sources import Progress
from k25_pipelines.sample.read import extents_of_chunk
from k25_pipelines.storage.store import Store

STRETCH_PACKS = 4096
"""Packs of each phase of a recipe (between its changes) that are planned; the rest is taken to be alike."""
CHUNKS_LOOKED_AT = 64
"""Chunks of a source whose extents are looked up; the rest is taken to be alike."""
ROW_BYTES = 32
"""A row of a segment in the lake, measured [bytes]."""


def quote(
    lake: Store,
    recipe: Recipe,
    *,
    gpus: int = 1,
    rates: Rates | None = None,
    datasets: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what a run of a recipe will take, from planning a stretch of each of its phases.

    Returns:
        steps, packs, tokens, fill, vision_share; is_exact (all of it was planned); sources: by name tokens, share,
        samples, lines, epochs, max_epochs, gets, bytes; gets, bytes (no cache kept between epochs); patches of the
        heaviest step, its step, and its bytes on a GPU; images and tokens a second, cores for all GPUs; hours,
        gpu_hours; usd: requests, transfer, gpus, total; plan_bytes; rates; problems, in words.

    Raises:
        RecipeError: the recipe cannot be met.
    """
    rates = rates or Rates()
    inputs = open_inputs(lake, recipe, datasets, progress=progress)
    tables = inputs.tables(tombstones(lake).lines)
    sums: dict[str, Any] = {
        "tokens": {},
        "vision": {},
        "samples": {},
        "last_step": {},
        "images": 0.0,
        "rows": 0.0,
        "room": 0,
    }
    heaviest, is_exact = (-1, 0), not recipe.changes
    lanes = begun(tables, recipe).start["lanes"]
    for first, end in _phases(recipe):
        phase = replace(recipe_at(recipe, first), changes=(), lanes=lanes)
        live = [table for table in tables if table.name in phase.sources]
        steps = min(end - first, max(1, STRETCH_PACKS // phase.packs_per_step))
        stretch = next_segment(begun(live, phase), steps)
        _add(sums, stretch, scale=(end - first) / steps)
        sums["last_step"] |= _last_steps(stretch, first)
        sums["room"] += (end - first) * phase.packs_per_step * phase.pack_tokens
        totals = stretch.header["report"]["totals"]
        heaviest = max(heaviest, (totals["most_patches"], -(first + totals["most_patches_step"])))
        is_exact &= steps == end - first
        if progress:
            progress(end, recipe.steps, "planning stretches")
    fetched = {name: _chunk_cost(manifest) for name, manifest in inputs.manifests.items()}
    fine = {table.name: int(usable(table).sum()) for table in tables}
    sources = {
        name: _source(recipe, name, sums, fine[name], manifest, fetched[name])
        for name, manifest in inputs.manifests.items()
    }
    return _told(recipe, sums, sources, rates, gpus=gpus, heaviest=heaviest, is_exact=is_exact)


def _phases(recipe: Recipe) -> list[tuple[int, int]]:
    """Return first and end step of each phase of a recipe: what lies between its changes."""
    first_steps = [0, *(change.from_step for change in recipe.changes if change.from_step < recipe.steps)]
    return list(pairwise([*first_steps, recipe.steps]))


def _add(sums: dict[str, Any], stretch: Segment, *, scale: float) -> None:
    """Add what a stretch amounts to, scaled to its phase."""
    totals = stretch.header["report"]["totals"]
    for name, told in (("tokens", "tokens"), ("vision", "vision_tokens"), ("samples", "samples")):
        for source, count in totals[told].items():
            sums[name][source] = sums[name].get(source, 0.0) + count * scale
    sums["images"] += float(stretch.table["media"].to_numpy().sum()) * scale
    sums["rows"] += stretch.table.num_rows * scale


def _last_steps(stretch: Segment, first_step: int) -> dict[str, int]:
    """Return the last step of a stretch that each source is in."""
    names, steps = np.array(stretch.table["dataset"].to_pylist()), stretch.table["step"].to_numpy()
    return {name: first_step + int(steps[names == name].max()) for name in np.unique(names).tolist()}


def _chunk_cost(manifest: Manifest) -> tuple[float, float]:
    """Return GETs and bytes of a chunk, on average over some."""
    num_chunks = manifest.num_chunks
    chosen = np.unique(np.linspace(0, num_chunks - 1, min(num_chunks, CHUNKS_LOOKED_AT)).astype(np.int64))
    extents = [extents_of_chunk(manifest, chunk) for chunk in chosen.tolist()]
    return sum(map(len, extents)) / len(chosen), sum(e[2] for found in extents for e in found) / len(chosen)


def _source(
    recipe: Recipe, name: str, sums: Mapping[str, Any], lines: int, manifest: Manifest, chunk: tuple[float, float]
) -> dict[str, Any]:
    """Return what one source brings and costs."""
    epochs = sums["samples"].get(name, 0.0) / max(1, lines)
    limits = [tree[name].max_epochs for tree in (recipe.sources, *(c.sources for c in recipe.changes)) if name in tree]
    visits = ceil(epochs * manifest.num_chunks)
    return {
        "tokens": round(sums["tokens"].get(name, 0.0)),
        "share": sums["tokens"].get(name, 0.0) / max(1.0, sum(sums["tokens"].values())),
        "samples": round(sums["samples"].get(name, 0.0)),
        "lines": lines,
        "epochs": epochs,
        "max_epochs": limits[-1],
        "gets": round(visits * chunk[0]),
        "bytes": round(visits * chunk[1]),
    }


def _told(
    recipe: Recipe,
    sums: Mapping[str, Any],
    sources: Mapping[str, Any],
    rates: Rates,
    *,
    gpus: int,
    heaviest: tuple[int, int],
    is_exact: bool,
) -> dict[str, Any]:
    tokens, vision = sum(sums["tokens"].values()), sum(sums["vision"].values())
    seconds = sums["room"] / (gpus * rates.tokens_per_gpu_second)
    gets, num_bytes = (sum(source[name] for source in sources.values()) for name in ("gets", "bytes"))
    images, words = sums["images"] / seconds, (tokens - vision) / seconds
    return {
        "recipe": recipe.name,
        "steps": recipe.steps,
        "packs": sums["room"] // recipe.pack_tokens,
        "tokens": round(tokens),
        "fill": tokens / sums["room"],
        "vision_share": vision / max(1.0, tokens),
        "is_exact": is_exact,
        "sources": dict(sources),
        "gets": gets,
        "bytes": num_bytes,
        "plan_bytes": round(sums["rows"] * ROW_BYTES),
        "heaviest_step": -heaviest[1],
        "heaviest_patches": heaviest[0],
        "heaviest_bytes_per_gpu": ceil(heaviest[0] / gpus) * 3 * profile(recipe.profile).patch ** 2 * 4,
        "gpus": gpus,
        "images_per_second": images,
        "text_tokens_per_second": words,
        "cores": ceil(images / rates.images_per_core_second + words / rates.tokens_per_core_second),
        "hours": seconds / 3600,
        "gpu_hours": seconds / 3600 * gpus,
        "usd": _usd(rates, gets=gets, num_bytes=num_bytes, gpu_hours=seconds / 3600 * gpus),
        "rates": asdict(rates),
        "problems": _problems(recipe, sources, sums["last_step"]),
    }


def _usd(rates: Rates, *, gets: int, num_bytes: int, gpu_hours: float) -> dict[str, float]:
    usd = {
        "requests": gets / 1000 * rates.usd_per_1000_gets,
        "transfer": num_bytes / 1e9 * rates.usd_per_gb,
        "gpus": gpu_hours * rates.usd_per_gpu_hour,
    }
    return {**usd, "total": sum(usd.values())}


def _problems(recipe: Recipe, sources: Mapping[str, Any], last_step: Mapping[str, int]) -> list[str]:
    """Say which sources run dry before the end."""
    problems = []
    for name, told in sources.items():
        if told["max_epochs"] is None or told["epochs"] < told["max_epochs"]:
            continue
        at = int(recipe.steps * told["max_epochs"] / told["epochs"])
        at = last_step[name] + 1 if told["epochs"] == told["max_epochs"] else at  # it was seen to run dry
        if at < recipe.steps:
            problems.append(
                f"{name} reaches its max_epochs {told['max_epochs']} at about step {at} of {recipe.steps}: raise it, "
                "lower its weight, or plan fewer steps"
            )
    return problems
