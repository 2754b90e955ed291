"""Whether sources can give what a recipe asks of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.recipe import Recipe
from k25_pipelines.plan.source import SourceTable


def check_sources(recipe: Recipe, names: Sequence[str], tables: Mapping[str, SourceTable]) -> None:
    """Raise RecipeError where a source is missing, has nothing to give, or stands under a licence not allowed."""
    for name in names:
        if name not in tables:
            raise RecipeError(f"recipe {recipe.name}: no table of source {name}; known are {', '.join(sorted(tables))}")
        if not usable(tables[name]).any():
            raise RecipeError(f"recipe {recipe.name}: source {name} has no readable sample; index it or leave it out")
        refused = {
            licence: count
            for licence, count in sorted(tables[name].licences.items())
            if recipe.licences is not None and licence not in recipe.licences
        }
        if refused:
            counts = ", ".join(f"{count} of {licence or 'no licence'}" for licence, count in refused.items())
            raise RecipeError(
                f"recipe {recipe.name}: source {name} has samples of licences that are not allowed: {counts}; "
                f"allowed are {', '.join(recipe.licences or ())}: add the licence, or leave the source out"
            )


def usable(table: SourceTable) -> np.ndarray:
    """Return bool [lines]: which lines can be packed as far as quarantine and exclusions go."""
    fine = np.ones(table.num_lines, dtype=bool)
    for left_out in (table.quarantined, table.excluded):
        if left_out is not None:
            fine &= ~left_out
    return fine
