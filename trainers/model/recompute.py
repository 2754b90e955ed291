"""Memory for time: tensors that the backward pass would keep in, a rule that makes them again out. The bits stay.

Three parts of the decoder can be made again, each from what is kept anyway: the outputs of its norms, the products
inside SwiGLU, and the queries, keys and values that attention unfolds from its latents. What is left may lie in the
CPU's memory until the backward pass.

Source: Kimi K2 (arXiv 2507.20534), section 2.4.3, "Activation Reduction".
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = ("norm", "swiglu", "mla_up")


def set_recompute(model: nn.Module, parts: Collection[str]) -> None:
    """Set which of PARTS every decoder layer of a model makes again; none: all is kept.

    Raises:
        ValueError: there is no such part.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"recompute names {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for module in model.modules():
        if hasattr(module, "recompute"):
            cast(Any, module).recompute = frozenset(parts)


def forgetting(tensor: Tensor, make: Callable[[], Tensor], when: bool) -> AbstractContextManager[Any]:
    """Return a context in which the backward pass keeps `make` where it would keep `tensor` or a view of it.

    Args:
        tensor: what is used inside the context; its whole storage is forgotten.
        make: gives the same values in the same layout, from tensors that are kept anyway.
        when: whether to forget; if not, nothing is done.
    """
    return _forgetting(tensor, make) if when and torch.is_grad_enabled() else nullcontext()


def on_cpu(tensor: Tensor, when: bool) -> AbstractContextManager[Any]:
    """Return a context whose kept tensors wait in the CPU's memory; `tensor` tells the device of the work."""
    return save_on_cpu(pin_memory=tensor.is_cuda) if when else nullcontext()


class _Place(tuple):
    """Shape, strides and offset of a forgotten view."""


@contextmanager
def _forgetting(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    around = cast(Any, torch._C)._autograd._top_saved_tensors_default_hooks(
        False
    )  # of which torch would else not call one
    place = tensor.untyped_storage().data_ptr()
    made: list[Tensor] = []  # shared by the uses of one backward pass, of which there are as many as were packed
    uses = {"packed": 0, "left": 0}

    def pack(kept: Tensor) -> Any:
        if kept.untyped_storage().data_ptr() != place or not place:
            return around[0](kept) if around else kept
        uses["packed"] += 1
        return _Place((kept.shape, kept.stride(), kept.storage_offset()))

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, _Place):
            return around[1](packed) if around else packed
        if not made:
            uses["left"] = uses["packed"]
            with torch.no_grad():
                made.append(make())
        again = torch.as_strided(made[0], *packed)
        uses["left"] -= 1
        if not uses["left"]:
            made.clear()
        return again

    with saved_tensors_hooks(pack, unpack):
        yield


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Return how many bytes that a forward pass makes are still alive after it: what it keeps, and its result."""
    with _Made() as made:
        out = forward()
    total = sum(size for ref, size in made.storages.values() if not ref.expired())
    del out
    return total


class _Made(TorchDispatchMode):
    """Every storage that operations make while the mode is on."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out
