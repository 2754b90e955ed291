"""The matrix products of a training step: what they are, and what they cost alone.

`recorded` looks at a step and notes the shape of each product; `seconds_alone` does the same products again, nothing
else, on operands that lie ready. Attention counts by the pairs of places that really see each other: neither the half
under the causal mask nor fill is counted as work, nor what a backward pass or a recomputation makes a second time.
"""

# Shapes: m x k by k x n; n pairs of places, H heads, D width of queries and keys, E of values.

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[int, int, int, int]
"""(batch, m, k, n)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Products:
    """All products of a step."""

    matrices: Counter[Shape]
    """Shape -> how often."""
    attention: Counter[Shape]
    """The same for the rectangles of causal attention, of which `seen` is work."""
    seen: float
    """Pairs that see each other over pairs in the rectangles."""

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return _flops(self.matrices) + self.seen * _flops(self.attention)


def recorded(step: Callable[[], object], *, pairs: float, values: int) -> Products:
    """Run a step, forward and backward, and return its products.

    Args:
        step: what to look at.
        pairs: pairs of places that see each other causally, times heads, summed over all layers.
        values: width of a decoder head's values, which the kernel is given with zeros beside them.
    """
    with _Looking(values) as looking:
        step()
    cells = sum(batch * m * n * times for (batch, m, _, n), times in looking.queries.items())
    return Products(matrices=looking.matrices, attention=looking.attention, seen=pairs / cells if cells else 0.0)


def seconds_alone(products: Products, operands: dict[Shape, tuple[Tensor, Tensor]]) -> float:
    """Return the CPU seconds of this thread for all products, the rectangles' in proportion to what is seen.

    Args:
        products: of a step.
        operands: kept between calls: the first call makes them.
    """
    spent = [0.0, 0.0]
    for kind, shapes in enumerate((products.matrices, products.attention)):
        for shape, times in shapes.items():
            batch, m, k, n = shape
            if shape not in operands:
                operands[shape] = torch.randn(batch, m, k), torch.randn(batch, k, n)
            left, right = operands[shape] if batch > 1 else (each[0] for each in operands[shape])
            started = time.thread_time()
            for _ in range(times):
                torch.matmul(left, right)
            spent[kind] += time.thread_time() - started
    return spent[0] + products.seen * spent[1]


def _flops(shapes: Counter[Shape]) -> float:
    return float(sum(2 * batch * m * k * n * times for (batch, m, k, n), times in shapes.items()))


class _Looking(TorchDispatchMode):
    """Notes every product."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values
        self.matrices: Counter[Shape] = Counter()
        self.attention: Counter[Shape] = Counter()
        self.queries: Counter[Shape] = Counter()
        """The rectangles of queries by keys, once each."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            left, right = args[:2] if name == "mm" else args[1:3]
            self._add(1, *left.shape, right.shape[1])
        elif name == "_grouped_mm":
            self._grouped(*args, **(kwargs or {}))
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            self._attended(args[0], args[2], is_causal=args[4] if len(args) > 4 else False, times=1)
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            self._attended(args[1], args[3], is_causal=args[7], times=2)
        return func(*args, **(kwargs or {}))

    def _add(self, *shape: int) -> None:
        if min(shape):
            self.matrices[shape] += 1  # type: ignore[index]

    def _grouped(self, left: Tensor, right: Tensor, offs: Tensor, *rest: Any, **options: Any) -> None:
        counts = torch.diff(offs, prepend=offs.new_zeros(1)).tolist()
        for count in counts:
            if right.ndim == 3:
                self._add(1, count, left.shape[1], right.shape[2])
            else:
                self._add(1, left.shape[0], count, right.shape[1])

    def _attended(self, q: Tensor, v: Tensor, *, is_causal: bool, times: int) -> None:
        batch, length, width = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
        kept = self.attention if is_causal else self.matrices
        kept[batch, length, width, length] += times
        kept[batch, length, length, self.values if is_causal else v.shape[3]] += times
        if is_causal and times == 1:
            self.queries[batch, length, width, length] += 1
