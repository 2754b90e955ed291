"""Sizes of a model: our config in, `config.json` of the released layout out, and back.

The text model's keys are the released ones. For the tower, the keys that transformers' own classes read stand beside
those of the released code where the two have different names; either alone is enough to come back.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

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
SAME_IN_TOWER = (
    ("pos_emb_height", "pos_emb_width"),
    ("init_pos_emb_height", "init_pos_emb_width"),
    ("hidden_size", "mm_hidden_size"),
    ("vt_hidden_size", "mm_hidden_size"),
)
"""More keys of the tower that are the same number in every model of ours."""
MOST_FRACTION = 1e300
"""Of a number in a file; a whole number beyond it may be none that a float holds."""
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
    text = _mapping(told, "text_config") if "text_config" in told else told
    if packing := _mapping(told, "quantization_config") or _mapping(text, "quantization_config"):
        check_packing(packing)
    for key, wanted in TEXT_MUST_BE.items():
        if key in text and text[key] != wanted:
            raise CheckpointError(f"config.json: {key} is {text[key]!r}; this model has {wanted!r} only")
    own = _mapping(told, "k25")
    language = _language(text, tied=_tied(told, text), own=own)
    vision = _vision(_mapping(told, "vision_config"), language) if "vision_config" in told else None
    name = own.get("name", "imported")
    if not isinstance(name, str):
        _refuse("k25.name", name, "words")
    return ModelConfig(name=name, language=language, vision=vision)


def check_media_token(told: Mapping[str, Any], media_pad: int) -> None:
    """Raise CheckpointError where a `config.json` and its tokenizer have different ids for the place of a medium."""
    for key in ("media_placeholder_token_id", "image_token_id"):
        if told.get(key, media_pad) != media_pad:
            raise CheckpointError(
                f"config.json: {key} is {told[key]!r}, and the tokenizer's media_pad token is {media_pad}; "
                "name the model's own tokenizer with --tokenizer"
            )


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
    layers, dense = (_number(text, LANGUAGE_KEYS[field], field) for field in ("layers", "dense_layers"))
    left_out = _OF_EXPERTS if dense >= layers else ()  # ours says so by having no experts
    sizes = {field: _number(text, key, field) for field, key in LANGUAGE_KEYS.items() if field not in left_out}
    sizes |= dict.fromkeys(left_out[:1], 0)
    rope = _mapping(text, "rope_parameters")
    scaling = _mapping(text, "rope_scaling") or (rope if _kind(rope) == "yarn" else None)
    theta = _number(text if "rope_theta" in text else rope, "rope_theta", "rope_theta")
    rates = {"balance_rate": _number(own, "balance_rate", "balance_rate")} if "balance_rate" in own else {}
    reach = _stretched(scaling) if scaling else {"context": _number(text, "max_position_embeddings", "context")}
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
        "context": _number(scaling, "original_max_position_embeddings", "context"),
        "yarn_factor": _number(scaling, "factor", "yarn_factor"),
    }


_FRACTIONS = ("routed_scale", "rope_theta", "yarn_factor", "balance_rate")
_MAY_BE_NULL = ("rope_scaling", "rope_parameters", "quantization_config", "k25")


def _kind(scaling: Mapping[str, Any]) -> str | None:
    return scaling.get("type") or scaling.get("rope_type")


def _vision(told: Mapping[str, Any], language: LanguageConfig) -> VisionConfig:
    if told.get("merge_type", "sd2_tpool") != "sd2_tpool":
        raise CheckpointError(f"config.json: merge_type is {told['merge_type']!r}; this model has 'sd2_tpool' only")
    for keys in (*VISION_KEYS.values(), *SAME_IN_TOWER):
        _same({f"vision_config.{key}": told[key] for key in keys if key in told})
    if "text_hidden_size" in told:
        _same({"vision_config.text_hidden_size": told["text_hidden_size"], "hidden_size": language.width})
    sizes = {field: _told(told, *keys) for field, keys in VISION_KEYS.items()}
    merge = _told(told, "merge_kernel_size")
    if not (isinstance(merge, list) and len(merge) == 2 and merge[0] == merge[1]):
        _refuse("merge_kernel_size", merge, "a square, such as [2, 2]")
    return _parsed(VisionConfig, {**sizes, "merge": merge[0]})


def _tied(told: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    key = "tie_word_embeddings"
    found = {where: part[key] for where, part in ((key, told), (f"text_config.{key}", text)) if key in part}
    _same(found)
    tied = next(iter(found.values()), False)
    return tied if isinstance(tied, bool) else _refuse(key, tied, "true or false")


def _same(found: Mapping[str, Any]) -> None:
    """Raise CheckpointError where two keys that tell the same tell different values."""
    (first, value), *others = found.items() or [("", None)]
    for key, other in others:
        if other != value:
            raise CheckpointError(f"config.json: {first} is {value!r} and {key} is {other!r}; make them the same")


def _mapping(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of the config, empty where it is not there."""
    part = told.get(key)
    if part is None and key in _MAY_BE_NULL:
        return {}
    return part if isinstance(part, Mapping) else _refuse(key, part, "a mapping, as in a Kimi K2 or K2.5 model")


def _number(told: Mapping[str, Any], key: str, field: str) -> Any:
    """Return the value of a key as a field of LanguageConfig takes it."""
    value = _told(told, key)
    if field == "q_rank" and value is None:
        return None
    if field not in _FRACTIONS:
        return value if type(value) is int else _refuse(key, value, "a whole number")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < MOST_FRACTION else _refuse(key, value, "a finite number")


def _refuse(key: str, value: object, wanted: str) -> NoReturn:
    raise CheckpointError(f"config.json: {key} is {value!r}; it must be {wanted}: correct it, or copy the folder anew")


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
