"""Sizes of a model: our config in, `config.json` of the released layout out, and back.

The text model's keys are the released ones. For the tower, the keys that transformers' own classes read stand beside
those of the released code where the two have different names; either alone is enough to come back.
"""

from collections.abc import Mapping
from typing import Any

from k25_pipelines.errors import CheckpointError
from trainers.config import Config, LanguageConfig, ModelConfig, VisionConfig, parse
from trainers.interchange.packed import check_packing

NORM_EPS = 1e-5
BETAS = (32, 1)
"""YaRN's beta_fast and beta_slow, as in `trainers.model.rope`."""

LANGUAGE_KEYS: Mapping[str, str] = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "head_nope": "qk_nope_head_dim",
    "head_rope": "qk_rope_head_dim",
    "head_value": "v_head_dim",
    "experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "expert_mlp": "moe_intermediate_size",
    "dense_layers": "first_k_dense_replace",
    "routed_scale": "routed_scaling_factor",
}
"""Field of LanguageConfig -> key of the text config."""
VISION_KEYS: Mapping[str, tuple[str, ...]] = {
    "width": ("hidden_size", "vt_hidden_size"),
    "layers": ("num_hidden_layers", "vt_num_hidden_layers"),
    "heads": ("num_attention_heads", "vt_num_attention_heads"),
    "mlp": ("intermediate_size", "vt_intermediate_size"),
    "table": ("pos_emb_height", "init_pos_emb_height"),
    "max_frames": ("pos_emb_time", "init_pos_emb_time"),
    "patch": ("patch_size",),
}
"""Field of VisionConfig -> key of transformers' classes, key of the released code."""
TEXT_MUST_BE: Mapping[str, Any] = {
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "attention_bias": False,
    "moe_layer_freq": 1,
    "rms_norm_eps": NORM_EPS,
    "rope_interleave": True,
}
"""What our decoder can only be: written, and checked where it is read."""


def published_config(config: ModelConfig, special: Mapping[str, int], *, dtype: str) -> dict[str, Any]:
    """Return `config.json`.

    Args:
        config: the model's sizes; a contrastive head is left out.
        special: ids of the tokenizer's special tokens by name.
        dtype: of the weights, such as "float32".

    Raises:
        CheckpointError: the public classes know no such model.
    """
    text = _text(config.language, special)
    own = {"name": config.name, "balance_rate": config.language.balance_rate}
    common = {"dtype": dtype, "tie_word_embeddings": config.language.tied, "k25": own}
    common |= {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")}
    if config.vision is None:
        return {"architectures": ["DeepseekV3ForCausalLM"], **text, **common}
    return {
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "text_config": text,
        "vision_config": _tower(config.vision, text_width=config.language.width),
        "projection_hidden_size": config.vision.width,
        "projection_layer_norm_eps": NORM_EPS,
        "image_token_id": special["media_pad"],
        "video_token_id": config.language.vocab,  # outside the embedding, as in the release: replaced before look-up
        "vision_start_token_id": special["media_begin"],
        "vision_end_token_id": special["media_end"],
        "media_placeholder_token_id": special["media_pad"],
        "ignore_index": -100,
        "use_unified_vision_chunk": True,
        **common,
    }


def model_of(told: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes that a `config.json` tells, ours or the released one's.

    Raises:
        CheckpointError: a key is missing, or tells of a model that ours cannot be.
    """
    text = told.get("text_config", told)
    if not isinstance(text, Mapping):
        raise CheckpointError("config.json: text_config is no mapping; give the config of a Kimi K2 or K2.5 model")
    if packing := told.get("quantization_config") or text.get("quantization_config"):
        check_packing(packing)
    for key, wanted in TEXT_MUST_BE.items():
        if key in text and text[key] != wanted:
            raise CheckpointError(f"config.json: {key} is {text[key]!r}; this model has {wanted!r} only")
    own = told.get("k25", {})
    language = _language(text, tied=bool(told.get("tie_word_embeddings", False)), own=own)
    vision = _vision(told["vision_config"]) if "vision_config" in told else None
    return ModelConfig(name=own.get("name", "imported"), language=language, vision=vision)


def _text(c: LanguageConfig, special: Mapping[str, int]) -> dict[str, Any]:
    if c.experts and not c.shared_experts:
        raise CheckpointError("model.language.shared_experts is 0: the public classes know no experts without one")
    text = {theirs: getattr(c, own) for own, theirs in LANGUAGE_KEYS.items()}
    if not c.experts:  # dense layers all the way; the public class still wants a number of experts
        text |= {"first_k_dense_replace": c.layers, "n_routed_experts": 1, "n_shared_experts": 1}
    return {
        "model_type": "deepseek_v3",
        **text,
        **TEXT_MUST_BE,
        "num_key_value_heads": c.heads,
        "num_nextn_predict_layers": 0,
        "tie_word_embeddings": c.tied,
        "max_position_embeddings": int(c.context * c.yarn_factor),
        "rope_theta": c.rope_theta,
        "rope_scaling": _yarn(c),
        **{f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")},
    }


def _yarn(c: LanguageConfig) -> dict[str, Any] | None:
    if c.yarn_factor <= 1:
        return None
    return {
        "type": "yarn",
        "factor": c.yarn_factor,
        "original_max_position_embeddings": c.context,
        "beta_fast": BETAS[0],
        "beta_slow": BETAS[1],
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }


def _tower(c: VisionConfig, *, text_width: int) -> dict[str, Any]:
    sizes = {theirs: getattr(c, own) for own, keys in VISION_KEYS.items() for theirs in keys}
    return {
        "model_type": "kimi_k25_vision",
        **sizes,
        "pos_emb_width": c.table,
        "init_pos_emb_width": c.table,
        "merge_kernel_size": [c.merge, c.merge],
        "hidden_act": "gelu_pytorch_tanh",
        "mm_hidden_size": c.width,
        "text_hidden_size": text_width,
        "pos_emb_type": "divided_fixed",
        "merge_type": "sd2_tpool",
        "video_attn_type": "spatial_temporal",
        "mm_projector_type": "patchmerger",
        "projector_hidden_act": "gelu",
        "projector_ln_eps": NORM_EPS,
    }


def _language(text: Mapping[str, Any], *, tied: bool, own: Mapping[str, Any]) -> LanguageConfig:
    sizes = {field: _told(text, key) for field, key in LANGUAGE_KEYS.items()}
    if sizes["dense_layers"] >= sizes["layers"]:  # ours says so by having no experts
        sizes = {field: sizes[field] for field in sizes if field not in _OF_EXPERTS} | {"experts": 0}
    rope = text.get("rope_parameters") or {}
    scaling = text.get("rope_scaling") or (rope if _kind(rope) == "yarn" else None)
    theta = float(text["rope_theta"] if "rope_theta" in text else _told(rope, "rope_theta"))
    rates = {"balance_rate": own["balance_rate"]} if "balance_rate" in own else {}
    reach = _stretched(scaling) if scaling else {"context": _told(text, "max_position_embeddings")}
    return _parsed(LanguageConfig, {**sizes, **reach, **rates, "rope_theta": theta, "tied": tied})


_OF_EXPERTS = ("experts", "experts_per_token", "shared_experts", "expert_mlp", "dense_layers", "routed_scale")


def _stretched(scaling: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {"beta_fast": BETAS[0], "beta_slow": BETAS[1], "mscale": 1, "mscale_all_dim": 1}
    if _kind(scaling) != "yarn":
        raise CheckpointError(f"config.json: rope_scaling is of type {_kind(scaling)!r}; this model knows yarn only")
    for key, value in wanted.items():
        if scaling.get(key, value) != value:
            raise CheckpointError(f"config.json: rope_scaling.{key} is {scaling[key]!r}; this model has {value} only")
    return {
        "context": _told(scaling, "original_max_position_embeddings"),
        "yarn_factor": float(_told(scaling, "factor")),
    }


def _kind(scaling: Mapping[str, Any]) -> str | None:
    return scaling.get("type") or scaling.get("rope_type")


def _vision(told: Mapping[str, Any]) -> VisionConfig:
    if told.get("merge_type", "sd2_tpool") != "sd2_tpool":
        raise CheckpointError(f"config.json: merge_type is {told['merge_type']!r}; this model has 'sd2_tpool' only")
    sizes = {field: _told(told, *keys) for field, keys in VISION_KEYS.items()}
    merge = set(_told(told, "merge_kernel_size"))
    if len(merge) != 1:
        raise CheckpointError(f"config.json: merge_kernel_size is {told['merge_kernel_size']}; it must be a square")
    return _parsed(VisionConfig, {**sizes, "merge": merge.pop()})


def _parsed(kind: type[Config], sizes: Mapping[str, Any]) -> Config:
    try:
        return parse(kind, sizes)
    except ValueError as error:
        raise CheckpointError(f"config.json, as {kind.__name__}: {error}") from error


def _told(told: Mapping[str, Any], *keys: str) -> Any:
    for key in keys:
        if key in told:
            return told[key]
    raise CheckpointError(f"config.json lacks {' or '.join(keys)}; complete it, or give the folder of a K2.5 model")
