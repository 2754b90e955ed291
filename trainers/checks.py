"""What cannot work is refused by the name of its field before anything is computed. Plain data, no torch.

Three looks, each as early as it can be: at the config alone, at the run file and its ranks, at the plan. None reads a
sample.
"""

import math
import os
from typing import TYPE_CHECKING

from k25_pipelines.plan.size import profile
from trainers.interchange.lora_config import check_lora
from trainers.model.checks import check_context

if TYPE_CHECKING:
    from k25_pipelines.planning import Plan
    from trainers.config import Run, TrainConfig

OPTIMIZERS = ("muonclip", "adamw")
RECOMPUTE_PARTS = ("norm", "swiglu", "mla_up")
"""As in `trainers.model.recompute`, which needs torch."""
THREADS_PER_CORE = 4
"""More threads of one rank than so many for each core are a slip of the pen."""


def check_training(config: "TrainConfig") -> None:
    """Raise ValueError naming the field of a config that no optimizer step can be taken with."""
    if config.optimizer not in OPTIMIZERS:
        _refuse("config.optimizer", config.optimizer, f"one of {', '.join(OPTIMIZERS)}")
    for name in ("learning_rate", "qk_clip_threshold", "gradient_clip"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            _refuse(f"config.{name}", value, "a number above 0")
    for name in ("weight_decay", "caption_weight", "contrastive_weight"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            _refuse(f"config.{name}", value, "a number, 0 or more")
    if not config.caption_weight + config.contrastive_weight:
        raise ValueError("config.caption_weight and config.contrastive_weight are 0: nothing would be learnt; set one")
    for name, value in (
        ("muon_momentum", config.muon_momentum),
        *zip(("betas[0]", "betas[1]"), config.betas, strict=True),
    ):
        if not 0 <= value < 1:
            _refuse(f"config.{name}", value, "at least 0 and below 1")
    if not 0 <= config.final_learning_rate <= 1:
        _refuse("config.final_learning_rate", config.final_learning_rate, "a share of the peak, 0 to 1")
    if not 0 <= config.warmup_steps <= config.steps:
        _refuse("config.warmup_steps", config.warmup_steps, f"0 to config.steps, which is {config.steps}")
    if config.checkpoint_every < 0:
        _refuse("config.checkpoint_every", config.checkpoint_every, "0 (only at the end) or more")
    if config.lora:
        _check_adapters(config)


def check_run(run: "Run", num_ranks: int) -> None:
    """Raise ValueError naming the field of a run that this many ranks cannot share, or whose switches are unknown.

    Args:
        run: whose config `check_config` has seen.
        num_ranks: processes that are to share its steps.
    """
    from trainers.parallel.ranks import check_parallel  # it reads configs, whose module imports this one

    if run.threads < 1:
        _refuse("threads", run.threads, "at least 1")
    if run.stop_at is not None and not 1 <= run.stop_at <= run.config.steps:
        _refuse("stop_at", run.stop_at, f"1 to config.steps, which is {run.config.steps}")
    if unknown := sorted(set(run.recompute) - set(RECOMPUTE_PARTS)):
        _refuse("recompute", ", ".join(unknown), f"some of {', '.join(RECOMPUTE_PARTS)}")
    check_parallel(run.parallel, run.config, num_ranks)


def check_machine(run: "Run") -> None:
    """Raise ValueError where this machine cannot run a rank's threads at any useful speed."""
    cores = os.cpu_count() or 1
    if run.threads > THREADS_PER_CORE * cores:
        allowed = f"at most {THREADS_PER_CORE * cores} on this machine's {cores} cores, and best their number by ranks"
        _refuse("threads", run.threads, allowed)


def idle_ranks(run: "Run", plan: "Plan", num_ranks: int) -> str | None:
    """Return in words that some ranks never have a pack of their own; None: each has one."""
    packs, sharing = plan.recipe.packs_per_step, num_ranks // run.parallel.pipeline_stages
    if sharing <= packs:
        return None
    return (
        f"{sharing - packs} of {sharing} ranks never have a pack: plan {plan.id} has packs_per_step {packs}; "
        f"start at most {packs * run.parallel.pipeline_stages} ranks, or plan more packs a step"
    )


def check_plan(config: "TrainConfig", plan: "Plan", *, num_tokens: int) -> None:
    """Raise ValueError naming the field of a config that does not fit the samples and packs of its plan.

    Args:
        config: whose `plan` this is, or a fork of it.
        plan: as far as it is planned.
        num_tokens: size of the plan's tokenizer.
    """
    language, vision = config.model.language, config.model.vision
    if config.steps > plan.num_steps:
        raise ValueError(
            f"config.steps is {config.steps}, and plan {plan.id} has {plan.num_steps}; train fewer, or extend it: "
            f"k25 plan RECIPE --steps {config.steps}"
        )
    where = f"plan {plan.id} needs another model: language"
    check_context(language, plan.recipe.pack_tokens, where)
    if num_tokens > language.vocab:
        _refuse("config.model.language.vocab", language.vocab, f"at least {num_tokens}: ids of the plan's tokenizer")
    media = profile(plan.profile)
    fields = {"patch": media.patch, "merge": media.merge, "max_frames": media.volume_frames}
    for name, wanted in fields.items() if vision else ():
        own = getattr(vision, name)
        if own < wanted if name == "max_frames" else own != wanted:
            _refuse(f"config.model.vision.{name}", own, f"{wanted}: the plan's media are cut for {plan.profile}")


def _check_adapters(config: "TrainConfig") -> None:
    assert config.lora is not None
    check_lora(config.lora, config.model)
    if config.optimizer != "adamw":
        _refuse("config.optimizer", config.optimizer, "adamw where config.lora is set: MuonClip moves whole matrices")
    if config.lora.targets == ("projector",) and not config.model.vision:
        _refuse("config.lora.targets", "projector", "of layers that the model has; it has no projector")


def _refuse(field: str, value: object, allowed: str) -> None:
    raise ValueError(f"{field} is {value}; it must be {allowed}")
