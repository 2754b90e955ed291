"""The sizes of every model we name. Plain data, no torch."""

from collections.abc import Mapping

from trainers.config import ContrastiveConfig, LanguageConfig, ModelConfig, VisionConfig

TOY = ModelConfig(
    name="toy",
    language=LanguageConfig(
        width=32,
        layers=2,
        heads=2,
        mlp=64,
        context=256,
        q_rank=16,
        kv_rank=16,
        head_nope=8,
        head_rope=8,
        head_value=16,
        experts=4,
        experts_per_token=2,
        expert_mlp=16,
        routed_scale=1.414,
        balance_rate=0.01,
    ),
    vision=VisionConfig(width=32, layers=2, heads=2, mlp=64, table=8),
    contrastive=ContrastiveConfig(width=32, layers=1, heads=2),
)

SMALL = ModelConfig(
    name="small",
    language=LanguageConfig(
        width=128,
        layers=3,
        heads=4,
        mlp=352,
        context=512,
        q_rank=64,
        kv_rank=48,
        head_nope=16,
        head_rope=16,
        head_value=32,
        experts=8,
        experts_per_token=2,
        expert_mlp=128,
        routed_scale=1.414,
        balance_rate=0.01,
    ),
    vision=VisionConfig(width=96, layers=3, heads=4, mlp=384, table=16),
    contrastive=ContrastiveConfig(width=96, layers=1, heads=4),
)

BASE = ModelConfig(
    name="base",
    language=LanguageConfig(
        width=1024,
        layers=12,
        heads=8,
        mlp=4096,
        vocab=32768,
        tied=False,
        context=4096,
        q_rank=512,
        kv_rank=256,
        experts=64,
        expert_mlp=512,
    ),
    vision=VisionConfig(width=768, layers=12, heads=12, mlp=3072),
    contrastive=ContrastiveConfig(width=512, layers=2, heads=8),
)

K2_5 = ModelConfig(
    name="k2_5",
    language=LanguageConfig(
        width=7168,
        layers=61,
        heads=64,
        mlp=18432,
        vocab=163840,
        tied=False,
        context=4096,
        yarn_factor=64.0,
        experts=384,
    ),
    vision=VisionConfig(width=1152, layers=27, heads=16, mlp=4304),
)
"""As published; the defaults of `LanguageConfig` are its own."""

MOONLIGHT = ModelConfig(
    name="moonlight",
    language=LanguageConfig(
        width=2048,
        layers=27,
        heads=16,
        mlp=11264,
        vocab=163840,
        tied=False,
        context=4096,
        q_rank=None,
        experts=64,
        experts_per_token=6,
        shared_experts=2,
        expert_mlp=1408,
        routed_scale=2.446,
    ),
    vision=K2_5.vision,
)
"""What the published stage 1a trains the tower against: MoonViT-3D with Moonlight-16B-A3B, as its config says."""

MODELS: Mapping[str, ModelConfig] = {model.name: model for model in (TOY, SMALL, BASE, K2_5, MOONLIGHT)}
"""`toy` is for tests and `small` for two cores; `base` fills one GPU (1.2 billion weights); `k2_5` and
`moonlight` are only counted.

The two small ones scale the weights of 2 experts as the published model those of 8, by the root of their number, and
balance ten times as fast, since they train for hundreds of steps.
"""


def model_config(name: str) -> ModelConfig:
    """Return the sizes of a whole model; a stage leaves out what it does not use.

    Raises:
        ValueError: no model has this name.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
