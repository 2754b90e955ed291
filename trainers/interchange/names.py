"""Names and layout of weights: ours in, the released checkpoint's out, and back. One table of rules.

The two differ by a prefix, and in the routed experts, which we keep stacked and the released files keep one by one.
A model without a tower goes by the names of the text-only release. The contrastive head of stage 1a is in neither.
"""

# Shapes: X experts, I hidden width of an expert, D width.

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
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
_EXPERT = re.compile(r"(?P<place>.+\.mlp\.experts)\.(?P<expert>\d+)\.(?P<matrix>gate_proj|up_proj|down_proj)\.weight$")


def is_published(name: str) -> bool:
    """Return whether a weight of ours has a place in the released layout."""
    return name.startswith(tuple(PREFIXES))


def prefixes_of(names: Iterable[str]) -> Mapping[str, str]:
    """Return the table that our names go by: with a tower the whole model's, without one the text model's."""
    return PREFIXES if any(name.startswith("vision.") for name in names) else TEXT_PREFIXES


def published(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield released names with their tensors, in the order of ours; experts are views into the stacks."""
    prefixes = prefixes_of(state)
    for name, value in state.items():
        if not is_published(name):
            continue
        if stack := _STACK.match(name):
            yield from _unstacked(_renamed(stack["place"], prefixes), STACKS[stack["stack"]], value)
        else:
            yield _renamed(name, prefixes), value


def ours(names: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Return our weights of released ones.

    Args:
        names: what the released files hold.
        read: a tensor of theirs, by name.

    Raises:
        CheckpointError: a name that no rule knows, or experts of which some are missing.
    """
    names = list(names)
    back = _backwards(names)
    state, experts = {}, {}
    for name in names:
        if expert := _EXPERT.match(name):
            place = _renamed(expert["place"], back)
            experts.setdefault(place, {})[int(expert["expert"]), expert["matrix"]] = name
        else:
            state[_renamed(name, back)] = read(name)
    for place, found in experts.items():
        for stack, matrices in STACKS.items():
            state[f"{place}.{stack}"] = _stacked(place, found, matrices, read)
    return state


def _unstacked(place: str, matrices: tuple[str, ...], stack: Tensor) -> Iterator[tuple[str, Tensor]]:
    for expert, rows in enumerate(stack.unbind(0)):
        for matrix, part in zip(matrices, rows.chunk(len(matrices), dim=0), strict=True):
            yield f"{place}.{expert}.{matrix}.weight", part


def _stacked(
    place: str, found: Mapping[tuple[int, str], str], matrices: tuple[str, ...], read: Callable[[str], Tensor]
) -> Tensor:
    count = 1 + max(expert for expert, _ in found)
    if missing := [f"{e}.{m}" for e in range(count) for m in matrices if (e, m) not in found]:
        raise CheckpointError(f"{place}: of {count} experts {', '.join(missing[:4])} are missing; complete the folder")
    parts = [torch.cat([read(found[expert, matrix]) for matrix in matrices]) for expert in range(count)]
    return torch.stack(parts)


def _backwards(names: list[str]) -> Mapping[str, str]:
    is_whole = any(name.startswith("language_model.") for name in names)
    return {theirs: own for own, theirs in (PREFIXES if is_whole else TEXT_PREFIXES).items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    raise CheckpointError(f"{name}: no rule knows this weight; the known begin with {', '.join(prefixes)}")
