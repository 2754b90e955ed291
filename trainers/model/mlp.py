"""The gated MLP of the decoder: hidden states in, SwiGLU of them out; a dense layer's, or the shared expert."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from trainers.model.recompute import forgetting


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    recompute: frozenset[str] = frozenset()

    def __init__(self, width: int, hidden: int):
        """Build the three matrices."""
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [N, width]."""
        return swiglu(self.gate_proj(x), self.up_proj(x), self.down_proj, again="swiglu" in self.recompute)


def swiglu(gate: Tensor, up: Tensor, down: Callable[[Tensor], Tensor], *, again: bool) -> Tensor:
    """Return down(silu(gate) * up); `again`: the backward pass keeps gate and up only, and makes the products again."""
    turned_on = functional.silu(gate)
    with forgetting(turned_on, lambda: functional.silu(gate), when=again):
        product = turned_on * up
    with forgetting(product, lambda: functional.silu(gate) * up, when=again):
        return down(product)
