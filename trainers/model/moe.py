"""Mixture of experts: hidden states in, the weighted sum of each place's experts and of the shared one out.

Scores are sigmoids. A bias that no gradient touches is added for the choice of experts only; after each step it moves
a little towards an even load. The weights of the chosen are their plain scores, normalised and scaled.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2, equations 12 to 16, with one group of experts as in Kimi K2.
"""

# Shapes: N places, D width, X experts, k experts of a place, I hidden width of an expert.

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.config import LanguageConfig
from trainers.model.mlp import GatedMLP, swiglu

TINY = 1e-20
"""Added to the sum of a place's scores: all of them may be 0 in float32."""


class Gate(nn.Module):
    """The router's directions, float [X, D], and the bias of the choice, float32 [X], a buffer."""

    e_score_correction_bias: Tensor

    def __init__(self, width: int, experts: int):
        """Build both."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, width))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))


class Experts(nn.Module):
    """All experts' matrices, stacked: `gate_up` [X, 2 I, D] with the rows of the gate first, `down` [X, D, I]."""

    def __init__(self, width: int, experts: int, hidden: int):
        """Build the stacks."""
        super().__init__()
        self.gate_up = nn.Parameter(torch.zeros(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.zeros(experts, width, hidden))


Dispatcher = Callable[[Tensor, Tensor, Tensor, Experts], Tensor]
"""(x [N, D], indices [N, k], weights [N, k], experts) -> the routed experts' sum [N, D]."""


class MoE(nn.Module):
    """A layer's experts. `last_load`, int64 [X], counts the real places that each expert had in the last forward."""

    recompute: frozenset[str] = frozenset()
    last_load: Tensor

    def __init__(self, config: LanguageConfig):
        """Build router, routed experts and the shared one, which is one MLP of `shared_experts` times their width."""
        super().__init__()
        self.experts_per_token, self.routed_scale = config.experts_per_token, config.routed_scale
        self.balance_rate = config.balance_rate
        self.dispatcher: Dispatcher | None = None
        self.keep_records = False
        self.gate = Gate(config.width, config.experts)
        self.experts = Experts(config.width, config.experts, config.expert_mlp)
        shared = config.shared_experts * config.expert_mlp
        self.shared_experts = GatedMLP(config.width, shared) if shared else None
        self.register_buffer("last_load", torch.zeros(config.experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Return float [N, D].

        Args:
            x: float [N, D].
            real: bool [N] places that the load counts; None: all.
        """
        indices, weights = self.route(x)
        self._record(indices if real is None else indices[real])
        if self.dispatcher:
            routed = self.dispatcher(x, indices, weights, self.experts)
        else:
            again = "swiglu" in self.recompute
            routed = experts_forward(x, indices, weights, self.experts.gate_up, self.experts.down, again=again)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each place's experts, int64 [N, k], and their weights, float [N, k]; in float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            scores = functional.linear(x.to(wide), self.gate.weight.to(wide)).sigmoid()
        choice = scores.detach() + self.gate.e_score_correction_bias
        indices = choice.topk(self.experts_per_token, dim=-1).indices
        chosen = scores.gather(1, indices)
        return indices, chosen / (chosen.sum(-1, keepdim=True) + TINY) * self.routed_scale

    @torch.no_grad()
    def update_balance(self, load_total: Tensor) -> None:
        """Move the bias of experts above the mean load down by `balance_rate`, of those below it up.

        Args:
            load_total: [X] places each expert had in the step, summed over ranks and forwards.
        """
        load = load_total.to(self.gate.e_score_correction_bias)
        self.gate.e_score_correction_bias += self.balance_rate * (load.mean() - load).sign()

    @torch.no_grad()
    def _record(self, indices: Tensor) -> None:
        load = torch.bincount(indices.flatten(), minlength=len(self.last_load))
        self.last_load.copy_(load + self.last_load if self.keep_records else load)


def experts_forward(
    x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *, again: bool = False
) -> Tensor:
    """Return the weighted sum of each place's experts, float [N, D].

    Places are sorted by expert, each expert multiplies its own in one go, and each place gathers its k answers. No
    place is dropped, and nothing depends on the order in which threads finish.

    Args:
        x: float [N, D].
        indices: int64 [N, k] into the stacks.
        weights: float [N, k].
        gate_up: float [X, 2 I, D].
        down: float [X, D, I].
        again: whether the backward pass makes the products inside SwiGLU again.
    """
    chosen = indices.flatten()
    order = chosen.argsort(stable=True)
    rows = x.index_select(0, order // indices.shape[1])
    counts = torch.bincount(chosen, minlength=len(gate_up))
    answers = sorted_experts(rows, counts, gate_up, down, again=again)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    answers = answers.index_select(0, inverse).view(*indices.shape, answers.shape[-1])
    return (answers * weights.to(answers.dtype)[..., None]).sum(1)


def sorted_experts(rows: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor, *, again: bool = False) -> Tensor:
    """Return what each expert makes of its rows, float [n, D].

    Args:
        rows: float [n, D], the first `counts[0]` for expert 0, and so on.
        counts: int64 [X], summing to n.
        gate_up: float [X, 2 I, D].
        down: float [X, D, I].
        again: whether the backward pass makes the products inside SwiGLU again.
    """
    if torch.is_autocast_enabled(rows.device.type):
        kind = torch.get_autocast_dtype(rows.device.type)
        rows, gate_up, down = rows.to(kind), gate_up.to(kind), down.to(kind)
    gate, up = _products(rows, counts, gate_up).chunk(2, dim=-1)
    return swiglu(gate, up, lambda product: _products(product, counts, down), again=again)


def _products(rows: Tensor, counts: Tensor, stack: Tensor) -> Tensor:
    """Return rows times the transpose of their expert's matrix: in one call where torch has one for them.

    It wants strides of whole 16 bytes, and on a GPU bfloat16. On CPU it gives the loop's bits in 0.92 to 0.98 of the
    loop's time at the demo's sizes.
    """
    known = rows.dtype == torch.bfloat16 or (rows.dtype == torch.float32 and not rows.is_cuda)
    if known and len(rows) and all(side * rows.element_size() % 16 == 0 for side in stack.shape[1:]):
        return functional.grouped_mm(rows, stack.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    parts = rows.split(counts.tolist())
    return torch.cat([functional.linear(part, one) for part, one in zip(parts, stack.unbind(0), strict=True)])
