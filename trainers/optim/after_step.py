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
    """The layers of a whole model, in its order, by name."""

    attentions: dict[str, int]
    """Name -> heads."""
    experts: dict[str, int]
    """Name -> experts."""
    trained: frozenset[str]
    """Names of those whose queries or router are trained: of the others it is only told what they did."""


def watched(model: nn.Module) -> Watched:
    """Return the layers to look at; call it while the model is whole, and after its weights were frozen."""
    attentions, experts, trained = {}, {}, set()
    for name, module in model.named_modules():
        if isinstance(module, MLA):
            attentions[name], decides = module.heads, query_projection(module).weight
        elif isinstance(module, MoE):
            experts[name], decides = len(module.last_load), module.gate.weight
        else:
            continue
        if decides.requires_grad:
            trained.add(name)
    return Watched(attentions=attentions, experts=experts, trained=frozenset(trained))


def after_step(model: nn.Module, layers: Watched, *, threshold: float) -> Seen:
    """Clip trained heads over `threshold`, move trained routers' biases against the loads; return what was seen.

    Collective over all ranks. Frozen layers stay as they are.
    """
    max_logit, clipped = _clip(model, layers, threshold)
    return Seen(max_logit=max_logit, clipped_heads=clipped, expert_loads=_balance(model, layers))


def _clip(model: nn.Module, layers: Watched, threshold: float) -> tuple[float | None, int]:
    names = layers.attentions
    if not names:
        return None, 0
    like = next(model.parameters())
    kind = torch.promote_types(like.dtype, torch.float32)
    largest = torch.full((len(names), max(names.values())), -math.inf, dtype=kind, device=like.device)
    own = [(row, name, cast(MLA, module)) for row, name, module in _own(model, names)]
    for row, _, attention in own:
        largest[row] = attention.last_max_logit
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    for row, name, attention in own:
        if name in layers.trained:
            clip_heads(attention, largest[row], threshold)
    moves = [name in layers.trained for name in names]
    top = float(largest.max())
    return top if math.isfinite(top) else None, int((largest[moves] > threshold).sum())


def _balance(model: nn.Module, layers: Watched) -> tuple[tuple[int, ...], ...]:
    names = layers.experts
    if not names:
        return ()
    device = next(model.parameters()).device
    loads = torch.zeros(len(names), max(names.values()), dtype=torch.int64, device=device)
    own = [(row, name, cast(MoE, module)) for row, name, module in _own(model, names)]
    for row, _, experts in own:
        loads[row] = experts.last_load
    torch.distributed.all_reduce(loads)
    for row, name, experts in own:
        if name in layers.trained:
            experts.update_balance(loads[row])
    return tuple(map(tuple, loads.tolist()))


def _own(model: nn.Module, layers: dict[str, int]) -> list[tuple[int, str, nn.Module]]:
    """Return row, name and module of the layers that this rank keeps."""
    kept = dict(model.named_modules())
    return [(row, name, kept[name]) for row, name in enumerate(layers) if name in kept]
