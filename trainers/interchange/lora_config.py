"""Which low-rank adapters a model gets: plain data without torch, a part of a training config."""

from collections.abc import Mapping
from dataclasses import dataclass

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


def check_lora(config: LoraConfig) -> None:
    """Raise ValueError naming the field where no adapter can be built."""
    if config.rank < 1:
        raise ValueError(f"lora.rank is {config.rank}; it must be at least 1")
    if config.alpha <= 0:
        raise ValueError(f"lora.alpha is {config.alpha}; it must be above 0")
    if unknown := [word for word in config.targets if word not in TARGETS]:
        raise ValueError(f"lora.targets has {', '.join(unknown)}; it is some of {', '.join(TARGETS)}")
    if not config.targets:
        raise ValueError(f"lora.targets is empty; name some of {', '.join(TARGETS)}")
