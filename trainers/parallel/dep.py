"""Decoupled encoder process: the vision of the global batch spread over all ranks, the backbone as if it were text.

Three phases of a step, each behind the same collectives on every rank:
1. balanced vision forward: each rank encodes its share of all ranks' media without activations; outputs go home;
2. backbone: forward and backward of each micro-batch, the features being leaves, whose gradients are kept;
3. vision recomputation: the gradients go to the ranks that encoded, which run forward again and backward.

A rank's gradients are then its part of a sum over ranks: of its own packs for the backbone, of the media it encoded
for the tower. Nothing is reduced here. The engine's one reduction sums both, so that the tower is counted once:
`Engine.step` scales the loss of `dep_loss` by the number of ranks and takes the mean, for every weight alike.
The projector belongs to the backbone. The tower draws nothing at random, so its second forward is its first again.

Source: Kimi K2.5's technical report, decoupled encoder process.
"""

# Shapes: V vision tokens of this rank's packs, D vision width, R ranks.

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.inputs import Inputs
from trainers.model.kimi_k25 import KimiK25
from trainers.parallel.exchange import Group
from trainers.parallel.expert import anchors
from trainers.parallel.layout import Layout, balanced, coupled, loads
from trainers.parallel.route import LayoutRule, Media, Route, route_of

LossFunction = Callable[[KimiK25, Inputs], Tensor]
"""Model and a micro-batch in, its part of the loss out, float []; the loss is the sum over micro-batches and ranks."""
Gradients = dict[str, Tensor]
"""Name of a weight -> its gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoupled:
    """What a step found on this rank."""

    loss: Tensor
    """float [] this rank's part, without gradient."""
    gradients: Gradients
    """This rank's part for every weight that is trained; zeros where nothing used it."""
    patches: np.ndarray
    """int64 [R] patches that each rank encoded."""
    seconds: tuple[float, float, float]
    """Of the three phases on this rank, waiting for other ranks included."""


def by_patches(media: Media) -> Layout:
    """Return the balanced layout by patch count, one encoder call a rank."""
    return balanced(media.patches, media.num_ranks)


def at_home(media: Media) -> Layout:
    """Return the coupled model's layout: each rank encodes its own media, one call a micro-batch."""
    return coupled(media.owner, media.microbatch)


def dep_step(
    model: KimiK25, inputs: Inputs | Sequence[Inputs], loss_function: LossFunction, group: Group = None, **options: Any
) -> Tensor:
    """Add this rank's part of the gradients to `.grad` and return its part of the loss, without gradient.

    For an engine that sums `.grad` over ranks. Arguments as of `decoupled`.
    """
    step = decoupled(model, inputs, loss_function, group, **options)
    for name, weight in model.named_parameters():
        if (gradient := step.gradients.get(name)) is not None:
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
    return step.loss


def dep_loss(model: KimiK25, step: Decoupled) -> Tensor:
    """Return the step's loss as a tensor whose backward hands every trained weight the gradient that `step` found.

    For an engine that calls backward itself and listens to the weights, as DeepSpeed does: each gradient arrives once,
    in the same order on every rank whatever it encoded. Backward may be called once; it gives the gradients away.
    """
    trained = trained_weights(model)
    return _Graft.apply(step.loss, [step.gradients[name] for name in trained], *trained.values())


def decoupled(
    model: KimiK25,
    inputs: Inputs | Sequence[Inputs],
    loss_function: LossFunction,
    group: Group = None,
    *,
    layout: LayoutRule = by_patches,
    clock: Callable[[], float] = time.perf_counter,
) -> Decoupled:
    """Return loss and gradients of a step whose vision is spread over the ranks. Collective over `group`.

    Args:
        model: a built model with a tower, the same weights on every rank, all or some of them trained.
        inputs: this rank's micro-batches; any may be without media, and a rank without packs has an empty one.
        loss_function: called once for each micro-batch.
        group: the ranks whose media are one global batch; None: all.
        layout: where media are encoded, worked out alike on every rank.
        clock: of the phases [seconds].

    Raises:
        ValueError: the model has no tower.
    """
    started = clock()
    microbatches = [inputs] if isinstance(inputs, Inputs) else list(inputs)
    encoded = encode(model, microbatches, group, layout=layout)
    coded = clock()
    trained = trained_weights(model)
    loss, gradients, felt = _backbone(model, microbatches, encoded.features, loss_function, trained)
    learned = clock()
    if vision := trained_weights(model, "vision."):  # the same on every rank
        found = learn_vision(model, encoded, felt, vision)
        gradients.update({n: gradients[n] + each if n in gradients else each for n, each in found.items()})
    return Decoupled(
        loss=loss,
        gradients={n: gradients[n] if n in gradients else torch.zeros_like(w) for n, w in trained.items()},
        patches=encoded.loads(),
        seconds=(coded - started, learned - coded, clock() - learned),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What the first phase leaves on this rank."""

    route: Route
    patches: Tensor
    """float [P', 3, 14, 14] of the media that this rank encodes."""
    features: Tensor
    """float [V, merge * merge, D] of the media of its own packs, without gradient."""

    def loads(self) -> np.ndarray:
        """Return int64 [R] patches that each rank encodes."""
        return loads(self.route.layout, self.route.media.patches, self.route.media.num_ranks)


def encode(
    model: KimiK25, microbatches: Sequence[Inputs], group: Group = None, *, layout: LayoutRule = by_patches
) -> Encoded:
    """Encode the media of all ranks' packs without keeping activations, the first phase. Collective over `group`.

    Raises:
        ValueError: the model has no tower.
    """
    if model.vision is None:
        raise ValueError(f"model {model.config.name} has no vision tower: there is nothing to decouple")
    grids, device = [each.grid_thw for each in microbatches], microbatches[0].patches.device
    route = route_of(grids, layout, merge=model.vision.config.merge, group=group, device=device)
    patches = route.to_encoders(torch.cat([each.patches for each in microbatches]), "patches")
    features = route.to_owners(_encoded(model, route, patches), "tokens")
    return Encoded(route=route, patches=patches, features=features)


def learn_vision(model: KimiK25, encoded: Encoded, felt: Tensor, weights: dict[str, Tensor]) -> Gradients:
    """Encode again, call by call, and return the gradients of the tower's `weights`, the last phase.

    Args:
        model: as it encoded.
        encoded: what the first phase left.
        felt: float [V, merge * merge, D] gradient of `encoded.features`.
        weights: the tower's trained weights by name.
    """
    assert model.vision is not None
    route, gradients = encoded.route, {}
    felt = route.to_encoders(felt, "tokens")
    calls = zip(_calls(route, encoded.patches, "patches"), _calls(route, felt, "tokens"), strict=True)
    for (media, rows), (_, feature_gradients) in calls:
        features = model.vision(rows, route.media.grid[media])
        found = torch.autograd.grad(features, list(weights.values()), feature_gradients, allow_unused=True)
        _add(gradients, weights, found)
    return gradients


def trained_weights(model: KimiK25, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights that are trained and whose names begin so, by name."""
    return {n: w for n, w in model.named_parameters() if w.requires_grad and n.startswith(prefix)}


@contextmanager
def seeing(model: KimiK25, features: Tensor) -> Iterator[None]:
    """Let `model.see` return features float [V, merge * merge, D] that were computed elsewhere."""
    object.__setattr__(model, "see", lambda inputs: features)
    try:
        yield
    finally:
        object.__delattr__(model, "see")


@torch.no_grad()
def _encoded(model: KimiK25, route: Route, patches: Tensor) -> Tensor:
    """Return the features of the media that this rank encodes, [tokens, merge * merge, D], without activations."""
    assert model.vision is not None
    config, like = model.vision.config, next(model.vision.parameters())
    parts = [like.new_empty(0, config.merge**2, config.width)]
    for media, rows in _calls(route, patches, "patches"):
        parts.append(model.vision(rows, route.media.grid[media]).to(like.dtype))
    return torch.cat(parts)


def _backbone(
    model: KimiK25,
    microbatches: list[Inputs],
    features: Tensor,
    loss_function: LossFunction,
    trained: dict[str, Tensor],
) -> tuple[Tensor, Gradients, Tensor]:
    """Return the loss, the gradients of what the backbone used, and the gradient of `features`."""
    loss, gradients, felt = features.new_zeros(()), {}, []
    held = anchors(model)
    for inputs, part in zip(microbatches, features.split([len(each.slots) for each in microbatches]), strict=True):
        leaf = part.detach().requires_grad_()
        with seeing(model, leaf):
            part_loss = loss_function(model, inputs)
        loss = loss + part_loss.detach()
        wanted = [leaf, *trained.values(), *held]
        found = [None] * len(wanted)
        if part_loss.requires_grad:
            found = torch.autograd.grad(part_loss, wanted, allow_unused=True)
        felt.append(torch.zeros_like(leaf) if found[0] is None else found[0])
        _add(gradients, trained, found[1 : len(trained) + 1])
    return loss, gradients, torch.cat(felt)


def _calls(route: Route, rows: Tensor, unit: str) -> list[tuple[np.ndarray, Tensor]]:
    """Return media and rows of each of this rank's encoder calls."""
    calls, sizes = route.calls(), route.sizes(unit)
    parts = rows.split([int(sizes[media].sum()) for media in calls]) if calls else ()
    return list(zip(calls, parts, strict=True))


def _add(gradients: Gradients, weights: dict[str, Tensor], found: Sequence[Tensor | None]) -> None:
    """Add what was found, laid out as the weights are: whoever sums over ranks may look at memory alone."""
    for name, gradient in zip(weights, found, strict=True):
        if gradient is not None:
            gradients[name] = gradients[name] + gradient if name in gradients else gradient.contiguous()


class _Graft(torch.autograd.Function):
    """A loss with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "a decoupled step's gradients are given away once"
        return None, None, *[gradient * scale[0].to(gradient.dtype) for gradient in gradients]
