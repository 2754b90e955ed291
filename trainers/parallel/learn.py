"""The one door of a step's gradients: an engine and a batch in, loss and gradients out, however ranks share the work.

Three ways. Plain: each rank encodes and learns from its own packs. Decoupled: media are encoded by all ranks alike.
Pipeline: a pipeline's ranks share its packs' layers; media are encoded by all ranks or by each pipeline's first, and
their features stand on the first. What is learnt is the same but for rounding. `Engine.update` comes after.
"""

# Shapes: n targets of this rank's packs, R ranks, V vision tokens.

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from trainers.engine import Engine
from trainers.inputs import Inputs
from trainers.model.kimi_k25 import KimiK25
from trainers.parallel import dep
from trainers.parallel.spread import Spread

LossFunction = Callable[[KimiK25, Inputs], tuple[Tensor, Tensor]]
"""Model and batch in; out this rank's part of a loss that sums over ranks, float [], and that of each target, [n]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learnt:
    """What a step found; in a pipeline the same on each of its ranks."""

    loss: Tensor
    """float [] the part of this rank's packs, without gradient."""
    target_losses: Tensor
    """float [n] of each target, without gradient."""
    patches: np.ndarray | None
    """int64 [R] patches that each rank encoded; None where each encodes its own."""
    seconds: tuple[float, float]
    """Wall time of this rank in vision and in the backbone, both ways, waiting for others included."""


def learn(
    engine: Engine,
    inputs: Inputs,
    loss_function: LossFunction,
    *,
    target_weight: float = 1.0,
    decoupled: bool = True,
    force: bool = False,
) -> Learnt:
    """Make the gradients of a step, for `Engine.update`. Collective: every rank comes with its packs or with none.

    Args:
        engine: whose model learns.
        inputs: the packs of `engine.data_rank`: the same on all ranks of a pipeline.
        loss_function: called once; in a pipeline not at all, since no rank has the whole model.
        target_weight: factor of a target's loss, by which a pipeline makes its loss.
        decoupled: whether all ranks encode alike; without effect on one rank or without a tower.
        force: whether to take the decoupled way on one rank too.
    """
    model = cast(KimiK25, engine.model)
    engine.begin_step()
    if engine.spread and engine.spread.pipeline:
        return _piped(engine, engine.spread, inputs, weight=target_weight, decoupled=decoupled)
    if decoupled and model.vision is not None and (engine.num_ranks > 1 or force):
        return _decoupled(engine, inputs, loss_function)
    return _plain(engine, inputs, loss_function)


def _plain(engine: Engine, inputs: Inputs, loss_function: LossFunction) -> Learnt:
    model, started = cast(KimiK25, engine.model), time.perf_counter()
    with _timed_vision(model) as clock:
        loss, losses = loss_function(model, inputs)
        engine.backward(loss)
    whole, vision = time.perf_counter() - started, clock.seconds()
    return Learnt(
        loss=loss.detach(), target_losses=losses.detach(), patches=None, seconds=(vision, max(0.0, whole - vision))
    )


def _decoupled(engine: Engine, inputs: Inputs, loss_function: LossFunction) -> Learnt:
    model, kept = cast(KimiK25, engine.model), []

    def part(model: KimiK25, inputs: Inputs) -> Tensor:
        loss, losses = loss_function(model, inputs)
        kept.append(losses.detach())
        return loss

    step = dep.decoupled(model, inputs, part)
    started = time.perf_counter()
    engine.backward(dep.dep_loss(model, step))
    encoding, backbone, again = step.seconds
    seconds = (encoding + again, backbone + time.perf_counter() - started)
    return Learnt(loss=step.loss, target_losses=kept[0], patches=step.patches, seconds=seconds)


def _piped(engine: Engine, spread: Spread, inputs: Inputs, *, weight: float, decoupled: bool) -> Learnt:
    """The gradients of all ranks' weights, times the number of ranks, as `Engine.update` wants them."""
    model, is_first, started = cast(KimiK25, engine.model), engine.place.stage == 0, time.perf_counter()
    seen, leaf, patches = None, None, None
    if model.vision is not None:
        own = inputs if is_first else _blind(inputs)
        seen = dep.encode(model, [own], layout=dep.by_patches if decoupled else dep.at_home)
        leaf, patches = seen.features.detach().requires_grad_(), seen.loads()
    encoded = time.perf_counter()
    merged = leaf if leaf is not None and is_first and len(inputs.slots) else None
    options = {"packs": spread.common_packs(inputs), "weight": weight * engine.num_ranks}
    assert spread.pipeline is not None
    losses = spread.pipeline.losses(inputs, merged, **options)
    learned = time.perf_counter()
    if seen is not None and leaf is not None and (vision := dep.trained_weights(model, "vision.")):
        felt = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, gradient in dep.learn_vision(model, seen, felt, vision).items():
            grad = vision[name].grad
            vision[name].grad = gradient if grad is None else grad + gradient
    seconds = (encoded - started + time.perf_counter() - learned, learned - encoded)
    return Learnt(loss=weight * losses.sum(), target_losses=losses, patches=patches, seconds=seconds)


def _blind(inputs: Inputs) -> Inputs:
    """Return the packs without their media: those are another rank's to hand out."""
    return replace(inputs, patches=inputs.patches[:0], grid_thw=inputs.grid_thw[:0], slots=inputs.slots[:0])


@dataclass(slots=True)
class _Clock:
    """When the tower worked: forward from call to return, backward from its features' gradient to the end."""

    forward: float = 0.0
    felt: float | None = None

    def seconds(self) -> float:
        """Return the time of both."""
        return self.forward + (0.0 if self.felt is None else time.perf_counter() - self.felt)


@contextmanager
def _timed_vision(model: KimiK25) -> Iterator[_Clock]:
    """Watch what the coupled tower takes: autograd runs its backward last, since it ran first."""
    clock, see = _Clock(), model.see

    def watched(inputs: Inputs) -> Tensor:
        started = time.perf_counter()
        features = see(inputs)
        clock.forward = time.perf_counter() - started
        if features.requires_grad:
            features.register_hook(lambda gradient: setattr(clock, "felt", time.perf_counter()))
        return features

    object.__setattr__(model, "see", watched)
    try:
        yield clock
    finally:
        object.__delattr__(model, "see")
