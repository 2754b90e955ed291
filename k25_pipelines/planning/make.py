"""A recipe over dataset versions -> a plan in the lake; more steps of a plan that there is."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import PlanError, RecipeError
from k25_pipelines.plan.fork import rebased
from k25_pipelines.plan.planner import Planner, begun, default_segment_steps, first_start, next_segment, resumed
from k25_pipelines.plan.recipe import Recipe, bad_sample_budgets, parse_recipe, recipe_dict, source_names
from k25_pipelines.plan.segment import PLAN_VERSION, plan_id
from k25_pipelines.plan.source import SourceTable
from k25_pipelines.planning.exclusions import Tombstones, read_exclusions, tombstones
from k25_pipelines.planning.index import (
    PLANS,
    Index,
    SegmentInfo,
    appended,
    followed,
    is_taken,
    last_segment,
    read_index,
    write_index,
)
from k25_pipelines.planning.objects import read_header, read_state, write_segment
from k25_pipelines.planning.plan import read_facts
from k25_pipelines.planning.sources import Progress, excluded_lines, source_table
from k25_pipelines.retention import check_plannable
from k25_pipelines.sample.tokens import Tokenizer, load_tokenizer, publish_tokenizer
from k25_pipelines.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What plans are made from, opened: a recipe's dataset versions and its tokenizer."""

    lake: Store
    recipe: Recipe
    manifests: Mapping[str, Manifest]
    tokenizer: Tokenizer
    progress: Progress | None = None

    def tables(self, *exclusions: Mapping[str, np.ndarray]) -> list[SourceTable]:
        """Return the source tables with some lines excluded."""
        left_out = excluded_lines(*exclusions)
        return [
            source_table(
                self.lake, manifest, self.tokenizer, self.recipe, excluded=left_out.get(name), progress=self.progress
            )
            for name, manifest in self.manifests.items()
        ]


def read_recipe(source: str | Path) -> Recipe:
    """Return the recipe in a YAML file, or in YAML text (a string of several lines).

    Raises:
        RecipeError: no such file, no YAML, or not a recipe.
    """
    text = str(source)
    if isinstance(source, Path) or "\n" not in source:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"recipe {source}: {error.strerror}; give the path of a YAML file") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {source}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        return parse_recipe(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe is not YAML: {' '.join(str(error).split())}") from error


def make_plan(
    lake: Store,
    recipe: Recipe,
    *,
    steps: int | None = None,
    datasets: Mapping[str, str] | None = None,
    tombstone_list: str | None = None,
    segment_steps: int | None = None,
    progress: Progress | None = None,
) -> str:
    """Plan a recipe up to a step, write the segments that are missing, and return the plan's id.

    The same recipe over the same dataset versions is the same plan: what exists is kept, more
    steps extend it, and a planner that was killed is simply started again.

    Args:
        lake: where manifests are and the plan goes.
        recipe: what to plan.
        steps: how far; the recipe's by default [steps].
        datasets: manifest digest of each dataset; the newest by default.
        tombstone_list: digest of the list of forgotten samples; the one in force by default.
        segment_steps: length of new segments; changes no pack [steps].
        progress: told steps done, steps in all, and what.

    Raises:
        RecipeError: the recipe cannot be met by its sources.
        DatasetError: it names an unknown dataset.
        PlanError: the lake holds a segment that this planner would have made otherwise.
    """
    steps = recipe.steps if steps is None else steps
    inputs = open_inputs(lake, recipe, datasets, progress=progress)
    say_states(inputs)
    publish_tokenizer(lake, inputs.tokenizer)
    gone = tombstones(lake, tombstone_list)
    sources = inputs.tables(gone.lines)
    plan = plan_id(first_start(sources, recipe, tokenizer=inputs.tokenizer.digest, tombstones=gone.digest))
    facts = plan_facts(plan, recipe, {name: m.digest for name, m in inputs.manifests.items()}, inputs.tokenizer)
    lake.put_new(f"{PLANS}{plan}/plan.json", _json(facts))
    _write_budgets(lake, plan, recipe)
    index = followed(lake, plan, read_index(lake, plan))
    if index is None:
        planner = begun(sources, recipe, tokenizer=inputs.tokenizer.digest, tombstones=gone.digest)
        go_on(
            inputs, plan, planner, Index(budgets=bad_sample_budgets(recipe)), steps=steps, segment_steps=segment_steps
        )
    else:
        extend(inputs, plan, index, gone, steps=steps, segment_steps=segment_steps)
    return plan


def extend_plan(lake: Store, plan: str, steps: int, *, progress: Progress | None = None) -> str:
    """Plan more steps of an existing plan, over the dataset versions it was made from, and return its id.

    Samples that are forgotten by now are left out of the steps that are planned now.

    Raises:
        PlanError: the recipe's tokenizer or the planner is another one by now.
    """
    facts = read_facts(lake, plan)
    index = followed(lake, plan, read_index(lake, plan))
    if index is None:
        raise PlanError(f"plan {plan} has no segment yet; run its planner again")
    recipe = parse_recipe({**facts["recipe"], "steps": steps})
    versions = {name: version["digest"] for name, version in facts["datasets"].items()}
    inputs = open_inputs(lake, recipe, versions, progress=progress)
    if inputs.tokenizer.digest != facts["tokenizer"]:
        raise PlanError(f"plan {plan} was made with tokenizer {facts['tokenizer']}; {recipe.tokenizer} is another")
    say_states(inputs, is_new=False)
    extend(inputs, plan, index, tombstones(lake), steps=steps)
    return plan


def open_inputs(
    lake: Store, recipe: Recipe, datasets: Mapping[str, str] | None, *, progress: Progress | None = None
) -> Inputs:
    """Return a recipe's dataset versions (the newest where none is given) and tokenizer."""
    tokenizer = load_tokenizer(recipe.tokenizer, lake)
    manifests = {name: load_manifest(lake, name, (datasets or {}).get(name)) for name in source_names(recipe)}
    return Inputs(lake=lake, recipe=recipe, manifests=manifests, tokenizer=tokenizer, progress=progress)


def say_states(inputs: Inputs, *, is_new: bool = True) -> None:
    """Warn of drafts and deprecated dataset versions. Raises DatasetError: one may not be planned any more."""
    versions = {name: manifest.digest for name, manifest in inputs.manifests.items()}
    for words in check_plannable(inputs.lake, versions, is_new=is_new):
        logging.getLogger(__name__).warning(words)


def plan_facts(
    plan: str,
    recipe: Recipe,
    datasets: Mapping[str, str],
    tokenizer: Tokenizer,
    *,
    parent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what `plan.json` says of a plan."""
    return {
        "plan": plan,
        "recipe": recipe_dict(recipe, steps=False),
        "datasets": {name: {"digest": version} for name, version in datasets.items()},
        "tokenizer": tokenizer.digest,
        "profile": recipe.profile,
        "plan_version": PLAN_VERSION,
        "parent": None if parent is None else dict(parent),
    }


def go_on(
    inputs: Inputs, plan: str, planner: Planner, index: Index, *, steps: int, segment_steps: int | None = None
) -> None:
    """Plan up to a step, segment by segment; where another planner was faster, go on from what it wrote."""
    lake = inputs.lake
    while planner.step < steps:
        length = segment_steps or default_segment_steps(planner)
        info = write_segment(lake, plan, next_segment(planner, min(length, steps - planner.step)))
        if is_taken(lake, plan, info):
            standing = followed(lake, plan, index)
            assert standing is not None
            extend(inputs, plan, standing, tombstones(lake), steps=steps, segment_steps=segment_steps)
            return
        index = appended(lake, plan, index, info)
        write_index(lake, plan, index)
        if inputs.progress:
            inputs.progress(planner.step, steps, f"planning {inputs.recipe.name}")


def planner_before(lake: Store, info: SegmentInfo) -> Planner:
    """Return the planner that stands before a segment, under the recipe, versions and exclusions of its time."""
    header = read_header(lake, info)
    recipe = parse_recipe({**header["recipe"], "steps": 1})
    inputs = open_inputs(lake, recipe, {name: header["datasets"][name]["digest"] for name in source_names(recipe)})
    if inputs.tokenizer.digest != header["tokenizer"]:
        raise PlanError(
            f"step {info.first_step} was planned with tokenizer {header['tokenizer']}; {recipe.tokenizer} is another"
        )
    gone = tombstones(lake, header["tombstones"])
    sources = inputs.tables(gone.lines, read_exclusions(lake, header["fork"]))
    return resumed(sources, header, read_state(lake, info, header))


def extend(
    inputs: Inputs, plan: str, index: Index, gone: Tombstones, *, steps: int, segment_steps: int | None = None
) -> None:
    """Plan the last segment again, which leads to where more begin, and go on."""
    lake = inputs.lake
    if index.num_steps >= steps:
        write_index(lake, plan, index)
        return
    last = last_segment(lake, index)
    header = read_header(lake, last)
    planner = planner_before(lake, last)
    if next_segment(planner, header["num_steps"]).digest != last.digest:
        raise PlanError(f"plan {plan}: its last segment would be made otherwise now; plan under another name")
    if gone.digest != header["tombstones"]:
        sources = inputs.tables(gone.lines, read_exclusions(lake, header["fork"]))
        planner = rebased(planner, sources, planner.recipe, tombstones=gone.digest, fork=header["fork"])
    go_on(inputs, plan, planner, index, steps=steps, segment_steps=segment_steps)


def _write_budgets(lake: Store, plan: str, recipe: Recipe) -> None:
    """Let the index say the newest budgets of bad samples, where there is one."""
    index = read_index(lake, plan)
    budgets = bad_sample_budgets(recipe)
    if index is not None and dict(index.budgets) != budgets:
        write_index(lake, plan, Index(pages=index.pages, tail=index.tail, budgets=budgets))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
