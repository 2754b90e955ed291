"""Pre-train, any stage: a plan in, checkpoints out. Run: python -m trainers.pretrain RUN.json, alone or by torchrun.

The stage is in the config: which modules move, what they start from, what the losses weigh. Started again, a run goes
on from its newest published checkpoint; on the same ranks and threads its weights are then the same bit for bit. A run
whose config names another run's checkpoint begins there, on a plan that has the steps before it alike.
"""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from k25_pipelines.errors import CheckpointError, K25Error
from k25_pipelines.keys import random_key
from k25_pipelines.loader import Batch, PlanLoader
from k25_pipelines.planning import Plan, open_plan
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store
from trainers.checkpoint import load_modules, restore, save_checkpoint
from trainers.checks import check_machine, check_plan, check_run, idle_ranks
from trainers.config import MODULES, Run, TrainConfig, check_config, load_run, plain
from trainers.engine import Engine, join_ranks, leave_ranks
from trainers.feed import Feed
from trainers.inputs import inputs_of
from trainers.lifetime import end_with_parent
from trainers.memory import keep_freed_memory
from trainers.model.kimi_k25 import KimiK25
from trainers.model.recompute import set_recompute
from trainers.ranks import BAD_INPUT, LOST, is_lost, note_lost
from trainers.recipes import PROBE_STEPS
from trainers.record import changed_layout, checkpoint_record, checkpoint_steps, layout_of
from trainers.report import Report, open_report
from trainers.resuming import check_source, first_plan, read_record, source_of, way_out
from trainers.run_lock import locked
from trainers.spikes import SAMPLES_NAMED, spike_limit
from trainers.step import Step, train_step
from trainers.stopping import no_number, step_samples, stop, wild_weight
from trainers.tracking import check_tracking

OF_WORDS = ("language", "contrastive")
"""Modules whose weights mean something in one vocabulary alone; those of pictures serve any."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """The lines of the steps that are done, as `checkpoint.LINES` names them, and the newest checkpoint."""

    history: list[dict] = field(default_factory=list)
    timings: list[dict] = field(default_factory=list)
    spikes: list[dict] = field(default_factory=list)
    checkpoint: str | None = None
    """Its key: this run's, or that of the run it goes on from."""

    def lines(self) -> dict[str, list[dict]]:
        """Return them by name."""
        return {"history": self.history, "timings": self.timings, "spikes": self.spikes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """The ranks among whom packs are dealt out: the ranks of one pipeline are one of them."""

    rank: int
    num_ranks: int
    engine: Engine

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each of them."""
        return self.engine.gather_data(value)


def main(run: Run) -> None:
    """Train a run to its end, or to `run.stop_at`, from wherever it stands; what cannot work is refused first."""
    num_ranks, num_local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    check_config(run.config)
    check_run(run, num_ranks)
    check_machine(run)
    check_tracking(run.tensorboard)
    store, work = open_store(run.store), Path(run.work)
    plan = checked_plan(run, store, num_ranks=num_ranks)
    with locked(work, run=run.run) if os.environ.get("RANK", "0") == "0" else nullcontext():
        work.mkdir(parents=True, exist_ok=True)
        _train_on(run, store, work, plan=plan, num_local=num_local)


def _train_on(run: Run, store: Store, work: Path, *, plan: Plan, num_local: int) -> None:
    """Join the ranks, build the model and train it."""
    rank = join_ranks(work, threads=run.threads)
    options = {"run": run.run, "tensorboard": run.tensorboard}
    with open_report(work, rank=rank, num_steps=run.config.steps, **options) as report:
        if idle := idle_ranks(run, plan, torch.distributed.get_world_size()):
            report.say(idle)
        model = build_model(run.config, store)
        set_recompute(model, run.recompute)
        model.language.offload = run.offload
        torch.manual_seed(random_key("torch", run.config.seed) >> 1)  # building drew from it, as did runs before
        engine = Engine(model, run.config, run.parallel, pack_tokens=plan.recipe.pack_tokens)
        shares = Shares(rank=engine.data_rank, num_ranks=engine.num_data_ranks, engine=engine)
        near = shared_packs(engine.num_data_ranks, min(num_local, engine.num_data_ranks))
        with Feed(run, store, shares, ranks_per_node=near, writes=engine.rank == 0) as feed:
            train(run, store, engine, plan=plan, feed=feed, report=report, ranks_per_node=near)


def checked_plan(run: Run, store: Store, *, num_ranks: int) -> Plan:
    """Return the plan that a run begins on, after a look at it, at what the run goes on from and at its parents.

    Raises:
        ValueError: the plan needs another model, or has too few steps.
        CheckpointError: a checkpoint is of another config, plan or tokenizer; the field or the step is named.
    """
    plan = open_plan(store, run.config.plan)
    check_plan(run.config, plan, num_tokens=load_tokenizer(plan.tokenizer, store).num_tokens)
    for module, key in sorted((name, key) for name, key in run.config.initial.items() if name in OF_WORDS):
        theirs = read_record(store, key).get("tokenizer")
        if theirs and theirs != plan.tokenizer:
            raise CheckpointError(
                f"config.initial.{module}: {key} was trained with tokenizer {theirs}, plan {plan.id} has "
                f"{plan.tokenizer}; make a plan with the same"
            )
    if (source := source_of(store, run.run, run.config)) is not None:
        check_source(*source, config=plain(run.config), num_ranks=num_ranks, plan=plan)
    return plan


def shared_packs(num_ranks: int, num_local: int) -> int:
    """Return how many of a machine's processes deal its packs out by cost; 1 where machines differ in their number."""
    return num_local if num_ranks % num_local == 0 else 1


def build_model(config: TrainConfig, store: Store) -> KimiK25:
    """Return the model at its start: seeded, modules of earlier stages taken over, what is not trained frozen."""
    model = KimiK25(config.model, seed=config.seed)
    load_modules(model, store, config.initial)
    if config.lora:
        from trainers.interchange.lora import add_adapters

        add_adapters(model, config.lora, seed=config.seed)
        return model
    for name in MODULES:
        if (module := getattr(model, name)) is not None:
            module.requires_grad_(name in config.trainable)
    return model


def train(
    run: Run, store: Store, engine: Engine, *, plan: Plan, feed: Feed, report: Report, ranks_per_node: int = 1
) -> None:
    """Take the steps that are left, each from the plan, and leave checkpoints where the config asks for them."""
    config, layout = run.config, {"num_ranks": engine.num_ranks, "ranks_per_node": ranks_per_node}
    done = _resume(run, store, engine, plan=plan, feed=feed, report=report, layout=layout_of(run, **layout))
    probed = open_plan(store, first_plan(store, config)) if config.continues else plan
    probe = range(config.steps, min(config.steps + PROBE_STEPS, probed.num_steps))
    last = min(config.steps, run.stop_at or config.steps)
    saved = {*checkpoint_steps(config), last}
    pad = load_tokenizer(plan.tokenizer, store).special["pad"]
    for step in range(len(done.history), last):
        before = {"probe_before": probe_loss(engine, probed, probe)} if step == 0 else {}
        started = time.perf_counter()
        batch = feed.batch(step)
        waited = time.perf_counter() - started
        taken = train_step(engine, batch, run, step=step, pad=pad, inputs=feed.inputs, waited=waited)
        halt = partial(stop, run, engine, feed, batch=batch, taken=taken, checkpoint=done.checkpoint)
        if what := no_number({**taken.metrics, **before}) or (wild_weight(engine) if step + 1 in saved else None):
            halt(what=what)
        metrics = {**taken.metrics, **before, "digest": feed.trained(step, batch)}
        seconds = _with_rest(taken.seconds, time.perf_counter() - taken.ended)
        if step + 1 == config.steps:
            metrics["probe_after"] = probe_loss(engine, probed, probe)
            if what := no_number(metrics):
                halt(what=what)
        report.step({**metrics, "seconds": seconds})
        _note_spike(run, engine, feed, report, batch=batch, taken=taken, done=done)
        done.history.append(metrics)
        done.timings.append({"step": step, **seconds})
        if step + 1 in saved:
            feed.write_log()
            record = checkpoint_record(run, feed, done.history, **layout)
            done.checkpoint = save_checkpoint(engine, store, record, lines=done.lines(), work=Path(run.work))
            report.say(f"checkpoint {done.checkpoint}")


@torch.no_grad()
def probe_loss(engine: Engine, plan: Plan, steps: range) -> float | None:
    """Return the mean loss of a token over planned steps that are not trained on [nats]; None if there are none.

    The same steps before and after training, of the plan that the run was started on: single steps differ in what they
    hold, so their losses cannot be compared.
    """
    losses, targets = 0.0, 0
    with PlanLoader(plan, plan.store, rank=engine.data_rank, num_ranks=engine.num_data_ranks, threads=1) as loader:
        for step in steps:
            inputs = inputs_of(loader.batch(step))
            losses += float(engine.target_losses(inputs).sum())
            targets += len(inputs.target)
    whole, count = engine.total([losses, targets])
    return whole / count if count else None


def _with_rest(seconds: Mapping[str, float], rest: float) -> dict[str, float]:
    """Return a step's times with what came after it: the digests of its data, gathered and logged."""
    return {**seconds, "other": seconds["other"] + rest, "all": seconds["all"] + rest}


def _note_spike(
    run: Run, engine: Engine, feed: Feed, report: Report, *, batch: Batch, taken: Step, done: Progress
) -> None:
    """Keep and report a step whose loss stands far above those before, with the samples that lost most."""
    known, loss = spike_limit([line["loss"] for line in done.history]), taken.metrics["loss"]
    if known is None or loss <= known[1]:
        return
    step, samples = taken.metrics["step"], step_samples(engine, batch, taken)[:SAMPLES_NAMED]
    spike = {"step": step, "loss": loss, "median": known[0], "limit": known[1], "samples": samples}
    done.spikes.append(spike)
    out = way_out(run.config, plan=feed.plan.id, step=step, checkpoint=done.checkpoint, samples=samples)
    report.spike(spike, out=out)


def _resume(
    run: Run, store: Store, engine: Engine, *, plan: Plan, feed: Feed, report: Report, layout: Mapping[str, Any]
) -> Progress:
    """Go on from the newest checkpoint or another run's, if there is one, and return what is known of its steps."""
    source, done = engine.gather(source_of(store, run.run, run.config))[0], Progress()
    if source is not None:
        key, record = source
        check_source(key, record, config=plain(run.config), num_ranks=engine.num_ranks, plan=plan)
        record = restore(engine, store, key, record=record, work=Path(run.work))
        done = Progress(**{name: record[name] for name in done.lines()}, checkpoint=key)
        if key != run.config.continues:
            feed.resume(record)
        else:
            feed.begin_at(record["step"])
            report.say(f"going on from {key} on plan {plan.id}")
        if changed := changed_layout(record, layout):
            report.say(f"resuming on another layout, {', '.join(changed)}: the same data, not bit for bit")
        report.say(f"resuming after step {record['step']}")
    times = {line["step"]: line for line in done.timings}
    told = [{**line, "seconds": times[line["step"]]} if line["step"] in times else line for line in done.history]
    report.resume(told, done.spikes)
    return done


def _run_file(path: str) -> int:
    """Train what a run file says, and return the process's exit code."""
    work = None
    try:
        run = load_run(path)
        work = Path(run.work)
        main(run)
    except (K25Error, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except RuntimeError as error:
        if work is None or not is_lost(error):
            raise
        rank = int(os.environ.get("RANK", "0"))
        said = note_lost(error, work / f"rank-{rank}.log", rank=rank)
        if rank == 0:
            sys.stderr.write(f"{said}\n")
            sys.stderr.flush()
        os._exit(LOST)  # a group that is broken cannot be closed
    finally:
        leave_ranks()
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    end_with_parent()
    sys.exit(_run_file(sys.argv[1]))
