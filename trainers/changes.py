"""What is wanted otherwise than a stage's recipe has it: words of a command line in, the stage's config out.

All of it bears identity: another config is another run. Plain data, no torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from k25_pipelines.errors import CheckpointError, ObjectNotFoundError
from k25_pipelines.lineage_tables import checkpoint_key
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store
from trainers import resuming
from trainers.config import MODULES, LanguageConfig, ModelConfig, TrainConfig, check_config, parse, plain, run_name
from trainers.interchange.lora_config import LoraConfig
from trainers.recipes import PARENTS, PROBE_STEPS, stage_config, stage_recipe

RANDOM = "random"
"""In place of a checkpoint: the module starts from its seed."""
WHOLE = "all"
"""In place of a module: each one that the checkpoint holds, and none from elsewhere."""
SAID_BY = {
    "stage": "the stage itself: k25 train STAGE",
    "steps": "--steps N",
    "learning_rate": "--learning-rate RATE",
    "optimizer": "--optimizer NAME",
    "plan": "--plan PLAN",
    "initial": "--initial MODULE=RUN/STEP",
    "continues": "--continue RUN/STEP",
    "lora": "--lora RANK",
    "lora.rank": "--lora RANK",
}
"""Fields that have an option of their own, which does more than set them; `--set` is for all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What to change of a stage's recipe; None and empty: nothing."""

    steps: int | None = None
    learning_rate: float | None = None
    optimizer: str | None = None
    lora_rank: int | None = None
    """Train adapters of this rank in place of the weights."""
    initial: Mapping[str, str] = field(default_factory=dict)
    """Module or WHOLE -> checkpoint, as RUN/STEP or its key, or RANDOM."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Path of a field of TrainConfig, such as `lora.alpha` -> its value in words."""
    plan: str | None = None
    """Id of the plan to train on in place of the recipe's."""
    continues: str | None = None
    """Checkpoint of another run, as RUN/STEP or its key, whose config is changed in place of the recipe's."""


def changed_config(lake: Store, stage: str, *, scale: str, changes: Changes) -> TrainConfig:
    """Return a stage's config with changes, and plan its data as far as it goes.

    A module that is told to start from a checkpoint has the sizes it has there, and a decoder its tokenizer; the stage
    keeps its reach of positions and its rate of balancing.

    Args:
        lake: datasets, plans and checkpoints.
        stage: its name.
        scale: whose recipe is changed.
        changes: what is otherwise.

    Raises:
        K25Error: no such checkpoint or plan, or the parents' stages have not been trained to their ends.
        ValueError: a field that is not there, or a value that it cannot have.
    """
    if changes.continues:
        return _continued(lake, stage, changes)
    draft = stage_config(stage, scale, plan="", initial=dict.fromkeys(PARENTS[stage], ""))
    told = _told_initial(lake, draft, changes.initial)
    records = {key: read_record(lake, key) for key in {*told.values()} - {RANDOM}}
    sources = {module: records[key] for module, key in told.items() if key != RANDOM}
    config = replace(draft, model=_model(draft.model, sources))
    config = _changed(config, changes)
    if plan := changes.plan:
        open_plan(lake, plan)
    else:
        plan = _plan(lake, stage, scale, steps=config.steps, decoder=sources.get("language"))
    initial = {**_parents(lake, stage, scale, known=told), **told}
    config = replace(config, plan=plan, initial={name: key for name, key in initial.items() if key != RANDOM})
    check_config(config)
    return config


def _continued(lake: Store, stage: str, changes: Changes) -> TrainConfig:
    """Return the config of the run that made a checkpoint, with changes, for a run that goes on from there."""
    assert changes.continues
    if changes.initial:
        raise ValueError("--initial says where a run begins, and --continue that it goes on; leave one out")
    key = _key(lake, changes.continues)
    record = resuming.read_record(lake, key)
    config = parse(TrainConfig, record["config"])
    if config.stage != stage:
        raise ValueError(f"{key} is of stage {config.stage}, not {stage}; name that stage")
    config = replace(_changed(config, changes), continues=key)
    config = replace(config, plan=changes.plan or record["plan"])
    check_config(config)
    resuming.check_continuable(record, plain(config))
    resuming.check_same_steps(record, open_plan(lake, config.plan))
    return config


def read_record(lake: Store, key: str) -> dict[str, Any]:
    """Return the record of a checkpoint that a stage can start from. Raises CheckpointError: there is none such."""
    record = resuming.read_record(lake, key)
    if record["config"].get("lora"):
        way_out = f"merge them first: k25 export {key.removeprefix('k25/checkpoints/')} --merge --to FOLDER, k25 import"
        raise CheckpointError(f"{key} holds adapters, which a stage does not start from; {way_out} FOLDER")
    return record


def _told_initial(lake: Store, config: TrainConfig, told: Mapping[str, str]) -> dict[str, str]:
    """Return module -> key or RANDOM of what is told; of a whole checkpoint each module that the stage has."""
    if not told:
        return {}
    own = _modules(config.model)
    if unknown := sorted(set(told) - {*own, WHOLE}):
        raise ValueError(f"--initial {unknown[0]}=..: stage {config.stage} has the modules {', '.join(own)}")
    keys = {name: words if words == RANDOM else _key(lake, words) for name, words in told.items()}
    whole = keys.pop(WHOLE, None)
    if whole is None:
        return keys
    held = () if whole == RANDOM else _modules(parse(ModelConfig, read_record(lake, whole)["config"]["model"]))
    return {**{name: whole if name in held else RANDOM for name in own}, **keys}


def _key(lake: Store, words: str) -> str:
    """Return the key of a checkpoint that may be told in short. Raises LineageError: there is none."""
    ending = "/record.json"
    listed = [info.key.removesuffix(ending) for info in lake.list("k25/checkpoints/") if info.key.endswith(ending)]
    return checkpoint_key(words, listed)


def _modules(model: ModelConfig) -> tuple[str, ...]:
    present = {"language": True, "vision": model.vision, "projector": model.vision, "contrastive": model.contrastive}
    return tuple(name for name in MODULES if present[name])


def _model(stage: ModelConfig, sources: Mapping[str, Mapping[str, Any]]) -> ModelConfig:
    """Return the stage's model with the sizes of what it starts from."""
    models = {module: parse(ModelConfig, record["config"]["model"]) for module, record in sources.items()}
    sizes: dict[str, Any] = {name: getattr(models[name], name) for name in ("vision", "contrastive") if name in models}
    if decoder := models.get("language"):
        sizes |= {"name": decoder.name, "language": _language(decoder.language, stage.language)}
    return replace(stage, **sizes)


def _language(known: LanguageConfig, stage: LanguageConfig) -> LanguageConfig:
    """Return a decoder's sizes, its positions stretched as far as the stage's go."""
    reach = stage.context * stage.yarn_factor / known.context
    return replace(known, yarn_factor=max(known.yarn_factor, reach), balance_rate=stage.balance_rate)


def _changed(config: TrainConfig, changes: Changes) -> TrainConfig:
    if changes.steps is not None:
        every, warmup = max(1, changes.steps // 3), min(config.warmup_steps, max(0, changes.steps - 1))
        config = replace(config, steps=changes.steps, checkpoint_every=every, warmup_steps=warmup)
    if changes.lora_rank is not None:  # adapters are trained by AdamW alone; alpha as twice the rank is the usual scale
        config = replace(
            config, optimizer="adamw", lora=LoraConfig(rank=changes.lora_rank, alpha=2.0 * changes.lora_rank)
        )
    if changes.learning_rate is not None:
        config = replace(config, learning_rate=changes.learning_rate)
    if changes.optimizer is not None:
        config = replace(config, optimizer=changes.optimizer)
    return with_fields(config, changes.fields)


def with_fields(config: TrainConfig, fields: Mapping[str, str]) -> TrainConfig:
    """Return a config with fields set from words: JSON, or words as they are; several by commas where a field has many.

    Raises:
        ValueError: no such field (the nearest is named), one that another option sets, or a value of another type.
    """
    told, seen = plain(config), set()
    for path, words in fields.items():
        *groups, name = _path(path, seen)
        place: Any = told
        for group in groups:
            place = place.get(group)
            if not isinstance(place, dict):
                way_out = "give --lora RANK first" if group == "lora" else "name a field that has fields of its own"
                raise ValueError(f"--set {path}: the config has no {group} with fields; {way_out}")
        place[name] = _value(words, place.get(name))
    return parse(TrainConfig, told)


def _path(path: str, seen: set[str]) -> list[str]:
    """Return the names of a field, from the outermost, and add it to those seen."""
    field = path.removeprefix("config.")
    owner = "initial" if field.startswith("initial.") else field
    if owner in SAID_BY:
        raise ValueError(f"--set {path}: this is said by {SAID_BY[owner]}; leave the --set out")
    if field in seen:
        raise ValueError(f"--set names {field} twice; leave one out")
    seen.add(field)
    return field.split(".")


def _value(words: str, now: object) -> object:
    if isinstance(now, str):
        return words
    if isinstance(now, list) and not words.startswith("["):
        return [_value(word, None) for word in words.split(",")]
    try:
        return json.loads(words)
    except ValueError:
        return words


def _plan(lake: Store, stage: str, scale: str, *, steps: int, decoder: Mapping[str, Any] | None) -> str:
    """Plan a stage's recipe, in the tokens of the decoder it starts from, and return the plan's id."""
    recipe = stage_recipe(stage, scale)
    if decoder is not None:
        own, needed = load_tokenizer(recipe.get("tokenizer", "default"), lake).digest, _tokenizer(lake, decoder)
        recipe |= {"tokenizer": needed} if needed != own else {}
    parsed = parse_recipe(recipe)
    return make_plan(lake, parsed, steps=max(parsed.steps, steps + PROBE_STEPS))


def _tokenizer(lake: Store, record: Mapping[str, Any]) -> str:
    if record.get("plan"):
        return open_plan(lake, record["plan"]).tokenizer
    if not record.get("tokenizer"):
        raise CheckpointError(f"{record['run']} was imported without a tokenizer; import it with --tokenizer")
    return record["tokenizer"]


def _parents(lake: Store, stage: str, scale: str, *, known: Iterable[str]) -> dict[str, str]:
    """Return where the modules that are not `known` start, by the recipes: at the ends of their parents' runs."""
    initial = {}
    for module, parent in PARENTS[stage].items():
        if module not in known:
            config = changed_config(lake, parent, scale=scale, changes=Changes())
            initial[module] = f"k25/checkpoints/{run_name(config)}/{config.steps:08d}"
            try:
                lake.head(f"{initial[module]}/record.json")
            except ObjectNotFoundError:
                raise CheckpointError(
                    f"stage {stage} starts its {module} from the end of {parent}, which is not in {lake.url}; "
                    f"run k25 train {parent} --scale {scale}, or say where modules start: --initial MODULE=RUN/STEP"
                ) from None
    return initial
