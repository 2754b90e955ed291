"""Pre-train, any stage: a plan in, checkpoints out. Run: python -m trainers.pretrain RUN.json, alone or by torchrun.

The stage is in the config: which modules move, what they start from, what the losses weigh. Started again, a run goes
on from its newest published checkpoint; on the same ranks and threads its weights are then the same bit for bit.
"""

import math
import sys
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from k25_pipelines.errors import K25Error
from k25_pipelines.loader import Batch, PlanLoader
from k25_pipelines.planning import Plan, open_plan
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store
from trainers.checkpoint import load_modules, restore_newest, save_checkpoint
from trainers.config import MODULES, Run, TrainConfig, check_config, load_run, plain
from trainers.engine import Engine, join_ranks, leave_ranks
from trainers.feed import Feed
from trainers.inputs import Inputs, inputs_of
from trainers.lifetime import end_with_parent
from trainers.loss import siglip_loss
from trainers.model.kimi_k25 import KimiK25, Outputs
from trainers.recipes import PROBE_STEPS
from trainers.record import checkpoint_record, checkpoint_steps
from trainers.report import Report, open_report
from trainers.schedule import learning_rate


def main(run: Run) -> None:
    """Train a run to its end, or to `run.stop_at`, from wherever it stands."""
    check_config(run.config)
    work = Path(run.work)
    work.mkdir(parents=True, exist_ok=True)
    rank = join_ranks(work, threads=run.threads)
    store = open_store(run.store)
    with open_report(work, rank=rank, num_steps=run.config.steps) as report:
        engine = Engine(build_model(run.config, store), run.config)
        with Feed(run, store, engine) as feed:
            train(run, store, engine, feed=feed, report=report)


def build_model(config: TrainConfig, store: Store) -> KimiK25:
    """Return the model at its start: seeded, modules of earlier stages taken over, what is not trained frozen."""
    model = KimiK25(config.model, seed=config.seed)
    load_modules(model, store, config.initial)
    for name in MODULES:
        if (module := getattr(model, name)) is not None:
            module.requires_grad_(name in config.trainable)
    return model


def train(run: Run, store: Store, engine: Engine, *, feed: Feed, report: Report) -> None:
    """Take the steps that are left, each from the plan, and leave checkpoints where the config asks for them."""
    config, work = run.config, Path(run.work)
    first_plan = open_plan(store, config.plan)
    if config.steps > first_plan.num_steps:
        raise K25Error(f"plan {config.plan} has {first_plan.num_steps} steps, the config {config.steps}; extend it")
    history = _resume(run, store, engine, feed=feed, report=report)
    probe = range(config.steps, min(config.steps + PROBE_STEPS, first_plan.num_steps))
    last = min(config.steps, run.stop_at or config.steps)
    saved = {*checkpoint_steps(config), last}
    pad = load_tokenizer(first_plan.tokenizer, store).special["pad"]
    for step in range(len(history), last):
        before = {"probe_before": probe_loss(engine, first_plan, probe)} if step == 0 else {}
        batch = feed.batch(step)
        metrics = {**train_step(engine, batch, config, step=step, pad=pad), **before}
        if step + 1 == config.steps:
            metrics["probe_after"] = probe_loss(engine, first_plan, probe)
        history.append({**metrics, "digest": feed.trained(step, batch)})
        report.step(history[-1])
        if step + 1 in saved:
            feed.write_log()
            record = checkpoint_record(run, feed, history, num_ranks=engine.num_ranks)
            key = save_checkpoint(engine, store, record, history=history, work=work)
            report.say(f"checkpoint {key}")


def train_step(engine: Engine, batch: Batch, config: TrainConfig, *, step: int, pad: int) -> dict:
    """Take one optimizer step and return its metrics, the same on every rank.

    Args:
        engine: this rank's.
        batch: this rank's packs of the step.
        config: the stage's.
        step: from 0, for the learning rate and the metrics line.
        pad: the padding token, which is not counted.

    Raises:
        K25Error: the loss is not a number.
    """
    inputs = inputs_of(batch)
    own = [len(inputs.target), inputs.pairs.count, int(np.sum(batch.input_ids != pad)), len(inputs.slots)]
    targets, pairs, tokens, vision_tokens = (int(count) for count in engine.total(own))
    outputs = engine.forward(inputs)
    caption = outputs.target_losses.sum() / max(1, targets)
    contrastive = contrastive_sum(engine, outputs, inputs) / max(1, pairs)
    loss = config.caption_weight * caption + config.contrastive_weight * contrastive
    whole = engine.total([float(part.detach()) for part in (loss, caption, contrastive)])
    if not math.isfinite(whole[0]):
        raise K25Error(f"step {step} of stage {config.stage}: the loss is {whole[0]}; lower config.learning_rate")
    rate = learning_rate(step, config)
    gradient_norm = engine.step(loss, rate)
    return {
        "step": step,
        "loss": whole[0],
        "caption_loss": whole[1],
        "contrastive_loss": whole[2] if config.contrastive_weight else None,
        "tokens": tokens,
        "vision_tokens": vision_tokens,
        "targets": targets,
        "pairs": pairs,
        "learning_rate": rate,
        "gradient_norm": gradient_norm,
    }


@torch.no_grad()
def probe_loss(engine: Engine, plan: Plan, steps: range) -> float | None:
    """Return the mean loss of a token over planned steps that are not trained on [nats]; None if there are none.

    The same steps before and after training, of the plan that the run was started on: single steps differ in what they
    hold, so their losses cannot be compared.
    """
    losses, targets = 0.0, 0
    with PlanLoader(plan, plan.store, rank=engine.rank, num_ranks=engine.num_ranks, threads=1) as loader:
        for step in steps:
            inputs = inputs_of(loader.batch(step))
            losses += float(engine.model(inputs).target_losses.sum())
            targets += len(inputs.target)
    whole, count = engine.total([losses, targets])
    return whole / count if count else None


def contrastive_sum(engine: Engine, outputs: Outputs, inputs: Inputs) -> Tensor:
    """Return SigLIP's sum over this rank's image-caption pairs; pictures of other ranks are no negatives here."""
    head = cast(KimiK25, engine.model).contrastive
    if head is None or outputs.images is None or outputs.texts is None:
        return outputs.target_losses.new_zeros(())
    return siglip_loss(
        outputs.images, outputs.texts, log_scale=head.log_scale, bias=head.bias, caption=inputs.pairs.caption
    )


def _resume(run: Run, store: Store, engine: Engine, *, feed: Feed, report: Report) -> list[dict]:
    """Go on from the newest checkpoint, if there is one, and return the metrics of the steps that are done."""
    record = restore_newest(engine, store, run=run.run, config=plain(run.config), work=Path(run.work))
    history = [] if record is None else record["history"]
    if record is not None:
        feed.resume(record)
        if record["layout"]["threads"] != run.threads:
            report.say(f"resuming on {run.threads} threads, not {record['layout']['threads']}: not bit for bit")
        report.say(f"resuming after step {record['step']}")
    report.resume(history)
    return history


if __name__ == "__main__":
    end_with_parent()
    try:
        main(load_run(sys.argv[1]))
    except (K25Error, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    finally:
        leave_ranks()
