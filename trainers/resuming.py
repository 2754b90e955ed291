"""Which checkpoint a run may go on from: its own newest, or another run's at a step before what went wrong.

The way out of a loss that is no number, or of a spike: fork the plan at that step without the samples that caused it,
then go on from the checkpoint before it. Plain data, no torch.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from k25_pipelines.errors import CheckpointError, ObjectNotFoundError
from k25_pipelines.planning import Plan, diff_plans
from k25_pipelines.storage.store import Store
from trainers.config import TrainConfig, checkpoint_key

RECORD = "record.json"
CHECKPOINTS = "k25/checkpoints/"
MAY_DIFFER = (
    "plan", "continues", "learning_rate", "final_learning_rate", "warmup_steps", "weight_decay", "gradient_clip",
    "qk_clip_threshold", "checkpoint_every",
)  # fmt: skip
"""What a run that goes on from another's checkpoint may have otherwise."""
WAY_OUT = f"delete that checkpoint's {RECORD} to go on from the one before"
TOLD = {"run": str, "step": int, "config": dict, "files": dict}
"""What every record tells; of none is nothing told."""
TOLD_TO_GO_ON = {"plan": str, "reads": list, "loader": dict, "layout": dict}
"""What the record of a trained checkpoint tells besides."""


def newest_record(store: Store, run: str) -> dict | None:
    """Return the record of the newest published checkpoint of a run, None if there is none. Raises CheckpointError."""
    prefix = f"{checkpoint_key(run, 0).rpartition('/')[0]}/"
    keys = [info.key for info in store.list(prefix) if info.key.endswith(f"/{RECORD}")]
    return read_record(store, max(keys).removesuffix(f"/{RECORD}")) if keys else None


def read_record(store: Store, key: str) -> dict:
    """Return the record of a checkpoint. Raises CheckpointError: none is published under `key`, or it is broken."""
    try:
        data = store.get(f"{key}/{RECORD}")
    except ObjectNotFoundError:
        raise CheckpointError(f"{key} is no published checkpoint: it has no {RECORD}; name one that has") from None
    try:
        record = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{key}/{RECORD} is broken, no JSON ({error}); {WAY_OUT}") from None
    _check_told(key, record, TOLD)
    return record


def _check_told(key: str, record: Any, kinds: Mapping[str, type]) -> None:
    """Raise CheckpointError naming what a record should tell and does not."""
    for name, kind in kinds.items():
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or value == {}:
            found = f"tells {name} as {value!r}" if value is not None else f"does not tell {name!r}"
            raise CheckpointError(f"{key}/{RECORD} is broken: it {found}; {WAY_OUT}")


def source_of(store: Store, run: str, config: TrainConfig) -> tuple[str, dict] | None:
    """Return key and record of what a run goes on from: its own newest, else what its config names, else None."""
    if (own := newest_record(store, run)) is not None:
        return checkpoint_key(run, own["step"]), own
    return (config.continues, read_record(store, config.continues)) if config.continues else None


def check_source(key: str, record: Mapping, *, config: Mapping, num_ranks: int, plan: Plan) -> None:
    """Raise CheckpointError naming the field or the step by which a run cannot go on from a checkpoint.

    Args:
        key: the checkpoint's.
        record: its.
        config: the run's, as plain data.
        num_ranks: processes that share it.
        plan: the one that the config names.
    """
    options: dict[str, Any] = {"num_ranks": num_ranks, "tokenizer": plan.tokenizer}
    if record["step"]:  # at step 0 stands what was imported, which `check_continuable` refuses by what it lacks
        _check_told(key, record, TOLD_TO_GO_ON)
        _check_told(key, {"layout.ranks": record["layout"].get("ranks")}, {"layout.ranks": int})
    if key != config.get("continues"):
        check_resumable(record, config=config, **options)
        return
    check_continuable(record, config)
    same = {name: record["config"].get(name) for name in MAY_DIFFER}
    check_resumable(record, config={**config, **same}, **options)
    check_same_steps(record, plan)


def check_resumable(record: Mapping, *, config: Mapping, num_ranks: int, tokenizer: str | None = None) -> None:
    """Raise CheckpointError naming the field by which a checkpoint is not one that a run can go on from.

    Args:
        record: the checkpoint's.
        config: the run's, as plain data.
        num_ranks: processes that share the run.
        tokenizer: digest of the plan's; None: unknown.
    """
    key = checkpoint_key(record["run"], record["step"])
    if changed := sorted(_different(record["config"], config)):
        raise CheckpointError(
            f"{key} was made by another config: {'; '.join(changed)}; resume with the same, or name a new run"
        )
    theirs = record.get("tokenizer")
    if tokenizer and theirs and tokenizer != theirs:
        raise CheckpointError(f"{key} was trained with tokenizer {theirs}, the plan has {tokenizer}; name a new run")
    if config["optimizer"] != "muonclip" and record["layout"]["ranks"] != num_ranks:
        raise CheckpointError(
            f"{key} was saved on {record['layout']['ranks']} ranks, this is a group of {num_ranks}; "
            "under adamw its optimizer is cut into as many parts: start as many"
        )


def check_continuable(record: Mapping, config: Mapping) -> None:
    """Raise CheckpointError where another run cannot go on from a checkpoint with this config, whatever its plan."""
    key = checkpoint_key(record["run"], record["step"])
    if not any(name.startswith("engine/") for name in record["files"]):
        raise CheckpointError(f"{key} holds no optimizer to go on with; start from its weights: --initial")
    kept = sorted(name for name in config if name not in MAY_DIFFER)
    theirs, ours = ({name: given.get(name) for name in kept} for given in (record["config"], config))
    if changed := _different(theirs, ours):
        raise CheckpointError(
            f"{key} was made by another config: {'; '.join(sorted(changed))}; going on from it only "
            f"{', '.join(MAY_DIFFER)} may differ"
        )
    if record["step"] >= config["steps"]:
        raise CheckpointError(
            f"{key} is the end of its run of {config['steps']} steps, and nothing is left to go on with; name an "
            "earlier one"
        )


def check_same_steps(record: Mapping, plan: Plan) -> None:
    """Raise CheckpointError naming the first step before a checkpoint that a plan has otherwise than was trained on."""
    key, step = checkpoint_key(record["run"], record["step"]), record["step"]
    if plan.num_steps < step:
        raise CheckpointError(f"plan {plan.id} has {plan.num_steps} steps, and {key} stands after {step}; extend it")
    for read in record["reads"]:
        known, end = read["plan"], read["steps"][1]
        if known == plan.id:
            continue
        first = diff_plans(plan.store, known, plan.id, most_steps=0)["first_differing_step"]
        if first is not None and first < end:
            raise CheckpointError(
                f"config.plan: plan {plan.id} differs at step {first} from plan {known}, on which {key} was trained up "
                f"to step {end - 1}; fork it at step {step} or later: k25 plan fork {known} --at-step {step} "
                "--without NAME/KEY --reason WHY"
            )


def first_plan(store: Store, config: TrainConfig) -> str:
    """Return the plan that was begun on: of the run itself, or of the one it goes on from, and so on."""
    plan, key = config.plan, config.continues
    while key:
        told = read_record(store, key)["config"]
        plan, key = told["plan"], told.get("continues")
    return plan


def way_out(config: TrainConfig, *, plan: str, step: int, checkpoint: str | None, samples: Sequence[Mapping]) -> str:
    """Return the two commands that leave samples of a step out and go on before it.

    Args:
        config: of the run.
        plan: that the step was read from.
        step: at which it went wrong.
        checkpoint: key of the newest one, None where there is none yet.
        samples: that caused it, the worst first; empty: it is not known which, and all of the step are left out.
    """
    left_out = shlex.quote(f"{samples[0]['dataset']}/{samples[0]['key']}") if samples else f"step={step}"
    fork = f"k25 plan fork {plan} --at-step {step} --without {left_out} --reason WHY"
    go_on = f"--continue {checkpoint.removeprefix(CHECKPOINTS)} " if checkpoint else ""
    again = "" if checkpoint else " (from step 0, with the options that this run was started with)"
    return f"{fork} prints the plan FORK, then k25 train {config.stage} {go_on}--plan FORK{again}"


def _different(theirs: Mapping, ours: Mapping, name: str = "config") -> list[str]:
    """Return each field that two configs do not have alike, by its dotted name and both values."""
    told = []
    for key in {*theirs, *ours}:
        one, other = theirs.get(key), ours.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            told += _different(one, other, f"{name}.{key}")
        elif one != other:
            told.append(f"{name}.{key} was {one!r} and is {other!r}")
    return told
