"""What follows a step: records of all ranks in, clipped heads and moved balances out, and what was seen of both.

A rank may keep some of the layers only. Ranks then add up tables of the whole model's layers, in which each fills the
rows of its own.
"""

# Shapes: L layers of the whole model, H heads, X experts.

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from trainers.model.mla import MLA
from trainers.model.moe import MoE
from trainers.optim.qk_clip import clip_heads, query_projection


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a step showed, the same on every rank but for the seconds."""

    max_logit: float | None = None
    """Largest attention logit of any head, layer and rank, before QK-Clip; None where none was recorded."""
    clipped_heads: int = 0
    """Heads that QK-Clip scaled down."""
    expert_loads: tuple[tuple[int, ...], ...] = ()
    """Places that each expert had on all ranks, a row for each layer with experts."""
    backward_seconds: float = 0.0
    """Wall time of this rank in the backward pass of `step`."""
    optimizer_seconds: float = 0.0
    """Wall time of this rank in the reduction of gradients, the optimizer and what follows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """The trained layers of a whole model, in its order, by name."""

    attentions: dict[str, int]
    """Name -> heads."""
    experts: dict[str, int]
    """Name -> experts."""


def watched(model: nn.Module) -> Watched:
    """Return the layers to look at; call it while the model is whole, and after its weights were frozen."""
    attentions, experts = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, MLA) and query_projection(module).weight.requires_grad:
            attentions[name] = module.heads
        if isinstance(module, MoE) and module.gate.weight.requires_grad:
            experts[name] = len(module.last_load)
    return Watched(attentions=attentions, experts=experts)


def after_step(model: nn.Module, layers: Watched, *, threshold: float) -> Seen:
    """Clip heads over `threshold`, move the bias of routers against the loads, and return what was seen.

    Collective over all ranks. Frozen layers stay as they are.
    """
    max_logit, clipped = _clip(model, layers.attentions, threshold)
    return Seen(max_logit=max_logit, clipped_heads=clipped, expert_loads=_balance(model, layers.experts))


def _clip(model: nn.Module, layers: dict[str, int], threshold: float) -> tuple[float | None, int]:
    own = [(row, cast(MLA, module)) for row, module in _own(model, layers)]
    if not layers:
        return None, 0
    like = next(model.parameters())
    kind = torch.promote_types(like.dtype, torch.float32)
    largest = torch.full((len(layers), max(layers.values())), -math.inf, dtype=kind, device=like.device)
    for row, attention in own:
        largest[row] = attention.last_max_logit
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    for row, attention in own:
        clip_heads(attention, largest[row], threshold)
    top = float(largest.max())
    return top if math.isfinite(top) else None, int((largest > threshold).sum())


def _balance(model: nn.Module, layers: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    own = [(row, cast(MoE, module)) for row, module in _own(model, layers)]
    if not layers:
        return ()
    device = next(model.parameters()).device
    loads = torch.zeros(len(layers), max(layers.values()), dtype=torch.int64, device=device)
    for row, experts in own:
        loads[row] = experts.last_load
    torch.distributed.all_reduce(loads)
    for row, experts in own:
        experts.update_balance(loads[row])
    return tuple(map(tuple, loads.tolist()))


def _own(model: nn.Module, layers: dict[str, int]) -> list[tuple[int, nn.Module]]:
    """Return row and module of the layers that this rank keeps."""
    kept = dict(model.named_modules())
    return [(row, kept[name]) for row, name in enumerate(layers) if name in kept]
