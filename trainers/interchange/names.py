"""Names and layout of weights: ours in, the released checkpoint's out, and back. One table of rules.

The two differ by a prefix, and in the routed experts, which we keep stacked and the released files keep one by one.
A model without a tower goes by the names of the text-only release. The contrastive head of stage 1a is in neither.
"""

# Shapes: X experts, I hidden width of an expert, D width.

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from k25_pipelines.errors import CheckpointError

PREFIXES: Mapping[str, str] = {
    "vision.": "vision_tower.",
    "projector.": "mm_projector.",
    "language.lm_head.": "language_model.lm_head.",
    "language.": "language_model.model.",
}
"""Ours -> the released model's; the first that fits counts."""
TEXT_PREFIXES: Mapping[str, str] = {"language.lm_head.": "lm_head.", "language.": "model."}
"""The same for a model of text alone, as Kimi K2 and DeepSeek-V3 were released."""

STACKS: Mapping[str, tuple[str, ...]] = {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
"""A stack of ours [X, ...] -> the matrices of one expert that its rows are, in order."""
_STACK = re.compile(r"(?P<place>.+\.mlp\.experts)\.(?P<stack>gate_up|down)$")


def is_published(name: str) -> bool:
    """Return whether a weight of ours has a place in the released layout."""
    return name.startswith(tuple(PREFIXES))


def prefixes_of(names: Iterable[str]) -> Mapping[str, str]:
    """Return the table that our names go by: with a tower the whole model's, without one the text model's."""
    return PREFIXES if any(name.startswith("vision.") for name in names) else TEXT_PREFIXES


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a released weight lies in ours: always a run of neighbouring elements."""

    name: str
    """As released."""
    own: str
    """Ours that it is, or is a part of."""
    start: int
    """Its first element, in ours laid flat."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def places(shapes: Mapping[str, Sequence[int]]) -> Iterator[Place]:
    """Yield the released weights of a model, in the order of ours.

    Args:
        shapes: of our weights, by name.
    """
    prefixes = prefixes_of(shapes)
    for own, shape in shapes.items():
        if not is_published(own):
            continue
        if stack := _STACK.match(own):
            yield from _experts(own, _renamed(stack["place"], prefixes), STACKS[stack["stack"]], shape)
        else:
            yield Place(name=_renamed(own, prefixes), own=own, start=0, shape=tuple(shape))


def published(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield released names with their tensors, in the order of ours; experts are views into the stacks."""
    for place in places({name: value.shape for name, value in state.items()}):
        flat = state[place.own].contiguous().view(-1)
        yield place.name, flat[place.start : place.start + place.size].view(place.shape)


def _experts(own: str, place: str, matrices: tuple[str, ...], shape: Sequence[int]) -> Iterator[Place]:
    experts, rows, columns = shape
    part = (rows // len(matrices), columns)
    for number, (expert, matrix) in enumerate(product(range(experts), matrices)):
        name = f"{place}.{expert}.{matrix}.weight"
        yield Place(name=name, own=own, start=number * math.prod(part), shape=part)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    raise CheckpointError(f"{name}: no rule knows this weight; the known begin with {', '.join(prefixes)}")
