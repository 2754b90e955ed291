"""Pipeline with virtual stages: the decoder's layers over ranks, packs as micro-batches, interleaved 1F1B.

Stage s of R * v lies on rank s modulo R. A micro-batch is one pack; its hidden states travel from stage to stage, and
with them the place and document of each token, so that attention ends where documents end on every stage. Embedding and
what vision puts into it happen on the first rank before the schedule, norm, head and loss on the last rank inside it.

After `run` each weight that a rank keeps has its gradient in `.grad`; a tied embedding, which the first and the last
rank use, has the sum of both on all of them.

Source: Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", section 2.2; the
schedule is torch's ScheduleInterleaved1F1B.
"""

# Shapes: B packs, T tokens, N = B * T places, D width, V vision tokens, R ranks, v virtual stages of a rank.

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B
from torch.nn import functional

from trainers.inputs import IGNORED, Inputs
from trainers.model.attention import causal_groups
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import Language
from trainers.parallel.exchange import Group, rank_in, ranks_of


def split_layers(num_layers: int, num_stages: int) -> list[range]:
    """Return the layers of each stage: runs whose lengths differ by at most one, the shorter first.

    Raises:
        ValueError: there are more stages than layers.
    """
    if not 1 <= num_stages <= num_layers:
        raise ValueError(
            f"{num_stages} pipeline stages for {num_layers} layers: config.language.layers must be at least "
            "ranks * virtual stages, and these at least 1"
        )
    edges = [stage * num_layers // num_stages for stage in range(num_stages + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def bubble(num_ranks: int, num_virtual: int, num_microbatches: int) -> float:
    """Return the idle time of interleaved 1F1B as a share of the time of the work: (R - 1) / (v * micro-batches)."""
    return (num_ranks - 1) / (num_virtual * num_microbatches)


class Stage(nn.Module):
    """Some layers of a decoder; called on one pack."""

    def __init__(self, language: Language, layers: range):
        """Take the layers of `language`, not copies of them."""
        super().__init__()
        self.layers = nn.ModuleList(language.layers[layer] for layer in layers)
        self.turns = language.turns
        self.is_last = layers.stop == len(language.layers)

    def forward(self, x: Tensor, places: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return float [1, T, D], and beside it `places` for the next stage, if there is one.

        Args:
            x: float [1, T, D].
            places: int64 [1, T, 2] position in its document, and number of the document.
        """
        position, document = places[0].unbind(-1)
        lengths = torch.unique_consecutive(document, return_counts=True)[1]
        turns, groups = self.turns(position), causal_groups(lengths.cpu().numpy())
        hidden = x[0]
        for layer in self.layers:
            hidden = layer(hidden, turns, groups)
        return hidden[None] if self.is_last else (hidden[None], places)


class Pipeline:
    """This rank's stages of a model. Collective: every rank of the group makes the same calls."""

    def __init__(
        self, model: KimiK25, *, packs: int, pack_tokens: int, num_virtual: int = 2, group: Group = None
    ) -> None:
        """Keep the layers of this rank's stages; the others are replaced by nothing, names stay as they are.

        Args:
            model: built in full, the same weights on every rank.
            packs: micro-batches of a step; a multiple of the ranks, or few enough for one round.
            pack_tokens: of each, padding included.
            num_virtual: stages on a rank.
            group: the ranks of this pipeline.

        Raises:
            ValueError: more stages than layers, or packs that the schedule cannot deal out.
        """
        self.model, self.group, self.shape = model, group, (packs, pack_tokens)
        self.ranks, self.rank = ranks_of(group), rank_in(group)
        split = split_layers(len(model.language.layers), self.ranks * num_virtual)
        own = range(self.rank, len(split), self.ranks)
        stages: list[Any] = [self._stage(Stage(model.language, split[number]), number, len(split)) for number in own]
        kept = {layer for number in own for layer in split[number]}
        for layer in set(range(len(model.language.layers))) - kept:
            model.language.layers[layer] = nn.Identity()
        self.schedule = ScheduleInterleaved1F1B(stages, n_microbatches=packs, loss_fn=self._loss, scale_grads=False)

    def run(self, inputs: Inputs, merged: Tensor | None = None) -> Tensor:
        """Return the sum of the losses of all targets on the last rank, 0 on the others; gradients are in `.grad`.

        Args:
            inputs: the packs, the same on every rank of the pipeline.
            merged: float [V, merge * merge, vision width] features of their media on the first rank; if they need a
                gradient they have it afterwards.
        """
        model, loss = self.model, inputs.patches.new_zeros(())
        places = torch.stack([inputs.position, _documents(inputs)], dim=-1).view(*self.shape, 2)
        target = torch.full_like(inputs.input_ids, IGNORED).index_copy(0, inputs.source, inputs.target)
        losses: list[Tensor] = []
        embedded = None
        if self.rank == 0:
            embedded = model.language.embed_tokens(inputs.input_ids)
            if merged is not None:
                assert model.projector is not None, "features come from a tower, and a tower has a projector"
                embedded = embedded.index_copy(0, inputs.slots, model.projector(merged))
            leaf = embedded.detach().view(*self.shape, -1).requires_grad_()
            self.schedule.step(leaf, places, target=self._target(target), losses=losses, return_outputs=False)
            if embedded.requires_grad:
                embedded.backward(leaf.grad.view_as(embedded))
        else:
            self.schedule.step(target=self._target(target), losses=losses, return_outputs=False)
        self._sum_tied()
        return torch.stack(losses).sum().detach() if losses else loss

    def _stage(self, stage: Stage, number: int, num_stages: int) -> PipelineStage:
        like = next(self.model.language.parameters())
        tokens, width = self.shape[1], self.model.language.config.width
        hidden = torch.empty(1, tokens, width, dtype=like.dtype, device=like.device, requires_grad=True)
        places = torch.empty(1, tokens, 2, dtype=torch.int64, device=like.device)
        output = hidden if stage.is_last else (hidden, places)
        options = {"input_args": (hidden, places), "output_args": output, "group": self.group}
        return PipelineStage(stage, number, num_stages, like.device, **options)

    def _target(self, target: Tensor) -> Tensor | None:
        return target.view(self.shape) if self.rank == self.ranks - 1 else None

    def _loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the sum over a pack's targets, given hidden states [1, T, D] and the token each predicts [1, T]."""
        language = self.model.language
        here = (target[0] != IGNORED).nonzero()[:, 0]
        logits = language.logits(language.norm(hidden[0].index_select(0, here)))
        return functional.cross_entropy(logits, target[0, here], reduction="sum")

    def _sum_tied(self) -> None:
        language = self.model.language
        if language.lm_head is None and language.embed_tokens.weight.requires_grad and self.ranks > 1:
            weight = language.embed_tokens.weight
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(weight.grad, group=self.group)


def _documents(inputs: Inputs) -> Tensor:
    """Return int64 [N]: the number of each place's document, which begins where the position is 0."""
    return torch.cumsum(inputs.position == 0, 0)
