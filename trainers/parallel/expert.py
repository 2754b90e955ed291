"""Expert parallelism: each rank keeps some of a layer's experts; tokens travel to their experts and answers back.

`spread_experts` turns a built model into this rank's part of it. Forward and backward are then collective: every rank
of the group makes the same calls, with no tokens if it has none.

The gradient of a rank's experts is whole after backward: it sums over the tokens of all ranks of the group. Whoever
reduces gradients must leave `spread_parameters` out of the sum over this group, and sum them only over ranks that keep
the same experts. All other weights have a part on each rank, as without this.
"""

# Shapes: N tokens here, D width, X experts, k of them a token, R ranks, L = X / R experts of a rank, n rows received.

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.model.moe import Experts, MoE, sorted_experts
from trainers.parallel.exchange import Exchange, Group, exchange, rank_in, ranks_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatch:
    """A layer's way to experts on other ranks: what `MoE.dispatcher` is set to."""

    group: Group
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    """float [] 0, added to tokens that need no gradient: this rank must join in the others' backward all the same."""

    def __call__(self, x: Tensor, indices: Tensor, weights: Tensor, experts: Experts) -> Tensor:
        """Return the weighted sum of each token's experts, float [N, D].

        Args:
            x: float [N, D].
            indices: int64 [N, k] of all X experts.
            weights: float [N, k].
            experts: this rank's stacks, [L, ...].
        """
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x + self.anchor.to(x)
        ranks, chosen = ranks_of(self.group), indices.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=ranks * len(experts.gate_up)).view(ranks, -1)
        arriving = exchange(counts, [1] * ranks, [1] * ranks, self.group)
        there, here = counts.sum(1).tolist(), arriving.sum(1).tolist()
        rows = Exchange.apply(x.index_select(0, order // indices.shape[1]), there, here, self.group)
        answers = Exchange.apply(_answers(rows, arriving, experts), here, there, self.group)
        back = answers.index_select(0, _inverse(order)).view(*indices.shape, x.shape[1])
        return (back * weights.to(back.dtype)[..., None]).sum(1)


def spread_experts(model: nn.Module, group: Group = None) -> None:
    """Keep of every layer's experts those of this rank, in place: the r-th run of X / R.

    Args:
        model: with all experts, the same on every rank; call before an optimizer takes its weights.
        group: the ranks that share one set of experts.

    Raises:
        ValueError: a layer's experts cannot be shared out evenly.
    """
    ranks, rank = ranks_of(group), rank_in(group)
    for name, layer in _layers(model):
        num_experts = len(layer.experts.gate_up)
        if num_experts % ranks:
            raise ValueError(f"{name} has {num_experts} experts for {ranks} ranks; config.language.experts must divide")
        local = num_experts // ranks
        for each in ("gate_up", "down"):
            whole = getattr(layer.experts, each)
            part = whole.detach()[rank * local : (rank + 1) * local].clone()
            setattr(layer.experts, each, nn.Parameter(part, requires_grad=whole.requires_grad))
        layer.dispatcher = Dispatch(group=group, anchor=torch.zeros((), device=part.device, requires_grad=True))


def spread_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that differ between the ranks of the expert group, by name."""
    kept = [(f"{name}.experts", layer.experts) for name, layer in _layers(model) if layer.dispatcher is not None]
    return {f"{name}.{each}": weight for name, experts in kept for each, weight in experts.named_parameters()}


def gathered(part: Tensor, group: Group = None) -> Tensor:
    """Return the whole stack [X, ...] of which each rank has a part [L, ...]: weights, gradients, optimizer state."""
    if ranks_of(group) == 1:
        return part
    whole = part.new_empty(ranks_of(group) * len(part), *part.shape[1:])
    dist.all_gather_single(whole, part.contiguous(), group=group)
    return whole


def anchors(model: nn.Module) -> list[Tensor]:
    """Return what a partial backward must ask a gradient for, beside weights, to join in the exchanges of all ranks."""
    return [layer.dispatcher.anchor for _, layer in _layers(model) if isinstance(layer.dispatcher, Dispatch)]


def _layers(model: nn.Module) -> list[tuple[str, MoE]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MoE)]


def _answers(rows: Tensor, arriving: Tensor, experts: Experts) -> Tensor:
    """Return what this rank's experts make of rows [n, D], which stand by rank, and for each rank by expert.

    Args:
        rows: float [n, D].
        arriving: int64 [R, L] rows of each rank for each expert.
        experts: this rank's.
    """
    ranks, local = arriving.shape
    numbers = torch.arange(local, device=rows.device).repeat(ranks)
    order = numbers.repeat_interleave(arriving.flatten()).argsort(stable=True)
    answers = sorted_experts(rows.index_select(0, order), arriving.sum(0), experts.gate_up, experts.down)
    return answers.index_select(0, _inverse(order))


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
