"""A model spread over ranks: layers by the pipeline, experts inside a layer; and whole again, weight by weight.

Every rank builds the whole model, keeps its part and frees the rest. Embedding, head, last norm, projector and tower
stay on all ranks. A weight's kind says which ranks keep it: all of them, those of a stage, or those of the
same experts of a stage. Gradients are summed over these ranks, and these share the weight's optimizer state.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.config import ParallelConfig
from trainers.inputs import Inputs
from trainers.model.kimi_k25 import KimiK25
from trainers.parallel.exchange import Group
from trainers.parallel.expert import gathered, spread_experts, spread_parameters
from trainers.parallel.pipeline import Pipeline, fitting
from trainers.parallel.ranks import Place

BUCKET_ELEMENTS = 5_000_000
"""Elements of gradients that are summed at once."""

Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Trained weights of one kind on this rank."""

    weights: Named
    group: Group
    """The ranks that keep them."""
    offsets: dict[str, int]
    """Name -> which element of the whole weight is the first here; 0 where absent."""


class Spread:
    """This rank's part of a model. Collective: every rank makes the same calls."""

    def __init__(self, model: KimiK25, parallel: ParallelConfig, *, place: Place, pack_tokens: int) -> None:
        """Keep this rank's part of `model`, which is whole and the same on every rank, in place.

        Raises:
            ValueError: layers or experts cannot be shared out, or a pipeline is not told the length of packs.
        """
        self.model, self.place = model, place
        self._names = {name: value.to("meta") for name, value in model.state_dict().items()}
        groups = [_group(place, kind) for kind in ("pipeline", "same_stage", "expert_group", "same_experts")]
        self._pipeline_group, self._stage_group, self._expert_group, self._same_experts = groups
        self.pipeline: Pipeline | None = None
        if parallel.expert_ranks > 1:
            spread_experts(model, self._expert_group)
        if parallel.pipeline_stages > 1:
            if not pack_tokens:
                raise ValueError("parallel.pipeline_stages is set: tell the engine pack_tokens, which stages exchange")
            options = {"num_virtual": parallel.virtual_stages, "group": self._pipeline_group, "sums_tied": False}
            self.pipeline = Pipeline(model, pack_tokens=pack_tokens, **options)

    def shares(self) -> list[Share]:
        """Return the trained weights by kind; a kind without any has none on every rank of its group."""
        spread, kinds = spread_parameters(self.model), {"all": [], "stage": [], "experts": []}
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                kinds["experts" if name in spread else self._where(name)].append((name, weight))
        first = {name: self.place.expert_rank * weight.numel() for name, weight in spread.items()}
        groups = {"all": None, "stage": self._stage_group, "experts": self._same_experts}
        return [
            Share(weights=weights, group=groups[kind], offsets=first if kind == "experts" else {})
            for kind, weights in kinds.items()
            if weights
        ]

    def target_losses(self, inputs: Inputs) -> Tensor:
        """Return float [n] the loss of each target on every rank of a pipeline, without learning."""
        assert self.pipeline is not None, "a model without a pipeline answers by itself"
        with torch.no_grad():
            merged = self.model.see(inputs) if len(inputs.slots) and self.place.stage == 0 else None
            return self.pipeline.losses(inputs, merged, packs=self.common_packs(inputs), learns=False)

    def common_packs(self, inputs: Inputs) -> int | None:
        """Return how many packs each pipeline must pretend to have, if their stages wait for each other's experts."""
        if self.pipeline is None or self.place.expert_ranks == 1:
            return None
        packs = torch.tensor(len(inputs.input_ids) // self.pipeline.pack_tokens)
        dist.all_reduce(packs, dist.ReduceOp.MAX)
        return fitting(int(packs), self.place.stages)

    def weights(self) -> dict[str, Tensor]:
        """Return every weight and buffer of the whole model by name on rank 0, nothing on the others.

        A weight is put together and handed on before the next, so that other ranks never hold more than one.
        """
        own, spread, whole = self.model.state_dict(), spread_parameters(self.model), {}
        for name, like in self._names.items():
            value = own.get(name)
            if value is not None and name in spread:
                value = gathered(value, self._expert_group)
            if self._where(name) == "stage" and self.place.stages > 1:
                value = self._handed(name, value, like)
            if self.place.rank == 0:
                assert value is not None, f"no rank keeps {name}"
                whole[name] = value
        return whole

    @torch.no_grad()
    def take(self, whole: Mapping[str, Tensor]) -> None:
        """Copy this rank's part of a whole model into it."""
        spread = spread_parameters(self.model)
        for name, value in self.model.state_dict().items():
            part = whole[name]
            if name in spread:
                part = part[self.place.expert_rank * len(value) :][: len(value)]
            value.copy_(part)

    def _where(self, name: str) -> str:
        return "stage" if name.startswith("language.layers.") and self.place.stages > 1 else "all"

    def _handed(self, name: str, value: Tensor | None, like: Tensor) -> Tensor | None:
        """Return on rank 0 a layer's weight, which one stage of its pipeline keeps."""
        if self.place.replica:
            return value
        told = torch.tensor(self.place.stage if value is not None else -1)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._pipeline_group)
        source = self.place.pipeline()[int(told)]
        if source == 0 or self.place.rank not in (0, source):
            return value
        if self.place.rank == source:
            assert value is not None
            dist.send(value.contiguous(), 0)
            return None
        value = torch.empty(like.shape, dtype=like.dtype)
        dist.recv(value, source)
        return value


def whole_share(model: nn.Module) -> Share:
    """Return all trained weights of a model that is not spread."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return Share(weights=trained, group=None, offsets={})


@torch.no_grad()
def sum_gradients(shares: Iterable[Share], factor: float) -> None:
    """Make each weight's gradient the sum over the ranks that keep it, times `factor`; zeros where nothing used it."""
    for share in shares:
        for some in _buckets(share.weights):
            flat = torch.cat([(w.grad if w.grad is not None else torch.zeros_like(w)).reshape(-1) for w in some])
            flat.mul_(factor)
            if dist.get_world_size(share.group) > 1:
                dist.all_reduce(flat, group=share.group)
            for weight, part in zip(some, flat.split([weight.numel() for weight in some]), strict=True):
                weight.grad = part.view_as(weight)


def _buckets(weights: Named) -> Iterator[list[nn.Parameter]]:
    some: list[nn.Parameter] = []
    for _, weight in weights:
        some.append(weight)
        if sum(each.numel() for each in some) >= BUCKET_ELEMENTS:
            yield some
            some = []
    if some:
        yield some


def _group(place: Place, kind: str) -> Group:
    """Return this rank's group of a kind; every rank makes the groups of all ranks, in one order."""
    every = {getattr(replace(place, rank=rank), kind)() for rank in range(place.num_ranks)}
    made: dict[tuple[int, ...], Any] = {ranks: dist.new_group(list(ranks)) for ranks in sorted(every)}
    return made[getattr(place, kind)()]
