"""What loader and trainers of this machine are doing, as Prometheus metrics: their files in, text out.

A trainer appends a JSON line a step to <work>/<run>/metrics.jsonl; nothing is asked of it while it trains. Files are
read on from where the last look ended, so a look costs what is new.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PARTS = ("wait", "vision", "backbone", "optimizer", "all")
GAUGES = {
    "loss": "Loss of the newest step [nats].",
    "learning_rate": "Learning rate of the newest step.",
    "gradient_norm": "Norm of the gradient of the newest step.",
    "max_logit": "Largest attention logit of the newest step, before QK-Clip.",
}
"""Field of a step's line -> what it is."""
TOTALS = {
    "tokens": "Tokens trained on.",
    "vision_tokens": "Vision tokens trained on.",
    "targets": "Tokens predicted.",
    "clipped_heads": "Attention heads clipped.",
}


@dataclass(kw_only=True, slots=True)
class RunMetrics:
    """What the lines of one run amount to so far."""

    offset: int = 0
    steps: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    modified: float = 0.0


class Telemetry:
    """The runs below one work folder."""

    def __init__(self, work: Path) -> None:
        """Look nowhere yet."""
        self.work = work
        self.runs: dict[str, RunMetrics] = {}

    def look(self) -> None:
        """Read what was written since the last look. A run begun anew, its file shorter than before, is read anew."""
        for path in sorted(self.work.glob("*/metrics.jsonl")):
            known = self.runs.setdefault(path.parent.name, RunMetrics())
            size = path.stat().st_size
            if size < known.offset:
                known = self.runs[path.parent.name] = RunMetrics()
            known.modified = path.stat().st_mtime
            with path.open("rb") as file:
                file.seek(known.offset)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            known.offset += len(whole)
            for line in whole.splitlines():
                _add(known, json.loads(line))

    def text(self, *, now: float | None = None) -> str:
        """Return every metric in the text format of Prometheus, version 0.0.4.

        Args:
            now: seconds since 1970; the clock if not given.
        """
        now = time.time() if now is None else now
        lines: list[str] = []
        for name, kind, words, values in _families(self.runs, now):
            if values:
                lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in values]
        return "\n".join([*lines, ""])


Values = list[tuple[dict[str, str], float]]


def _add(known: RunMetrics, line: Mapping[str, Any]) -> None:
    known.steps = line["step"] + 1
    known.last = dict(line)
    for name in TOTALS:
        if isinstance(line.get(name), int | float):
            known.totals[name] = known.totals.get(name, 0) + line[name]
    for part, seconds in (line.get("seconds") or {}).items():
        known.seconds[part] = known.seconds.get(part, 0.0) + seconds


def _families(runs: Mapping[str, RunMetrics], now: float) -> Iterator[tuple[str, str, str, Values]]:
    """Yield name, type, words and values of each metric."""
    each = [({"run": run}, known) for run, known in sorted(runs.items()) if known.steps]
    yield "k25_steps_total", "counter", "Steps trained.", [(run, known.steps) for run, known in each]
    for name, words in TOTALS.items():
        values = [(run, known.totals[name]) for run, known in each if name in known.totals]
        yield f"k25_{name}_total", "counter", words, values
    for name, words in GAUGES.items():
        values = [(run, known.last[name]) for run, known in each if isinstance(known.last.get(name), int | float)]
        yield f"k25_{name}", "gauge", words, values
    seconds = [
        ({**run, "part": part}, known.seconds[part]) for run, known in each for part in PARTS if part in known.seconds
    ]
    yield "k25_step_seconds_total", "counter", "Time of steps, by what it went to; wait: for the loader.", seconds
    ages = [(run, max(0.0, now - known.modified)) for run, known in each]
    yield "k25_last_step_age_seconds", "gauge", "Time since the newest step ended.", ages
    loads = [
        ({**run, "layer": str(number)}, load)
        for run, known in each
        for number, load in enumerate(known.last.get("expert_load") or [])
    ]
    yield "k25_expert_load_ratio", "gauge", "Load of the busiest expert over the mean, by layer.", loads
    patches = [
        ({**run, "rank": str(number)}, count)
        for run, known in each
        for number, count in enumerate(known.last.get("patches") or [])
    ]
    yield "k25_patches", "gauge", "Patches that each rank encoded at the newest step.", patches


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {name: json.dumps(value, ensure_ascii=False) for name, value in labels.items()}
    return "{" + ",".join(f"{name}={value}" for name, value in escaped.items()) + "}"


def _number(value: float) -> str:
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(str(value), str(value))
