"""Pipeline with virtual stages: the decoder's layers over ranks, packs as micro-batches, interleaved 1F1B.

Stage s of R * v lies on rank s modulo R. A micro-batch is one pack; its hidden states travel from stage to stage, and
with them the place and document of each token, so that attention ends where documents end on every stage. Embedding and
what vision puts into it happen on the first rank before the schedule, norm, head and loss on the last rank inside it.

After `run` each weight that a rank keeps has its gradient in `.grad`; a tied embedding, which the first and the last
rank use, has the sum of both on all of them. Every rank keeps embedding, projector, norm and head, and the tower; only
the layers are spread.

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

from trainers.inputs import IGNORED, Inputs
from trainers.model.attention import causal_groups
from trainers.model.head import token_losses
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import Language
from trainers.model.recompute import on_cpu
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
        self.offloads = lambda: language.offload
        self.is_last = layers.stop == len(language.layers)

    def forward(self, x: Tensor, places: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return float [1, T, D], and beside it `places` for the next stage, if there is one.

        Args:
            x: float [1, T, D].
            places: int64 [1, T, 3] position in its document, number of the document, whether it is no padding. A
                filler has documents below 0: its layers see no place, and it goes on as it came.
        """
        is_filler = bool(places[0, 0, 1] < 0)
        position, document, real = places[0, : 0 if is_filler else None].unbind(-1)
        lengths = torch.unique_consecutive(document, return_counts=True)[1]
        turns, groups = self.turns(position), causal_groups(lengths.cpu().numpy(), real.bool())
        hidden = x[0, : len(position)]
        with on_cpu(hidden, when=self.offloads()):
            for layer in self.layers:
                hidden = layer(hidden, turns, groups)
        hidden = torch.cat([hidden, x[0, len(position) :]])
        return hidden[None] if self.is_last else (hidden[None], places)


class Pipeline:
    """This rank's stages of a model. Collective: every rank of the group makes the same calls."""

    def __init__(
        self,
        model: KimiK25,
        *,
        pack_tokens: int,
        packs: int | None = None,
        num_virtual: int = 2,
        group: Group = None,
        sums_tied: bool = True,
    ) -> None:
        """Keep the layers of this rank's stages; the others are replaced by nothing, names stay as they are.

        Args:
            model: built in full, the same weights on every rank.
            pack_tokens: of each pack, padding included.
            packs: of a step, where it is known beforehand that a schedule must be able to deal them out.
            num_virtual: stages on a rank.
            group: the ranks of this pipeline.
            sums_tied: whether to add up a tied embedding's gradients here, where nobody else does.

        Raises:
            ValueError: more stages than layers, or packs that the schedule cannot deal out.
        """
        self.model, self.group, self.pack_tokens = model, group, pack_tokens
        self.ranks, self.rank = ranks_of(group), rank_in(group)
        self._sums_tied, self._schedules = sums_tied, {}
        split = split_layers(len(model.language.layers), self.ranks * num_virtual)
        self._num_stages = len(split)
        self._stages = {
            number: Stage(model.language, split[number]) for number in range(self.rank, len(split), self.ranks)
        }
        kept = {layer for number in self._stages for layer in split[number]}
        for layer in set(range(len(model.language.layers))) - kept:
            model.language.layers[layer] = nn.Identity()
        if packs:
            self._schedule(packs)

    def run(self, inputs: Inputs, merged: Tensor | None = None) -> Tensor:
        """Return the sum of the losses of all targets on the last rank, 0 on the others; gradients are in `.grad`.

        Args:
            inputs: the packs, the same on every rank of the pipeline: a multiple of the ranks, or too few for two
                rounds.
            merged: float [V, merge * merge, vision width] features of their media on the first rank; if they need a
                gradient they have it afterwards.
        """
        losses = self.losses(inputs, merged, packs=len(inputs.input_ids) // self.pack_tokens)
        return losses.sum() if self.rank == self.ranks - 1 else losses.new_zeros(())

    def losses(
        self,
        inputs: Inputs,
        merged: Tensor | None = None,
        *,
        packs: int | None = None,
        weight: float = 1.0,
        learns: bool = True,
    ) -> Tensor:
        """Return float [n] the loss of each target, the same on every rank; gradients of their sum are in `.grad`.

        Args:
            inputs: the packs, the same on every rank of the pipeline; there may be none.
            merged: as of `run`.
            packs: what the schedule deals out; it is filled up with packs that no layer looks at. None: the least
                that it can deal out.
            weight: factor of the sum whose gradients are taken.
            learns: whether to run the backward pass; if not, no gradient is made.
        """
        packs = fitting(len(inputs.input_ids) // self.pack_tokens, self.ranks) if packs is None else packs
        schedule, found = self._schedule(packs), []
        self._weight, self._found = weight, found
        places, target = self._filled(_places(inputs), packs, -1), self._filled(_targets(inputs), packs, IGNORED)
        dealt = {"target": target if self.rank == self.ranks - 1 else None, "losses": [], "return_outputs": False}
        with torch.set_grad_enabled(learns):
            deal = schedule.step if learns else schedule.eval
            if self.rank == 0:
                embedded = self._embedded(inputs, merged, packs)
                leaf = embedded.detach().requires_grad_(learns)
                deal(leaf, places, **dealt)
                if embedded.requires_grad and leaf.grad is not None:
                    embedded.backward(leaf.grad)
            else:
                deal(**dealt)
        if learns and self._sums_tied:
            self._sum_tied()
        return self._told(found, len(inputs.target))

    def _embedded(self, inputs: Inputs, merged: Tensor | None, packs: int) -> Tensor:
        """Return float [packs, T, D] what the first layer sees; fillers are zeros."""
        model = self.model
        embedded = model.language.embed_tokens(inputs.input_ids)
        if merged is not None:
            assert model.projector is not None, "features come from a tower, and a tower has a projector"
            embedded = embedded.index_copy(0, inputs.slots, model.projector(merged))
        return self._filled(embedded, packs, 0)

    def _filled(self, rows: Tensor, packs: int, value: int) -> Tensor:
        """Return rows [N, ...] as [packs, T, ...], filled up."""
        more = rows.new_full((packs * self.pack_tokens - len(rows), *rows.shape[1:]), value)
        return torch.cat([rows, more]).view(packs, self.pack_tokens, *rows.shape[1:])

    def _told(self, found: list[Tensor], count: int) -> Tensor:
        """Return on every rank what the last one found, float [count]."""
        like = next(self.model.language.parameters())
        losses = torch.cat(found) if found else like.new_zeros(count)
        if self.ranks > 1:
            dist.broadcast(losses, group=self.group, group_src=self.ranks - 1)
        return losses.detach()

    def _schedule(self, packs: int) -> ScheduleInterleaved1F1B:
        if packs not in self._schedules:
            stages: list[Any] = [self._stage(stage, number) for number, stage in self._stages.items()]
            options = {"loss_fn": self._loss, "scale_grads": False}
            self._schedules[packs] = ScheduleInterleaved1F1B(stages, n_microbatches=packs, **options)
        return self._schedules[packs]

    def _stage(self, stage: Stage, number: int) -> PipelineStage:
        like = next(self.model.language.parameters())
        tokens, width = self.pack_tokens, self.model.language.config.width
        hidden = torch.empty(1, tokens, width, dtype=like.dtype, device=like.device, requires_grad=True)
        places = torch.empty(1, tokens, 3, dtype=torch.int64, device=like.device)
        output = hidden if stage.is_last else (hidden, places)
        options = {"input_args": (hidden, places), "output_args": output, "group": self.group}
        return PipelineStage(stage, number, self._num_stages, like.device, **options)

    def _loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the sum over a pack's targets, given hidden states [1, T, D] and the token each predicts [1, T]."""
        language = self.model.language
        here = (target[0] != IGNORED).nonzero()[:, 0]
        logits = language.logits(language.norm(hidden[0].index_select(0, here)))
        losses = token_losses(logits, target[0, here])
        self._found.append(losses.detach())
        return self._weight * losses.sum()

    def _sum_tied(self) -> None:
        language = self.model.language
        if language.lm_head is None and language.embed_tokens.weight.requires_grad and self.ranks > 1:
            weight = language.embed_tokens.weight
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(weight.grad, group=self.group)


def fitting(packs: int, ranks: int) -> int:
    """Return the least number of micro-batches, at least `packs` and one, that the schedule can deal out in rounds."""
    packs = max(1, packs)
    while packs % max(1, packs // ranks):
        packs += 1
    return packs


def _places(inputs: Inputs) -> Tensor:
    """Return int64 [N, 3]: of each place what `Stage` asks; a document begins where the position is 0."""
    real = inputs.groups.real
    real = torch.ones_like(inputs.position) if real is None else real.long()
    return torch.stack([inputs.position, torch.cumsum(inputs.position == 0, 0), real], dim=-1)


def _targets(inputs: Inputs) -> Tensor:
    """Return int64 [N]: the token that each place predicts."""
    return torch.full_like(inputs.input_ids, IGNORED).index_copy(0, inputs.source, inputs.target)
