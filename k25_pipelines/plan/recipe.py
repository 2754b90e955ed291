"""A recipe: what a plan is made from. Plain data in, a frozen checked tree out; everything here bears identity."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from math import gcd
from typing import Any

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.blend import LARGEST_PERIOD
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.plan.size import profile

MOST_LANES = 1024
"""A lane a machine is what keeps machines from fetching the same bytes."""
MOST_WHOLE = 2**31 - 1
"""Places in a pack are counted in 32 bits."""
SHARE_UNITS = 10**6
"""A share is a whole number of millionths, so that its debts in tokens stay exact in 64 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a recipe takes of one dataset."""

    weight: int
    """Share within its group, relative to the other sources; 0 only in a change: taken out."""
    max_epochs: int | None = None
    """Most times a sample may be drawn; None: no limit."""
    augment: tuple[str, ...] = ()
    """Names out of AUGMENTATIONS."""
    flip_safe: bool = True
    """False where a mirrored sample means something else."""
    max_bad_samples: int | None = None
    """Most unreadable samples before a run stops; None: no limit. How a run bears bad data changes no step of the plan,
    so this alone of a source has no identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What is different from a step on."""

    from_step: int
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Whole new entries, what was left out taken from the recipe before."""
    packs_per_step: int | None = None
    vision_share: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a plan is made from."""

    name: str
    seed: int
    pack_tokens: int
    """T, length of a pack [tokens]."""
    packs_per_step: int
    """Global batch [packs]."""
    steps: int
    """How far to plan; the only field without identity, since more steps extend the same plan."""
    sources: Mapping[str, Source]
    profile: str = "kimi_k25"
    tokenizer: str = "default"
    lanes: int | None = None
    """None: the largest that suits batch and sources."""
    pack_window: int = 1024
    """Samples of a lane planned together, carry-over included."""
    blend: str = "tokens"
    """tokens or samples: what weights count."""
    vision_share: float | None = None
    """Vision tokens over all tokens."""
    max_image_tokens: int = 1024
    """Scaling budget of an image, after the merge [tokens]."""
    licences: tuple[str, ...] | None = None
    """Allow-list; None: any that is named."""
    sources_allowed: tuple[str, ...] | None = None
    """Allow-list of what samples say of where they come from; None: any that is named."""
    max_images_per_pack: int | None = None
    """Vision rows (images, video volumes) in one pack."""
    max_patches_per_pack: int | None = None
    changes: tuple[Change, ...] = ()


def parse_recipe(mapping: Mapping[str, Any]) -> Recipe:
    """Return the recipe that plain data (as of YAML or JSON) describes.

    Raises:
        RecipeError: an unknown key (the nearest known one is named), a missing one, or a value
            that cannot be; one line with field, value and way out.
    """
    if not isinstance(mapping, Mapping):
        raise RecipeError(f"a recipe is a mapping of names to values, not {type(mapping).__name__}")
    _known(mapping, Recipe, "recipe")
    for name in ("name", "seed", "pack_tokens", "packs_per_step", "steps", "sources"):
        if mapping.get(name) is None:
            raise RecipeError(f"recipe: {name} is missing; add it")
    values = {name: value for name, value in mapping.items() if value is not None}
    if not isinstance(values["name"], str) or not values["name"]:
        raise RecipeError(f"recipe: name is {values['name']!r}; expected some text")
    _whole(values, "seed", "recipe", least=None)
    for name in ("pack_tokens", "packs_per_step", "steps", "pack_window", "max_image_tokens"):
        _whole(values, name, "recipe")
    for name in ("lanes", "max_images_per_pack", "max_patches_per_pack"):
        _whole(values, name, "recipe")
    values["sources"] = _parse_sources(values["sources"], "recipe")
    for name in ("licences", "sources_allowed"):
        if name in values:
            values[name] = _names(values[name], f"recipe: {name}")
    values["changes"] = _parse_changes(values.get("changes", ()), values["sources"])
    recipe = Recipe(**values)
    _check(recipe)
    return recipe


def recipe_dict(recipe: Recipe, *, steps: bool = True) -> dict[str, Any]:
    """Return the recipe as plain data that `parse_recipe` reads back; without `steps` it is the identity."""
    plain = {f.name: _plain(getattr(recipe, f.name)) for f in fields(Recipe)}
    if recipe.sources_allowed is None:  # plans that were made before there was such a list keep their names
        del plain["sources_allowed"]
    if not steps:
        del plain["steps"]
        for tree in (plain["sources"], *(change["sources"] for change in plain["changes"])):
            for source in tree.values():
                del source["max_bad_samples"]
    return plain


def bad_sample_budgets(recipe: Recipe) -> dict[str, int]:
    """Return the most bad samples of each source that has a limit, as the newest of its entries says."""
    entries = [entry for tree in (recipe.sources, *(c.sources for c in recipe.changes)) for entry in tree.items()]
    return {name: entry.max_bad_samples for name, entry in entries if entry.max_bad_samples is not None}


def recipe_at(recipe: Recipe, step: int) -> Recipe:
    """Return the recipe in force at a step: its changes up to there applied, sources of weight 0 taken out."""
    for change in recipe.changes:
        if change.from_step > step:
            break
        recipe = replace(
            recipe,
            sources={**recipe.sources, **change.sources},
            packs_per_step=change.packs_per_step or recipe.packs_per_step,
            vision_share=recipe.vision_share if change.vision_share is None else change.vision_share,
        )
    live = {name: source for name, source in recipe.sources.items() if source.weight}
    return replace(recipe, sources=live)


def source_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of all sources, those of changes included, in their order."""
    return tuple(sorted({*recipe.sources, *(name for change in recipe.changes for name in change.sources)}))


def source_entry(recipe: Recipe, name: str) -> Source:
    """Return the first entry of a source, in the recipe or in a change: its augmentation holds for the whole plan."""
    return next(tree[name] for tree in (recipe.sources, *(c.sources for c in recipe.changes)) if name in tree)


def _parse_sources(value: Any, where: str) -> dict[str, Source]:
    if not isinstance(value, Mapping) or not value:
        raise RecipeError(f"{where}: sources is {value!r}; expected a mapping of dataset names to their weights")
    return {str(name): _parse_source(entry, f"{where}: sources.{name}") for name, entry in value.items()}


def _parse_source(value: Any, where: str, *, base: Source | None = None) -> Source:
    """Return one source; in a change, `base` gives what is left out and the weight may be 0."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where} is {value!r}; expected a mapping such as {{weight: 3}}")
    _known(value, Source, where)
    entry = {name: item for name, item in value.items() if item is not None}
    if "weight" not in entry and base is None:
        raise RecipeError(f"{where}.weight is missing; add a whole number of at least 1")
    _whole(entry, "weight", where, least=1 if base is None else 0)
    _whole(entry, "max_epochs", where)
    _whole(entry, "max_bad_samples", where, least=0)
    if "augment" in entry:
        entry["augment"] = _names(entry["augment"], f"{where}.augment")
        for name in entry["augment"]:
            if name not in AUGMENTATIONS:
                raise RecipeError(f"{where}.augment: {name!r} is unknown{_nearest(name, AUGMENTATIONS)}")
    if not isinstance(entry.get("flip_safe", True), bool):
        raise RecipeError(f"{where}.flip_safe is {entry['flip_safe']!r}; expected true or false")
    return Source(**entry) if base is None else replace(base, **entry)


def _parse_changes(value: Any, sources: Mapping[str, Source]) -> tuple[Change, ...]:
    if not isinstance(value, list | tuple):
        raise RecipeError(f"recipe: changes is {value!r}; expected a list of mappings with from_step")
    changes: list[Change] = []
    current = dict(sources)
    for number, entry in enumerate(value):
        where = f"recipe: changes[{number}]"
        if not isinstance(entry, Mapping):
            raise RecipeError(f"{where} is {entry!r}; expected a mapping with from_step")
        _known(entry, Change, where)
        given = {name: item for name, item in entry.items() if item is not None}
        if "from_step" not in given:
            raise RecipeError(f"{where}.from_step is missing; say from which step it holds")
        _whole(given, "from_step", where)
        _whole(given, "packs_per_step", where)
        _share(given, where)
        if changes and given["from_step"] <= changes[-1].from_step:
            raise RecipeError(f"{where}.from_step is {given['from_step']}; changes stand in the order of their steps")
        if "sources" in given:
            given["sources"] = _changed_sources(given["sources"], current, where)
            current.update(given["sources"])
        if not any(source.weight for source in current.values()):
            raise RecipeError(f"{where}: no source is left; leave one with a weight of at least 1")
        changes.append(Change(**given))
    return tuple(changes)


def _changed_sources(value: Any, current: Mapping[str, Source], where: str) -> dict[str, Source]:
    """Return whole entries for the sources a change names; what an entry leaves out stays as it was."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}.sources is {value!r}; expected a mapping of dataset names to their weights")
    changed = {}
    for name, entry in value.items():
        base = current.get(str(name))
        source = _parse_source(entry, f"{where}.sources.{name}", base=base)
        if base is not None and (source.augment, source.flip_safe) != (base.augment, base.flip_safe):
            raise RecipeError(f"{where}.sources.{name}.augment differs; a change sets weight and max_epochs only")
        changed[str(name)] = source
    return changed


def _check(recipe: Recipe) -> None:
    """Raise RecipeError where fields do not go together."""
    profile(recipe.profile)
    if not isinstance(recipe.tokenizer, str):
        raise RecipeError(f"recipe: tokenizer is {recipe.tokenizer!r}; expected a name or a URI")
    if recipe.blend not in ("tokens", "samples"):
        raise RecipeError(f"recipe: blend is {recipe.blend!r}; expected tokens or samples")
    _share({"vision_share": recipe.vision_share}, "recipe")
    shares = [recipe.vision_share, *(change.vision_share for change in recipe.changes)]
    if recipe.blend == "samples" and any(share is not None for share in shares):
        raise RecipeError("recipe: vision_share is a ratio of tokens; use blend: tokens, or leave the share out")
    for step in (0, *(change.from_step for change in recipe.changes)) if recipe.blend == "samples" else ():
        weights = [source.weight for source in recipe_at(recipe, step).sources.values()]
        if sum(weights) // gcd(*weights) > LARGEST_PERIOD:
            raise RecipeError(f"recipe: weights {weights} have a period above {LARGEST_PERIOD}; take rounder numbers")
    if recipe.lanes is None:
        return
    if recipe.lanes > MOST_LANES:
        raise RecipeError(f"recipe: lanes is {recipe.lanes}; at most {MOST_LANES}")
    for packs in (recipe.packs_per_step, *(c.packs_per_step for c in recipe.changes if c.packs_per_step)):
        if packs % recipe.lanes:
            raise RecipeError(f"recipe: packs_per_step {packs} is no multiple of lanes {recipe.lanes}; change either")


def _known(mapping: Mapping[str, Any], kind: type, where: str) -> None:
    names = [f.name for f in fields(kind)]
    for key in mapping:
        if key not in names:
            raise RecipeError(f"{where}: key {key!r} is unknown{_nearest(str(key), names)}")


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? Known are {', '.join(known)}" if close else f"; known are {', '.join(known)}"


def _whole(mapping: Mapping[str, Any], name: str, where: str, *, least: int | None = 1) -> None:
    """Raise RecipeError unless the field is absent or a whole number of at least `least`."""
    value = mapping.get(name)
    if value is None:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or (least is not None and not least <= value <= MOST_WHOLE):
        bound = (
            "" if least is None else f" of at least {least}" + f" and at most {MOST_WHOLE}" * (is_whole and value > 0)
        )
        raise RecipeError(
            f"{where}{'.' if '.' in where or '[' in where else ': '}{name} is {value!r}; expected a whole number{bound}"
        )


def _share(mapping: Mapping[str, Any], where: str) -> None:
    value = mapping.get("vision_share")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1):
        raise RecipeError(f"{where}: vision_share is {value!r}; expected a number between 0 and 1, or leave it out")
    if value is not None and SHARE_UNITS % Fraction(str(value)).denominator:
        raise RecipeError(f"{where}: vision_share is {value!r}; round it to 6 decimals")


def _names(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(item, str) for item in value):
        raise RecipeError(f"{where} is {value!r}; expected a list of names")
    return tuple(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Source | Change):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value
