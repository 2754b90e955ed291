"""Every run we make, by name: data recipes and configs of the stages. Plain data, no torch.

`toy` takes seconds a stage and is for tests; `demo` takes under a minute a stage on two cores and shows that each
stage does what it is for. Lengths, widths and batches are the published ones divided until they fit. `published` is
the paper's own: it can be planned, quoted and counted, and is not started from here.

Run: python -m trainers.recipes joint --scale published > joint.json, for `k25 quote joint.json` and `k25 plan`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from k25_pipelines.keys import random_key
from trainers.config import ModelConfig, TrainConfig
from trainers.models import model_config

STAGES = ("warmup", "vit", "projector", "joint", "long_context", "longest_context")
"""Text-only warm-up (stands for K2), 1a, 1b, 2, and the two stretches of 3."""
SCALES = ("toy", "demo")
"""What is trained."""
PLANNED_SCALES = (*SCALES, "published")
"""What has recipes and configs."""
PROBE_STEPS = 2
"""Steps that are planned and not trained on: the loss before and after training is compared on them."""
STRETCHES: Mapping[str, tuple[int, int]] = {"toy": (2, 4), "demo": (4, 16), "published": (8, 64)}
"""Scale -> context of the stretches of stage 3 over that of the other stages: 4,096, then 32,768, then 262,144."""
PACK_WINDOW: Mapping[str, int] = {"toy": 128, "demo": 1024, "published": 1024}
"""Samples packed together. A toy's packs hold one or two samples, and all its steps are less than a wide window."""
MAX_IMAGE_TOKENS: Mapping[str, int] = {"toy": 64, "demo": 64, "published": 4096}
"""Scaling budget of an image; the published one is 16,384 patches."""
VISION_SHARE = 0.10
"""Vision tokens over all tokens in stages 2 and 3, from the first step to the last."""
MAX_EPOCHS: Mapping[str, Mapping[str, int]] = {
    "toy": {},
    "demo": {"captions": 8, "grounding": 4, "clips": 8, "wiki": 2, "code": 2, "long_documents": 2},
    "published": {"captions": 2, "grounding": 4, "clips": 4, "wiki": 4, "code": 4, "long_documents": 4},
}
"""Scale -> most epochs of a source in a stage; a toy's datasets hold some dozens of samples, and have no limit.

Choice: the report says that each source has a limit and that synthetic captions have a strict one, not how many. Four
epochs are about as good as fresh tokens (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
"""

PARENTS: Mapping[str, Mapping[str, str]] = {
    "warmup": {},
    "vit": {},
    "projector": {"vision": "vit", "language": "warmup"},
    "joint": {"vision": "projector", "projector": "projector", "language": "projector"},
    "long_context": {"vision": "joint", "projector": "joint", "language": "joint"},
    "longest_context": {"vision": "long_context", "projector": "long_context", "language": "long_context"},
}
"""Stage -> module -> the stage whose checkpoint it starts from; random where absent."""

WHOLE = ("vision", "projector", "language")
TRAINABLE: Mapping[str, tuple[str, ...]] = {
    "warmup": ("language",),
    "vit": ("vision", "projector", "language", "contrastive"),
    "projector": ("projector",),
    "joint": WHOLE,
    "long_context": WHOLE,
    "longest_context": WHOLE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What a stage costs at a scale."""

    packs_per_step: int
    steps: int
    learning_rate: float
    """Peak, of MuonClip: its updates are scaled to AdamW's size."""
    warmup_steps: int
    final_learning_rate: float = 0.1
    """Last rate over the peak."""


MODEL_OF_SCALE = {"toy": "toy", "demo": "small", "published": "k2_5"}
SIZES: Mapping[str, Mapping[str, Size]] = {
    "toy": {
        "warmup": Size(packs_per_step=2, steps=6, learning_rate=1.2e-2, warmup_steps=1),
        "vit": Size(packs_per_step=2, steps=6, learning_rate=1.2e-2, warmup_steps=1),
        "projector": Size(packs_per_step=2, steps=6, learning_rate=1.2e-2, warmup_steps=1),
        "joint": Size(packs_per_step=4, steps=8, learning_rate=8e-3, warmup_steps=1),
        "long_context": Size(packs_per_step=2, steps=6, learning_rate=4e-3, warmup_steps=1),
        "longest_context": Size(packs_per_step=2, steps=4, learning_rate=2e-3, warmup_steps=1),
    },
    "demo": {
        "warmup": Size(packs_per_step=2, steps=350, learning_rate=8e-3, warmup_steps=10),
        "vit": Size(packs_per_step=4, steps=110, learning_rate=1.2e-2, warmup_steps=8),
        "projector": Size(packs_per_step=4, steps=120, learning_rate=2.4e-2, warmup_steps=6),
        "joint": Size(packs_per_step=8, steps=70, learning_rate=8e-3, warmup_steps=5),
        "long_context": Size(packs_per_step=2, steps=40, learning_rate=4e-3, warmup_steps=3),
        "longest_context": Size(packs_per_step=1, steps=10, learning_rate=2e-3, warmup_steps=2),
    },
    "published": {
        "warmup": Size(packs_per_step=16384, steps=230_968, learning_rate=2e-4, warmup_steps=500),
        "vit": Size(packs_per_step=16384, steps=14_901, learning_rate=2e-4, warmup_steps=500),
        "projector": Size(packs_per_step=16384, steps=100, learning_rate=2e-4, warmup_steps=10),
        "joint": Size(packs_per_step=16384, steps=223_517, learning_rate=2e-4, warmup_steps=500),
        "long_context": Size(
            packs_per_step=2048, steps=7_451, learning_rate=2e-5, warmup_steps=0, final_learning_rate=0.35
        ),
        "longest_context": Size(
            packs_per_step=256, steps=2_980, learning_rate=7e-6, warmup_steps=0, final_learning_rate=1.0
        ),
    },
}
"""Scale -> stage -> size.

A published step is 67 million tokens, and the steps are the report's tokens over them: 15.5T for K2, which the warm-up
stands for; 1T, 15T, 500B, 200B. Batch, peak rate, warm-up, last rates (2e-4 to 2e-5, then to 7e-6) and weight decay are
those of the K2 report. Choice, where the K2.5 report is silent: it keeps them; 1b, "very short", takes 100 steps; the
rate falls as half a cosine from the start, where K2 held it for 10T tokens; the second stretch stays at the last rate.
"""
WEIGHT_DECAY = {"toy": 0.05, "demo": 0.05, "published": 0.1}

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
    "longest_context": {**IMAGES, **TEXT, **LONG},
}
"""Stage -> the demo's datasets, which stand for the published corpora at every scale."""

FUSIONS: Mapping[str, tuple[int, float]] = {"early": (0, 0.08), "mid": (50, 0.16), "late": (80, 0.40)}
"""Fusion -> when vision enters [percent of the steps], and its share of the tokens from there on.

Share times what is left is the same in each. Source: Kimi K2.5 report, table 1, with shares of 10, 20 and 50%. Choice:
four fifths of them. Half of the tokens of our captions are words, so that a share of a half could not be kept.
"""
FUSED_IMAGES = {
    "captions": {"weight": 8, "flip_safe": False},
    "grounding": {"weight": 1},
    "clips": {"weight": 2, "flip_safe": False},
}
FUSED_TEXT = {"wiki": {"weight": 1}}
"""Short documents alone: a long one's pieces fill a part of many steps, and other text would cost more meanwhile."""


def stage_recipe(stage: str, scale: str) -> dict[str, Any]:
    """Return the data recipe of a stage over the demo's datasets, as `parse_recipe` reads it.

    Each stage has a seed of its own: a later one must not read again what an earlier one began with.

    Raises:
        ValueError: stage or scale is unknown.
    """
    size, context = _size(stage, scale), model_config(MODEL_OF_SCALE[scale]).language.context
    recipe = {
        "name": f"{stage}-{scale}",
        "seed": random_key("recipe", stage, scale) >> 33,
        "pack_tokens": context * context_stretch(stage, scale),
        "packs_per_step": size.packs_per_step,
        "steps": size.steps + PROBE_STEPS,
        "pack_window": PACK_WINDOW[scale],
        "max_image_tokens": MAX_IMAGE_TOKENS[scale],
        "sources": {name: _limited(name, source, scale) for name, source in SOURCES[stage].items()},
    }
    if stage in ("joint", "long_context", "longest_context"):
        recipe["vision_share"] = VISION_SHARE
    return recipe


def context_stretch(stage: str, scale: str) -> int:
    """Return a stage's context over the first stages': YaRN's factor."""
    first, second = STRETCHES[scale]
    return {"long_context": first, "longest_context": second}.get(stage, 1)


def stretches_of_model(name: str) -> tuple[int, int]:
    """Return the stretches of the scale that trains the model of this name; those of the demo for any other."""
    scales = {model: scale for scale, model in MODEL_OF_SCALE.items()}
    return STRETCHES[scales.get(name, "demo")]


def fusion_recipe(fusion: str, *, steps: int, packs_per_step: int, pack_tokens: int, seed: int) -> dict[str, Any]:
    """Return the recipe of one arm of the ablation: with the others' totals of vision and of text tokens.

    Args:
        fusion: one of FUSIONS.
        steps: a multiple of 10, so that vision enters at a step.
        packs_per_step: of all steps.
        pack_tokens: length of a pack.
        seed: the same for all arms, whose text then comes in the same order.

    Raises:
        ValueError: the fusion is unknown, or vision would enter between two steps.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"no fusion is called {fusion!r}; there are {', '.join(FUSIONS)}")
    if steps < 1 or steps % 10:
        raise ValueError(f"steps is {steps}; give a multiple of 10, so that vision enters at a step")
    percent, share = FUSIONS[fusion]
    recipe: dict[str, Any] = {
        "name": f"fusion-{fusion}",
        "seed": seed,
        "pack_tokens": pack_tokens,
        "packs_per_step": packs_per_step,
        "steps": steps,
        "pack_window": PACK_WINDOW["toy"],
        "max_image_tokens": MAX_IMAGE_TOKENS["demo"],
    }
    if percent == 0:
        return {**recipe, "sources": {**FUSED_IMAGES, **FUSED_TEXT}, "vision_share": share}
    change = {"from_step": steps * percent // 100, "sources": FUSED_IMAGES, "vision_share": share}
    return {**recipe, "sources": dict(FUSED_TEXT), "changes": [{**change, "reason": f"vision enters at {percent}%"}]}


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
        scale: one of PLANNED_SCALES.
        plan: id of the plan that was made from `stage_recipe(stage, scale)`.
        initial: module -> checkpoint key, for the modules in PARENTS[stage].

    Raises:
        ValueError: stage or scale is unknown, or `initial` names other modules.
    """
    size, initial = _size(stage, scale), dict(initial or {})
    if set(initial) != set(PARENTS[stage]):
        raise ValueError(f"stage {stage} starts {sorted(PARENTS[stage])} from checkpoints, not {sorted(initial)}")
    model = _stage_model(stage, scale)
    return TrainConfig(
        stage=stage,
        model=model,
        plan=plan,
        steps=size.steps,
        learning_rate=size.learning_rate,
        warmup_steps=size.warmup_steps,
        final_learning_rate=size.final_learning_rate,
        optimizer="muonclip",
        weight_decay=WEIGHT_DECAY[scale],
        trainable=tuple(name for name in TRAINABLE[stage] if name != "contrastive" or model.contrastive),
        caption_weight=2.0 if model.contrastive else 1.0,
        contrastive_weight=1.0 if model.contrastive else 0.0,
        initial=initial,
        checkpoint_every=max(1, size.steps // 3),
    )


def main(arguments: list[str] | None = None) -> None:
    """Write a recipe to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.recipes",
        description="A stage's data recipe as JSON, which `k25 plan` and `k25 quote` read.",
        epilog="example: python -m trainers.recipes joint --scale published > joint.json; k25 quote joint.json",
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--scale", choices=PLANNED_SCALES, default="demo")
    parser.add_argument(
        "--unlimited", action="store_true", help="no max_epochs: a published run quoted on a corpus that is smaller"
    )
    options = parser.parse_args(arguments)
    recipe = stage_recipe(options.stage, options.scale)
    if options.unlimited:
        recipe["sources"] = {name: {**source, "max_epochs": None} for name, source in recipe["sources"].items()}
    sys.stdout.write(f"{json.dumps(recipe, indent=1)}\n")


def _limited(name: str, source: Mapping[str, Any], scale: str) -> dict[str, Any]:
    limit = MAX_EPOCHS[scale].get(name)
    return {**source, **({"max_epochs": limit} if limit else {})}


def _stage_model(stage: str, scale: str) -> ModelConfig:
    """Return the modules that a stage has, their positions stretched to its context.

    The published stage 1a captions through a small language model, Moonlight-16B-A3B, and by that loss alone.
    """
    model = model_config("moonlight" if (stage, scale) == ("vit", "published") else MODEL_OF_SCALE[scale])
    if stage != "vit":
        model = replace(model, contrastive=None)
    if stage == "warmup":
        model = replace(model, vision=None)
    return replace(model, language=replace(model.language, yarn_factor=float(context_stretch(stage, scale))))


def _size(stage: str, scale: str) -> Size:
    if stage not in STAGES or scale not in PLANNED_SCALES:
        raise ValueError(f"no recipe for stage {stage!r} at scale {scale!r}; stages {STAGES}, scales {PLANNED_SCALES}")
    return SIZES[scale][stage]


if __name__ == "__main__":
    main()
