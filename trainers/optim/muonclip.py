"""MuonClip without its clip: Muon for matrices, AdamW for the rest, states only on the rank that owns the weights.

What ZeRO-1 saves, with matrices left whole: every rank comes with the same gradients, moves the pieces it owns, and
gives them to the others. DeepSpeed's own ZeRO-1 hands an optimizer flat shards, in which Newton-Schulz finds no matrix.
QK-Clip is in `qk_clip.py` and follows the step.

Gradients are clipped by the norm of all of them together, before momentum. Muon's updates have one length whatever the
gradient's; for them the clip only sets how much this step weighs in the momentum.
"""

# Shapes: k matrices of r rows and c columns, n weights under AdamW on this rank, R ranks.

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim.adamw import adamw

from k25_pipelines.errors import CheckpointError
from trainers.optim.muon import momentum_update, orthogonalised, update_scale
from trainers.optim.rules import Rule, matrices_of, rule_of
from trainers.optim.shards import Piece, buckets, layout_of

BATCH_ELEMENTS = 2**25
"""Most elements of matrices that are orthogonalised together."""
CPU_BATCH_ELEMENTS = 2**17
"""The same on a CPU: what its cache holds, which saves 14% of a step of the `small` model."""
BUCKET_ELEMENTS = 5_000_000
"""Elements given out at once, of all ranks together."""
NORM_FLOOR = 1e-6
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrices:
    """Matrices of one shape that this rank owns, moved together."""

    pieces: list[Piece]
    momentum: Tensor
    """float32 [k, r, c]; of float64 weights float64, as below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
    """What AdamW moves on this rank."""

    pieces: list[Piece]
    mean: Tensor
    """float32 [n], the pieces one after another."""
    square: Tensor
    """float32 [n]."""


class MuonClip(torch.optim.Optimizer):
    """Moves trained weights. Collective: every rank of the group holds the same weights and makes the same calls."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        gradient_clip: float = 0.0,
        group: ProcessGroup | None = None,
        offsets: Mapping[str, int] | None = None,
    ):
        """Share the weights out and make room for the states of this rank's.

        Args:
            named: weights that require gradients, in the same order on every rank.
            learning_rate: of both, since Muon's updates are scaled to AdamW's size.
            weight_decay: of what decays, times the learning rate.
            momentum: Muon's.
            betas: AdamW's.
            gradient_clip: largest norm of all gradients together; 0 clips nothing.
            group: the ranks that share the states; all where None.
            offsets: name -> which element of the whole weight is the first here, where ranks outside of the group
                keep other parts of it; states are saved under their places in the whole.

        Raises:
            ValueError: a weight that is no matrix and no vector, and no rule names it.
        """
        self._names, self._weights = map(list, zip(*named, strict=True))
        self._rules = [rule_of(name, weight.shape) for name, weight in zip(self._names, self._weights, strict=True)]
        self._momentum, self._betas, self._decay = momentum, betas, weight_decay
        self._clip, self._group, self._steps = gradient_clip, group, 0
        self._offsets = [(offsets or {}).get(name, 0) for name in self._names]
        self._global_grad_norm = 0.0  # DeepSpeed reads it under this name
        super().__init__(_groups(self._rules, self._weights), {"lr": learning_rate})
        is_joined = torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank(group) if is_joined else 0
        self._num_ranks = torch.distributed.get_world_size(group) if is_joined else 1
        self._kind = torch.promote_types(self._weights[0].dtype, torch.float32)
        self._layout = layout_of(self._rules, [weight.shape for weight in self._weights], self._num_ranks)
        self._matrices = self._own_matrices()
        pieces = self._layout.rest[self._rank]
        flat = self._weights[0].new_zeros(2, sum(piece.size for piece in pieces), dtype=self._kind)
        self._rest = Rest(pieces=pieces, mean=flat[0], square=flat[1])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every weight once, by this step's gradients, which are the same on every rank.

        Gradients whose norm is not finite move nothing, neither weights nor momenta.
        """
        square = self.own_square()
        if self._num_ranks > 1:
            torch.distributed.all_reduce(square, group=self._group)
        self.move(float(square.sqrt()))

    def own_square(self) -> Tensor:
        """Return float64 []: the squared norm of the gradients of what this rank owns."""
        own = [self._gradient(piece) for matrices in self._matrices for piece in matrices.pieces]
        own += [self._gradient(piece) for piece in self._rest.pieces]
        return torch.nn.utils.get_total_norm(own).double() ** 2

    @torch.no_grad()
    def move(self, norm: float) -> None:
        """Move every weight once, given the norm of all gradients together, which clips them; none if not finite."""
        self._global_grad_norm = norm
        if not math.isfinite(norm):
            return
        scale = min(1.0, self._clip / (norm + NORM_FLOOR)) if self._clip else 1.0
        self._steps += 1
        (rate,) = {group["lr"] for group in self.param_groups}
        for matrices in self._matrices:
            self._move_matrices(matrices, rate, scale)
        self._move_rest(rate, scale)
        if self._num_ranks > 1:
            self._give_out()

    def partition_elements(self) -> int:
        """Return how many weights this rank keeps states for."""
        return sum(piece.size for piece in (*self._layout.matrices[self._rank], *self._rest.pieces))

    def partition(self) -> dict[str, Any]:
        """Return this rank's states by the names of the weights; all ranks' together are the optimizer's."""
        momentum = {
            f"{self._names[piece.weight]}@{self._offsets[piece.weight] + piece.start}": each
            for matrices in self._matrices
            for piece, each in zip(matrices.pieces, matrices.momentum, strict=True)
        }
        sizes = [piece.size for piece in self._rest.pieces]
        moments = [
            (self._names[piece.weight], self._offsets[piece.weight] + piece.start, mean, square)
            for piece, mean, square in zip(
                self._rest.pieces, self._rest.mean.split(sizes), self._rest.square.split(sizes), strict=True
            )
        ]
        return {"steps": self._steps, "momentum": momentum, "moments": moments}

    @torch.no_grad()
    def take(self, partitions: Iterable[Mapping[str, Any]]) -> None:
        """Take up this rank's states from the partitions of all ranks that saved, however many they were.

        Raises:
            CheckpointError: a state is missing.
        """
        wanted, starts = self.partition(), {}
        missing = {name: each.numel() for name, each in wanted["momentum"].items()}
        for name, start, mean, square in wanted["moments"]:
            starts[name] = (start, mean, square)
            missing[name] = len(mean)
        for partition in partitions:
            self._steps = partition["steps"]
            for name in missing.keys() & partition["momentum"].keys():
                wanted["momentum"][name].copy_(partition["momentum"][name])
                missing[name] = 0
            for name, start, mean, square in partition["moments"]:
                if name in starts:
                    missing[name] -= _copy_overlap(starts[name], (start, mean, square))
        if lacking := sorted(name for name, count in missing.items() if count):
            raise CheckpointError(f"the saved optimizer has no state of {', '.join(lacking)}; it was another model's")

    def _own_matrices(self) -> list[Matrices]:
        by_shape: dict[tuple[int, int], list[Piece]] = {}
        for piece in self._layout.matrices[self._rank]:
            shape = matrices_of(self._rules[piece.weight], self._weights[piece.weight].shape)[1:]
            by_shape.setdefault(shape, []).append(piece)
        found = []
        batch = CPU_BATCH_ELEMENTS if self._weights[0].device.type == "cpu" else BATCH_ELEMENTS
        for (rows, columns), pieces in by_shape.items():
            most = max(1, batch // (rows * columns))
            for i in range(0, len(pieces), most):
                some = pieces[i : i + most]
                momentum = self._weights[0].new_zeros(len(some), rows, columns, dtype=self._kind)
                found.append(Matrices(pieces=some, momentum=momentum))
        return found

    def _move_matrices(self, matrices: Matrices, rate: float, scale: float) -> None:
        count, rows, columns = matrices.momentum.shape
        gradient = torch.stack([self._gradient(piece) for piece in matrices.pieces]).to(self._kind)
        gradient = gradient.view(count, rows, columns).mul_(scale)
        update = orthogonalised(momentum_update(matrices.momentum, gradient, rate=self._momentum))
        factor = -rate * update_scale(rows, columns)
        for piece, each in zip(matrices.pieces, update.reshape(count, -1), strict=True):
            self._view(piece).mul_(1 - rate * self._decay).add_(each, alpha=factor)  # every matrix decays

    def _move_rest(self, rate: float, scale: float) -> None:
        rest = self._rest
        sizes = [piece.size for piece in rest.pieces]
        every = list(zip(rest.pieces, rest.mean.split(sizes), rest.square.split(sizes), strict=True))
        for decays in (True, False):
            some = [each for each in every if self._rules[each[0].weight].decays == decays]
            if not some:
                continue
            pieces, means, squares = map(list, zip(*some, strict=True))
            gradients = [self._gradient(piece).mul_(scale) for piece in pieces]
            adamw(
                [self._view(piece) for piece in pieces],
                gradients,
                means,
                squares,
                [],
                [gradients[0].new_tensor(self._steps - 1.0) for _ in pieces],  # counted up in there
                fused=True,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=rate,
                weight_decay=self._decay if decays else 0.0,
                eps=EPSILON,
                maximize=False,
            )

    def _give_out(self) -> None:
        """Copy each rank's pieces to all others, bucket by bucket."""
        size = BUCKET_ELEMENTS // self._num_ranks
        shares = zip(self._layout.matrices, self._layout.rest, strict=True)
        filled = [buckets(sorted([*matrices, *rest]), size) for matrices, rest in shares]
        for i in range(max(map(len, filled))):
            views = [[self._view(piece) for piece in each[i]] if i < len(each) else [] for each in filled]
            counts = [sum(view.numel() for view in each) for each in views]
            own = self._weights[0].new_zeros(max(counts))
            if views[self._rank]:
                own[: counts[self._rank]] = torch.cat(views[self._rank])
            every = own.new_empty(self._num_ranks, len(own))
            torch.distributed.all_gather_single(every.view(-1), own, group=self._group)
            for rank in range(self._num_ranks):
                if rank != self._rank and views[rank]:
                    lengths = [view.numel() for view in views[rank]]
                    for view, part in zip(views[rank], every[rank, : counts[rank]].split(lengths), strict=True):
                        view.copy_(part)

    def _view(self, piece: Piece) -> Tensor:
        return self._weights[piece.weight].detach().view(-1)[piece.start : piece.stop]

    def _gradient(self, piece: Piece) -> Tensor:
        weight = self._weights[piece.weight]
        if weight.grad is None:  # nothing used it in this step, on any rank
            return weight.new_zeros(piece.size)
        return weight.grad.reshape(-1)[piece.start : piece.stop]


def _groups(rules: list[Rule], weights: list[nn.Parameter]) -> list[dict]:
    """Return the weights in groups by what happens to them; the groups are for readers, the rules decide."""
    kinds: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for rule, weight in zip(rules, weights, strict=True):
        kinds.setdefault((rule.optimizer, rule.decays), []).append(weight)
    return [{"params": members, "optimizer": kind, "decays": decays} for (kind, decays), members in kinds.items()]


def _copy_overlap(own: tuple[int, Tensor, Tensor], saved: tuple[int, Tensor, Tensor]) -> int:
    """Copy what two runs of one weight's moments share into the first, and return how many elements that were."""
    start = max(own[0], saved[0])
    stop = min(own[0] + len(own[1]), saved[0] + len(saved[1]))
    if start >= stop:
        return 0
    for mine, theirs in zip(own[1:], saved[1:], strict=True):
        mine[start - own[0] : stop - own[0]] = theirs[start - saved[0] : stop - saved[0]]
    return stop - start
