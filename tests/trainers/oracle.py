"""The independent implementation: transformers' own K2.5, of our sizes and with our weights. For tests only."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from trainers.config import LanguageConfig, ModelConfig, VisionConfig
from trainers.model.kimi_k25 import KimiK25

# Shapes: H heads, D head width, K inputs.

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MEDIA_TOKEN = 100
CONFIG = ModelConfig(
    name="oracle",
    language=LanguageConfig(
        width=40,
        layers=3,
        heads=3,
        mlp=72,
        vocab=101,
        tied=False,
        context=32,
        yarn_factor=4.0,
        q_rank=24,
        kv_rank=20,
        head_nope=12,
        head_rope=16,
        head_value=20,
        experts=8,
        experts_per_token=3,
        shared_experts=2,
        expert_mlp=28,
        dense_layers=1,
    ),
    vision=VisionConfig(width=64, layers=3, heads=4, mlp=88, table=8),
)
"""Every feature is on: YaRN, dense and sparse layers, several experts, two shared ones, an untied head, odd widths."""


def ours(config: ModelConfig = CONFIG, *, seed: int = 5) -> KimiK25:
    """Return our model with every weight and the router's biases drawn: nothing at 0 or 1, where a fault could hide."""
    model = KimiK25(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                weight.normal_(std=0.1, generator=generator)
            elif weight.ndim == 1 and weight.is_floating_point() and "last_" not in name:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    return model


def theirs(model: KimiK25) -> nn.Module:
    """Return `Kimi_K25ForConditionalGeneration` with the weights of ours; it must want no other and lack none."""
    kimi = pytest.importorskip("transformers.models.kimi_k25")
    other = kimi.Kimi_K25ForConditionalGeneration(their_config(model.config)).eval()
    other.load_state_dict(their_state(model), strict=True)
    return other


def their_config(config: ModelConfig) -> object:
    """Return the configuration of transformers' class for our sizes."""
    from transformers import DeepseekV3Config
    from transformers.models.kimi_k25 import Kimi_K25Config, Kimi_K25VisionConfig

    v, c = config.vision, config.language
    assert v is not None
    vision = Kimi_K25VisionConfig(
        patch_size=v.patch,
        pos_emb_height=v.table,
        pos_emb_width=v.table,
        pos_emb_time=v.max_frames,
        num_attention_heads=v.heads,
        num_hidden_layers=v.layers,
        hidden_size=v.width,
        intermediate_size=v.mlp,
    )
    text = DeepseekV3Config(
        vocab_size=c.vocab,
        hidden_size=c.width,
        intermediate_size=c.mlp,
        moe_intermediate_size=c.expert_mlp,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.heads,
        n_shared_experts=c.shared_experts,
        n_routed_experts=c.experts,
        routed_scaling_factor=c.routed_scale,
        kv_lora_rank=c.kv_rank,
        q_lora_rank=c.q_rank,
        qk_rope_head_dim=c.head_rope,
        qk_nope_head_dim=c.head_nope,
        v_head_dim=c.head_value,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=c.experts_per_token,
        first_k_dense_replace=c.dense_layers,
        norm_topk_prob=True,
        rms_norm_eps=1e-5,
        max_position_embeddings=int(c.context * c.yarn_factor),
        rope_parameters=their_rope(c),
        tie_word_embeddings=False,
        num_mtp_layers=0,
    )
    return Kimi_K25Config(
        text_config=text,
        vision_config=vision,
        projection_hidden_size=v.width,
        image_token_id=MEDIA_TOKEN,
        video_token_id=MEDIA_TOKEN - 1,
        tie_word_embeddings=False,
    )


def their_rope(config: LanguageConfig) -> dict:
    """Return the rotary settings as the published config has them."""
    return {
        "rope_type": "yarn",
        "rope_theta": config.rope_theta,
        "factor": config.yarn_factor,
        "original_max_position_embeddings": config.context,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }


def their_frequencies(config: LanguageConfig) -> Tensor:
    """Return float32 [head_rope / 2] of transformers' YaRN."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    told = {
        "rope_parameters": their_rope(config),
        "head_dim": config.head_rope,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "standardize_rope_params": lambda: None,
    }
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](SimpleNamespace(**told), torch.device("cpu"))
    assert factor == 1.0, "the published mscale leaves cosines alone: all correction is in the logits' scale"
    return frequencies


def their_state(model: KimiK25) -> dict[str, Tensor]:
    """Return our weights under the names and in the order that transformers' modules keep in memory."""
    state: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        module, _, rest = name.partition(".")
        if module == "language":
            rest = rest.replace("experts.gate_up", "experts.gate_up_proj").removesuffix(".weight")
            rest = f"{rest}_proj" if rest.endswith("experts.down") else rest
            rest += ".weight" if name.endswith(".weight") else ""
            state[rest if rest.startswith("lm_head") else f"model.language_model.{rest}"] = weight
        elif module == "projector":
            rest = rest.replace("proj.0", "in_proj").replace("proj.2", "out_proj")
            state[f"model.mm_projector.{rest}"] = weight
        else:
            state.update(_tower(rest, weight, heads=model.config.vision.heads))
    return state


def assert_same_gradient(mine: Tensor, other: Tensor) -> None:
    """Fail where two weights' gradients differ by more than 1e-5 of the largest entry, or say nothing."""
    assert mine.grad is not None
    assert other.grad is not None
    highest = float(other.grad.abs().max())
    assert highest > 0.01
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-5 * highest)


def _tower(rest: str, weight: Tensor, *, heads: int) -> dict[str, Tensor]:
    to = "model.vision_tower."
    if "wqkv" in rest:
        prefix, kind = rest.replace("encoder.blocks", "layers").split("wqkv.")
        q, k, v = weight.chunk(3)
        parts = {"q": _halves(q, heads), "k": _halves(k, heads), "v": v}
        return {f"{to}{prefix}attn.{name}_proj.{kind}": part for name, part in parts.items()}
    for old, new in (
        ("encoder.blocks", "layers"),
        ("encoder.final", "final"),
        ("pos_emb.weight", "pos_emb.position_embeddings"),
        ("norm1", "norm2"),
        ("norm0", "norm1"),
        (".wo.", ".attn.proj."),
        ("fc1", "fc2"),
        ("fc0", "fc1"),
    ):
        rest = rest.replace(old, new)
    return {to + rest: weight}


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Return rows [H * D, ...] with each head's even rows before its odd ones: they turn halves, we turn neighbours."""
    each = rows.view(heads, -1, *rows.shape[1:])
    return torch.cat([each[:, 0::2], each[:, 1::2]], dim=1).reshape(rows.shape)
