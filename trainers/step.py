"""One optimizer step, in whatever layout the ranks share the work: a batch in, what is known of the step out."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from k25_pipelines.loader import Batch
from trainers.config import Run, TrainConfig
from trainers.engine import Engine
from trainers.inputs import Inputs, inputs_of
from trainers.loss import Others, siglip_loss
from trainers.model.kimi_k25 import KimiK25, Outputs
from trainers.parallel.exchange import gather_tensors, rank_in, ranks_of
from trainers.parallel.learn import Learnt, learn
from trainers.schedule import learning_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step was; metrics and seconds are the same on every rank, the rest is this data rank's."""

    metrics: dict[str, Any]
    """Fit to be compared bit for bit: no wall time stands among them."""
    seconds: dict[str, float]
    """Wall time of `wait` (for data), `vision`, `backbone`, `optimizer` and `other`, which make up `all`: means over
    ranks, waiting for other ranks included. Vision is the tower, forward, again and backward; the optimizer's part
    begins with the reduction of gradients."""
    ended: float
    """By `time.perf_counter`: up to when the seconds count."""
    target_losses: np.ndarray
    """float32 [n] of every target [nats]."""
    target_document: np.ndarray
    """int64 [n]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Of a step, over all ranks."""

    targets: int
    pairs: int
    tokens: int
    """Without padding."""
    vision_tokens: int


def train_step(
    engine: Engine, batch: Batch, run: Run, *, step: int, pad: int, inputs: Inputs | None = None, waited: float = 0.0
) -> Step:
    """Take one optimizer step. Collective.

    Where loss or gradient are no finite numbers the weights are left as they were, and the metrics say so.

    Args:
        engine: this rank's.
        batch: this data rank's packs of the step.
        run: whose config and layout hold.
        step: from 0, for the learning rate and the metrics.
        pad: the padding token, which is not counted.
        inputs: of the batch, where they are made already.
        waited: for the batch, just before [s].
    """
    config, started = run.config, time.perf_counter() - waited
    inputs = inputs_of(batch, pad) if inputs is None else inputs
    counts, parts = _counts(engine, batch, inputs, pad), [0.0, 0.0]
    learnt = learn(
        engine,
        inputs,
        lambda model, given: _objective(config, counts, model, given, parts),
        target_weight=config.caption_weight / max(1, counts.targets),
        decoupled=run.parallel.decoupled_vision,
    )
    parts[0] = float(learnt.target_losses.double().sum()) / max(1, counts.targets)
    sums = engine.total([float(learnt.loss), *parts])
    rate = learning_rate(step, config)
    norm = engine.update(rate) if math.isfinite(sums[0]) else math.nan
    ended = time.perf_counter()
    seconds, patches = _told(engine, learnt, inputs, waited=waited, whole=ended - started)
    rates = {"patches": patches, "learning_rate": rate, "gradient_norm": norm}
    return Step(
        metrics={"step": step, **_losses(config, *sums), **_shares(counts), **rates, **_seen(engine)},
        seconds=seconds,
        ended=ended,
        target_losses=learnt.target_losses.cpu().numpy(),
        target_document=inputs.target_document,
    )


def contrastive_sum(model: KimiK25, outputs: Outputs, inputs: Inputs) -> Tensor:
    """Return this rank's part of SigLIP's sum over the image-caption pairs of all ranks. Collective."""
    head = model.contrastive
    if head is None:
        return outputs.target_losses.new_zeros(())
    nothing = outputs.target_losses.new_zeros(0, head.config.width)
    images, texts = (nothing if vectors is None else vectors for vectors in (outputs.images, outputs.texts))
    caption = inputs.pairs.caption
    return siglip_loss(
        images,
        texts,
        log_scale=head.log_scale,
        bias=head.bias,
        caption=caption,
        others=_of_others(images, texts, caption),
    )


def _of_others(images: Tensor, texts: Tensor, caption: Tensor) -> Others | None:
    if ranks_of(None) == 1:
        return None
    own = rank_in(None)
    elsewhere = [
        torch.cat([part for rank, part in enumerate(gather_tensors(rows)) if rank != own])
        for rows in (images, texts, caption)
    ]
    return Others(images=elsewhere[0], texts=elsewhere[1], caption=elsewhere[2])


def _counts(engine: Engine, batch: Batch, inputs: Inputs, pad: int) -> Counts:
    own = [len(inputs.target), inputs.pairs.count, int(np.sum(batch.input_ids != pad)), len(inputs.slots)]
    targets, pairs, tokens, vision_tokens = (int(count) for count in engine.total(own))
    return Counts(targets=targets, pairs=pairs, tokens=tokens, vision_tokens=vision_tokens)


def _losses(config: TrainConfig, whole: float, caption: float, contrastive: float) -> dict[str, Any]:
    compared = contrastive if config.contrastive_weight else None
    return {"loss": whole, "caption_loss": caption, "contrastive_loss": compared}


def _shares(counts: Counts) -> dict[str, Any]:
    return {**asdict(counts), "vision_share": counts.vision_tokens / max(1, counts.tokens)}


def _seen(engine: Engine) -> dict[str, Any]:
    """Return what the engine saw; an expert load is a layer's largest over its mean."""
    seen = engine.seen
    loads = [max(load) * len(load) / max(1, sum(load)) for load in seen.expert_loads]
    return {"max_logit": seen.max_logit, "clipped_heads": seen.clipped_heads, "expert_load": loads}


def _objective(
    config: TrainConfig, counts: Counts, model: KimiK25, inputs: Inputs, parts: list[float]
) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the stage's loss, and the loss of each target; `parts[1]` gets the contrastive one."""
    outputs: Outputs = model(inputs)
    caption = outputs.target_losses.sum() / max(1, counts.targets)
    contrastive = contrastive_sum(model, outputs, inputs) / max(1, counts.pairs)
    parts[1] = float(contrastive.detach())
    return config.caption_weight * caption + config.contrastive_weight * contrastive, outputs.target_losses


def _told(engine: Engine, learnt: Learnt, inputs: Inputs, *, waited: float, whole: float) -> tuple[dict, list]:
    """Return the mean seconds over the ranks, and the patches that each encoded."""
    every = engine.gather((waited, *learnt.seconds, engine.seen.optimizer_seconds, whole, len(inputs.patches)))
    *seconds, held = zip(*every, strict=True)
    *parts, mean = (sum(column) / len(every) for column in seconds)
    named = dict(zip(("wait", "vision", "backbone", "optimizer"), parts, strict=True))
    patches = list(held) if learnt.patches is None else learnt.patches.tolist()
    return {**named, "other": mean - sum(parts), "all": mean}, patches
