"""What was seen of a run's steps: the lines that lie beside its checkpoint in; figures and pictures out.

A run that did not record something, as an imported one, lacks the figure and the picture of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assets.outputs import checkpoint_lines
from assets.pictures import curves
from k25_pipelines.storage.store import Store

PARTS = ("wait", "vision", "backbone", "optimizer")
"""What a step's time goes to, as the trainer tells it."""
SHOWN_SPIKES = 20
SHOWN_SAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The steps before a checkpoint."""

    metrics: Sequence[Mapping[str, Any]]
    """A line a step."""
    timings: Sequence[Mapping[str, Any]]
    """Wall seconds of each step, by part; they are no part of what a resumed run repeats."""
    spikes: Sequence[Mapping[str, Any]]
    """A line for each step whose loss stood far above those before it."""


def read_training(lake: Store, checkpoint: str) -> Training:
    """Return what lies beside the checkpoint of this key."""
    names = ("metrics", "timings", "spikes")
    return Training(**{name: checkpoint_lines(lake, checkpoint, name) for name in names})


def training_figures(told: Training) -> dict[str, Any]:
    """Return the numbers that sum up all steps."""
    figures: dict[str, Any] = {"num_spikes": len(told.spikes)}
    if clipped := _column(told.metrics, "clipped_heads"):
        figures["clipped_heads"] = int(sum(clipped))
    if logits := _column(told.metrics, "max_logit"):
        figures["max_logit"] = max(logits)
    if patches := [sum(line["patches"]) for line in told.metrics if line.get("patches")]:
        figures["patches_per_step"] = sum(patches) / len(patches)
    if whole := sum(_column(told.timings, "all")):
        figures |= {f"{part}_share_of_time": sum(_column(told.timings, part)) / whole for part in PARTS}
        figures["tokens_per_second"] = sum(line["tokens"] for line in told.metrics) / whole
    return figures


def training_pictures(told: Training) -> dict[str, bytes]:
    """Return a PNG of each thing that was recorded: loss, vision share, attention logits, expert load, step time."""
    metrics = told.metrics
    shares = [line["vision_tokens"] / max(1, line["tokens"]) for line in metrics]
    layers = max((len(line.get("expert_load") or ()) for line in metrics), default=0)
    lines: dict[str, tuple[dict[str, list[float]], str]] = {
        "loss": ({"loss": _column(metrics, "loss")}, "nats a token, weighted"),
        "vision share": ({"share": shares if any(shares) else []}, "share of tokens"),
        "largest attention logit": ({"before QK-Clip": _column(metrics, "max_logit")}, "logit"),
        "expert load": (
            {f"layer {number}": [line["expert_load"][number] for line in metrics] for number in range(layers)},
            "most over mean",
        ),
        "step time": ({part: _column(told.timings, part) for part in PARTS}, "seconds"),
    }
    drawn = {name: ({label: ys for label, ys in each.items() if ys}, unit) for name, (each, unit) in lines.items()}
    return {name: curves(each, title=name, unit=unit) for name, (each, unit) in drawn.items() if each}


def spike_rows(told: Training) -> list[dict[str, Any]]:
    """Return a row for each loss spike: its step, how high, and the samples that cost most."""
    return [
        {
            "step": spike["step"],
            "loss": spike["loss"],
            "median before": spike["median"],
            "samples": ", ".join(f"{each['dataset']}/{each['key']}" for each in spike["samples"][:SHOWN_SAMPLES]),
        }
        for spike in told.spikes[:SHOWN_SPIKES]
    ]


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return what the lines have under a name; the same length as `lines`, or empty where one lacks it."""
    values = [line.get(name) for line in lines]
    return [float(value) for value in values if value is not None] if None not in values else []
