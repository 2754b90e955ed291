"""Every run we make, by name: data recipes and configs of the stages. Plain data, no torch.

`toy` takes seconds a stage and is for tests; `demo` takes under a minute a stage on two cores and shows that each
stage does what it is for. Lengths, widths and batches are the published ones divided until they fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from k25_pipelines.keys import random_key
from trainers.config import ModelConfig, TrainConfig
from trainers.models import model_config

STAGES = ("warmup", "vit", "projector", "joint", "long_context")
"""Text-only warm-up (stands for K2), 1a, 1b, 2 and 3."""
SCALES = ("toy", "demo")
PROBE_STEPS = 2
"""Steps that are planned and not trained on: the loss before and after training is compared on them."""
STRETCH = 4
"""Stage 3's context over the others'."""
PACK_WINDOW: Mapping[str, int] = {"toy": 128, "demo": 1024}
"""Samples packed together. A toy's packs hold one or two samples, and all its steps are less than a wide window."""
VISION_SHARE = 0.10
"""Vision tokens over all tokens in stages 2 and 3, from the first step to the last."""

PARENTS: Mapping[str, Mapping[str, str]] = {
    "warmup": {},
    "vit": {},
    "projector": {"vision": "vit", "language": "warmup"},
    "joint": {"vision": "projector", "projector": "projector", "language": "projector"},
    "long_context": {"vision": "joint", "projector": "joint", "language": "joint"},
}
"""Stage -> module -> the stage whose checkpoint it starts from; random where absent."""

TRAINABLE: Mapping[str, tuple[str, ...]] = {
    "warmup": ("language",),
    "vit": ("vision", "projector", "language", "contrastive"),
    "projector": ("projector",),
    "joint": ("vision", "projector", "language"),
    "long_context": ("vision", "projector", "language"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What a stage costs at a scale."""

    packs_per_step: int
    steps: int
    learning_rate: float
    warmup_steps: int


MODEL_OF_SCALE = {"toy": "toy", "demo": "small"}
SIZES: Mapping[str, Mapping[str, Size]] = {
    "toy": {
        "warmup": Size(packs_per_step=2, steps=6, learning_rate=3e-3, warmup_steps=1),
        "vit": Size(packs_per_step=2, steps=6, learning_rate=3e-3, warmup_steps=1),
        "projector": Size(packs_per_step=2, steps=6, learning_rate=3e-3, warmup_steps=1),
        "joint": Size(packs_per_step=4, steps=8, learning_rate=2e-3, warmup_steps=1),
        "long_context": Size(packs_per_step=2, steps=6, learning_rate=1e-3, warmup_steps=1),
    },
    "demo": {
        "warmup": Size(packs_per_step=2, steps=350, learning_rate=2e-3, warmup_steps=10),
        "vit": Size(packs_per_step=4, steps=110, learning_rate=3e-3, warmup_steps=8),
        "projector": Size(packs_per_step=4, steps=120, learning_rate=8e-3, warmup_steps=6),
        "joint": Size(packs_per_step=8, steps=70, learning_rate=2e-3, warmup_steps=5),
        "long_context": Size(packs_per_step=2, steps=50, learning_rate=5e-4, warmup_steps=3),
    },
}

IMAGES = {  # no colour draws for captions: they name the colour a drawing stands on
    "captions": {"weight": 12, "augment": ["resize"], "flip_safe": False},
    "grounding": {"weight": 1, "augment": ["resize", "crop", "flip", "colour"]},
    "clips": {"weight": 1, "augment": ["colour"], "flip_safe": False},
}
TEXT = {"wiki": {"weight": 8}, "code": {"weight": 2}}
LONG = {"long_documents": {"weight": 10}}
SOURCES: Mapping[str, Mapping[str, Any]] = {
    "warmup": TEXT,
    "vit": IMAGES,
    "projector": IMAGES,
    "joint": {**IMAGES, **TEXT},
    "long_context": {**IMAGES, **TEXT, **LONG},
}


def stage_recipe(stage: str, scale: str) -> dict[str, Any]:
    """Return the data recipe of a stage over the demo's datasets, as `parse_recipe` reads it.

    Each stage has a seed of its own: a later one must not read again what an earlier one began with.
    """
    size, context = _size(stage, scale), model_config(MODEL_OF_SCALE[scale]).language.context
    recipe = {
        "name": f"{stage}-{scale}",
        "seed": random_key("recipe", stage, scale) >> 33,
        "pack_tokens": context * (STRETCH if stage == "long_context" else 1),
        "packs_per_step": size.packs_per_step,
        "steps": size.steps + PROBE_STEPS,
        "pack_window": PACK_WINDOW[scale],
        "max_image_tokens": 64,
        "sources": {name: dict(source) for name, source in SOURCES[stage].items()},
    }
    if stage in ("joint", "long_context"):
        recipe["vision_share"] = VISION_SHARE
    return recipe


def evaluation_recipe(dataset: str, *, pack_tokens: int) -> dict[str, Any]:
    """Return the data recipe of one large step of a dataset, its samples as stored."""
    return {
        "name": f"evaluation-{dataset}",
        "seed": 7,
        "pack_tokens": pack_tokens,
        "packs_per_step": 16,
        "pack_window": PACK_WINDOW["toy"],
        "steps": 1,
        "max_image_tokens": 64,
        "sources": {dataset: {"weight": 1}},
    }


def stage_config(stage: str, scale: str, *, plan: str, initial: Mapping[str, str] | None = None) -> TrainConfig:
    """Return the config of a stage.

    Args:
        stage: one of STAGES.
        scale: one of SCALES.
        plan: id of the plan that was made from `stage_recipe(stage, scale)`.
        initial: module -> checkpoint key, for the modules in PARENTS[stage].

    Raises:
        ValueError: stage or scale is unknown, or `initial` names other modules.
    """
    size, initial = _size(stage, scale), dict(initial or {})
    if set(initial) != set(PARENTS[stage]):
        raise ValueError(f"stage {stage} starts {sorted(PARENTS[stage])} from checkpoints, not {sorted(initial)}")
    return TrainConfig(
        stage=stage,
        model=_stage_model(stage, scale),
        plan=plan,
        steps=size.steps,
        learning_rate=size.learning_rate,
        warmup_steps=size.warmup_steps,
        trainable=TRAINABLE[stage],
        caption_weight=2.0 if stage == "vit" else 1.0,
        contrastive_weight=1.0 if stage == "vit" else 0.0,
        initial=initial,
        checkpoint_every=max(1, size.steps // 3),
    )


def _stage_model(stage: str, scale: str) -> ModelConfig:
    model = model_config(MODEL_OF_SCALE[scale])
    if stage != "vit":
        model = replace(model, contrastive=None)
    if stage == "warmup":
        model = replace(model, vision=None)
    if stage == "long_context":
        model = replace(model, language=replace(model.language, yarn_factor=float(STRETCH)))
    return model


def _size(stage: str, scale: str) -> Size:
    if stage not in STAGES or scale not in SCALES:
        raise ValueError(f"no recipe for stage {stage!r} at scale {scale!r}; stages {STAGES}, scales {SCALES}")
    return SIZES[scale][stage]
