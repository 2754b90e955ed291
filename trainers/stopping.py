"""A run stops where a number is none: before anything is kept of the step, with its samples and the way out."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from k25_pipelines.errors import K25Error
from k25_pipelines.loader import Batch
from trainers.config import Run
from trainers.engine import Engine
from trainers.feed import Feed
from trainers.resuming import way_out
from trainers.spikes import named, sample_losses, without_number, worst_first
from trainers.step import Step

STOPPED = "stopped.json"
"""In the work folder: all samples of a step that a run stopped at."""


def no_number(metrics: Mapping[str, Any]) -> str | None:
    """Return in words the first figure of a step that is no finite number, loss and gradient before all else."""
    words = {"loss": "the loss", "gradient_norm": "the norm of the gradient"}
    for name in (*words, *sorted(set(metrics) - set(words))):
        values = metrics.get(name)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, float) and not math.isfinite(value):
                return f"{words.get(name, name)} is {value}"
    return None


def wild_weight(engine: Engine) -> str | None:
    """Return in words the first weight, by its name, that is not finite on any rank; None: all are. Collective."""
    state = engine.model.state_dict()
    own = (name for name in sorted(state) if state[name].is_floating_point() and not state[name].isfinite().all())
    found = [name for name in engine.gather(next(own, None)) if name is not None]
    return f"the weight {min(found)} is no finite number after its update" if found else None


def stop(
    run: Run, engine: Engine, feed: Feed, *, what: str, batch: Batch, taken: Step, checkpoint: str | None
) -> NoReturn:
    """Raise K25Error naming step and samples; nothing of the step is saved. Collective.

    Args:
        run: which stops.
        engine: this rank's.
        feed: that gave the batch.
        what: is wrong.
        batch: of the step.
        taken: the step.
        checkpoint: key of the newest one, None where there is none.
    """
    step, plan, samples = taken.metrics["step"], feed.plan.id, step_samples(engine, batch, taken)
    file = Path(run.work) / STOPPED
    if engine.rank == 0:
        numbers = {"loss": taken.metrics["loss"], "norm": taken.metrics["gradient_norm"]}
        told = told_numbers({"step": step, "plan": plan, "why": what, **numbers, "samples": samples})
        file.write_text(json.dumps(told, allow_nan=False))
    out = way_out(run.config, plan=plan, step=step, checkpoint=checkpoint, samples=without_number(samples))
    raise K25Error(
        f"step {step} of run {run.run}: {what}. Nothing of this step is kept, the newest checkpoint stays as it is. "
        f"It held {named(samples)}; all of them: {file}, or k25 batch {plan} --steps {step}:{step + 1} --show; those "
        f"before: k25 replay {run.run} --steps A:{step}. To go on without them: {out}; if it is the rate, also "
        "--learning-rate RATE there"
    )


def step_samples(engine: Engine, batch: Batch, taken: Step) -> list[dict]:
    """Return the samples of a step on all ranks, those with the largest losses first. Collective."""
    own = sample_losses(batch, taken.target_losses, taken.target_document)
    return worst_first(sample for part in engine.gather_data(own) for sample in part)


def told_numbers(value: Any) -> Any:
    """Return nested plain data with what is no finite number as words, `nan` or `inf`: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {name: told_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [told_numbers(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
