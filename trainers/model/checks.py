"""Sizes of a model in; a refusal that names the field out, where no such model can work. Plain data, no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.config import ContrastiveConfig, LanguageConfig, ModelConfig, VisionConfig

MOST = 2**31 - 1
"""No size and no reach of positions is larger."""
MOST_THETA = 1e12
"""The slowest channel then turns once in thousands of times `MOST` positions."""
MOST_SCALE = 1e6
MOST_BALANCE = 1.0
"""An expert's score lies between 0 and 1."""


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
    if not 1 < config.rope_theta <= MOST_THETA:
        _refuse(where, "rope_theta", config.rope_theta, f"above 1 and at most {MOST_THETA:g}")
    if not 1 <= config.yarn_factor <= MOST / config.context:
        most = f"at most {MOST / config.context:g}: positions end at {MOST}"
        _refuse(where, "yarn_factor", config.yarn_factor, f"at least 1: it only stretches a context, and {most}")
    if not 0 <= config.experts <= MOST:
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
    if not 0 <= config.shared_experts <= MOST:
        _refuse(where, "shared_experts", config.shared_experts, "0 or more")
    if not 0 <= config.dense_layers < config.layers:
        allowed = f"0 to {config.layers - 1} of {config.layers} layers, or set experts to 0"
        _refuse(where, "dense_layers", config.dense_layers, allowed)
    if not 0 < config.routed_scale <= MOST_SCALE:
        _refuse(where, "routed_scale", config.routed_scale, f"above 0 and at most {MOST_SCALE:g}")
    if not 0 <= config.balance_rate <= MOST_BALANCE:
        most = f"at most {MOST_BALANCE:g}: scores lie between 0 and 1"
        _refuse(where, "balance_rate", config.balance_rate, f"0 (never balanced) or more, and {most}")


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
        if getattr(config, name) > MOST:
            _refuse(where, name, getattr(config, name), f"at most {MOST}")


def _refuse(where: str, field: str, value: float, allowed: str) -> None:
    raise ValueError(f"{where}.{field} is {value}; it must be {allowed}")
