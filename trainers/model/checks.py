"""Sizes of a model in; a refusal that names the field out, where no such model can work. Plain data, no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.config import ContrastiveConfig, LanguageConfig, ModelConfig, VisionConfig


def check_model(config: "ModelConfig") -> None:
    """Raise ValueError naming the field where a model of these sizes cannot be built or cannot work."""
    where = f"model {config.name}"
    check_language(config.language, f"{where}: language")
    if config.vision:
        _check_vision(config.vision, f"{where}: vision")
    if config.contrastive:
        _check_contrastive(config.contrastive, f"{where}: contrastive")
        if not config.vision:
            raise ValueError(f"{where} has a contrastive head and no vision tower: give vision its sizes")


def check_language(config: "LanguageConfig", where: str = "language") -> None:
    """Raise ValueError naming the field of a decoder that cannot work."""
    _positive(config, where, "width", "layers", "heads", "mlp", "vocab", "context")
    _positive(config, where, "kv_rank", "head_nope", "head_rope", "head_value")
    if config.q_rank is not None:
        _positive(config, where, "q_rank")
    if config.head_rope % 2:
        _refuse(where, "head_rope", config.head_rope, "an even number: channels turn in pairs")
    if config.rope_theta <= 1:
        _refuse(where, "rope_theta", config.rope_theta, "above 1")
    if config.yarn_factor < 1:
        _refuse(where, "yarn_factor", config.yarn_factor, "at least 1: it only stretches a context")
    if config.experts < 0:
        _refuse(where, "experts", config.experts, "0 for a dense model, or the number of routed experts")
    if config.experts:
        _check_experts(config, where)


def check_context(config: "LanguageConfig", tokens: int, where: str = "language") -> None:
    """Raise ValueError where documents of `tokens` reach beyond the positions that the config stretches to."""
    reach = int(config.context * config.yarn_factor)
    if tokens > reach:
        raise ValueError(
            f"{where}.context is {config.context} and yarn_factor {config.yarn_factor:g}: positions reach "
            f"{reach} tokens, and {tokens} are asked for; give a yarn_factor of {-(-tokens // config.context)}"
        )


def _check_experts(config: "LanguageConfig", where: str) -> None:
    _positive(config, where, "experts_per_token", "expert_mlp")
    if config.experts_per_token > config.experts:
        _refuse(where, "experts_per_token", config.experts_per_token, f"at most experts, which is {config.experts}")
    if config.shared_experts < 0:
        _refuse(where, "shared_experts", config.shared_experts, "0 or more")
    if not 0 <= config.dense_layers < config.layers:
        allowed = f"0 to {config.layers - 1} of {config.layers} layers, or set experts to 0"
        _refuse(where, "dense_layers", config.dense_layers, allowed)
    if config.routed_scale <= 0:
        _refuse(where, "routed_scale", config.routed_scale, "above 0")
    if config.balance_rate < 0:
        _refuse(where, "balance_rate", config.balance_rate, "0 (never balanced) or more")


def _check_vision(config: "VisionConfig", where: str) -> None:
    _positive(config, where, "width", "layers", "heads", "mlp", "table", "patch", "merge", "max_frames")
    if config.width % config.heads:
        _refuse(where, "width", config.width, f"a multiple of heads, which is {config.heads}")
    if config.width // config.heads % 4:
        _refuse(where, "width", config.width, "4 times something for each head: pairs turn by column and by row")


def _check_contrastive(config: "ContrastiveConfig", where: str) -> None:
    _positive(config, where, "width", "layers", "heads")
    if config.width % (2 * config.heads):
        _refuse(where, "width", config.width, f"a multiple of twice heads, which is {config.heads}")


def _positive(config: object, where: str, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            _refuse(where, name, getattr(config, name), "at least 1")


def _refuse(where: str, field: str, value: float, allowed: str) -> None:
    raise ValueError(f"{where}.{field} is {value}; it must be {allowed}")
