"""Which low-rank adapters a model gets: plain data without torch, a part of a training config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.config import ModelConfig

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("q_a_proj", "q_b_proj", "q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "projector": ("proj.0", "proj.2"),
}
"""Word in a config -> the linear layers it means: MLA's, those of dense layers and shared experts, the projector's.
Routed experts are stacked and keep their weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """A layer's weight W becomes W + alpha / rank * B A, with A [rank, in], B [out, rank]; only A and B are trained."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "mlp", "projector")
    """Words of TARGETS."""

    @property
    def scale(self) -> float:
        """Return what the product of the adapters is multiplied by."""
        return self.alpha / self.rank


def check_lora(config: LoraConfig, model: "ModelConfig | None" = None) -> None:
    """Raise ValueError naming the field where no adapter can be built, in a model's layers if it is given."""
    if config.rank < 1:
        raise ValueError(f"lora.rank is {config.rank}; it must be at least 1")
    if not (math.isfinite(config.alpha) and config.alpha > 0):
        raise ValueError(f"lora.alpha is {config.alpha}; it must be above 0 and finite")
    if unknown := [word for word in config.targets if word not in TARGETS]:
        raise ValueError(f"lora.targets has {', '.join(unknown)}; it is some of {', '.join(TARGETS)}")
    if not config.targets:
        raise ValueError(f"lora.targets is empty; name some of {', '.join(TARGETS)}")
    if model:
        sides = _sides(model)
        for name in (name for word in config.targets for name in TARGETS[word] if name in sides):
            check_rank(config, name, sides[name])


def check_rank(config: LoraConfig, name: str, side: int) -> None:
    """Raise ValueError where a layer's smaller side is below the rank: adapters would be larger than its weight."""
    if config.rank > side:
        raise ValueError(f"lora.rank is {config.rank}; it must be at most {side}, the smaller side of {name}")


def _sides(model: "ModelConfig") -> dict[str, int]:
    """Return the smaller side of each layer that adapters can stand beside; of several, the smallest."""
    c = model.language
    heads_qk, heads_kv = c.heads * (c.head_nope + c.head_rope), c.heads * (c.head_nope + c.head_value)
    sides = {
        "kv_a_proj_with_mqa": min(c.width, c.kv_rank + c.head_rope),
        "kv_b_proj": min(c.kv_rank, heads_kv),
        "o_proj": min(c.heads * c.head_value, c.width),
    }
    if c.q_rank is None:
        sides["q_proj"] = min(c.width, heads_qk)
    else:
        sides |= {"q_a_proj": min(c.width, c.q_rank), "q_b_proj": min(c.q_rank, heads_qk)}
    mlps = [c.mlp] if c.dense_layers or not c.experts else []
    mlps += [c.shared_experts * c.expert_mlp] if c.experts and c.shared_experts else []
    sides |= {name: min(c.width, *mlps) for name in TARGETS["mlp"] if mlps}
    if vision := model.vision:
        merged = vision.width * vision.merge**2
        sides |= {"proj.0": merged, "proj.2": min(merged, c.width)}
    return sides
