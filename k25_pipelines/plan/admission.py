"""Whether sources can give what a recipe asks of them, and under terms that it allows."""

from collections.abc import Mapping, Sequence

import numpy as np

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.recipe import Recipe
from k25_pipelines.plan.source import SourceTable

UNNAMED = ("", "unknown", "none", "n/a", "noassertion")
"""Words that say nothing about terms; a recipe takes such samples only where it names the word itself."""


def check_sources(recipe: Recipe, names: Sequence[str], tables: Mapping[str, SourceTable]) -> None:
    """Raise RecipeError where a source is missing, has nothing to give, or holds samples of terms not allowed."""
    for name in names:
        if name not in tables:
            raise RecipeError(f"recipe {recipe.name}: no table of source {name}; known are {', '.join(sorted(tables))}")
        if not usable(tables[name]).any():
            raise RecipeError(f"recipe {recipe.name}: source {name} has no readable sample; index it or leave it out")
        _check_terms(recipe, tables[name], "licences", recipe.licences, tables[name].licences)
        _check_terms(recipe, tables[name], "sources_allowed", recipe.sources_allowed, tables[name].origins)


def _check_terms(
    recipe: Recipe, table: SourceTable, field: str, allowed: Sequence[str] | None, found: Mapping[str, int]
) -> None:
    """Raise RecipeError unless every sample that can be packed is known to be of allowed terms."""
    what = "licence" if field == "licences" else "source"
    refused = {word: count for word, count in sorted(found.items()) if not _is_allowed(word, allowed)}
    if not refused:
        return
    counts = ", ".join(f"{count} of {word or f'no {what}'}" for word, count in refused.items())
    known = ", ".join(allowed) or "none" if allowed is not None else f"all that name their {what}"
    raise RecipeError(
        f"recipe {recipe.name}: source {table.name} has samples of {what}s that are not allowed: {counts}; "
        f"allowed are {known}: add the {what} to {field}, or leave the source out"
    )


def _is_allowed(word: str, allowed: Sequence[str] | None) -> bool:
    return word.strip().lower() not in UNNAMED if allowed is None else word in allowed


def usable(table: SourceTable) -> np.ndarray:
    """Return bool [lines]: which lines can be packed as far as quarantine and exclusions go."""
    fine = np.ones(table.num_lines, dtype=bool)
    for left_out in (table.quarantined, table.excluded):
        if left_out is not None:
            fine &= ~left_out
    return fine
