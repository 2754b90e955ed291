"""Evaluate a checkpoint: its weights in, numbers in the lake out. Run: python -m trainers.evaluate captions RUN.json.

RUN.json: {"checkpoint": key, "store": lake URL, "run": name, "work": folder, "threads": n}. The result stands under the
checkpoint's digest, so the same weights are measured once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from k25_pipelines.errors import K25Error
from k25_pipelines.planning import open_plan
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store
from trainers.checkpoint import load_weights, read_record
from trainers.config import ModelConfig, parse
from trainers.evaluations.captions import evaluate_captions
from trainers.evaluations.needle import evaluate_needle
from trainers.lifetime import end_with_parent
from trainers.model.kimi_k25 import KimiK25
from trainers.report import open_report

EVALUATIONS = ("captions", "needle")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRun:
    """A run file."""

    checkpoint: str
    """Key of a published checkpoint."""
    store: str
    """URL of the lake."""
    run: str
    work: str
    """Local folder."""
    threads: int = 2


def main(name: str, run: EvaluationRun) -> dict:
    """Measure, publish and return the numbers of one evaluation.

    Raises:
        ValueError: there is no such evaluation.
        CheckpointError: there is no such checkpoint.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"no evaluation is called {name!r}; there are {', '.join(EVALUATIONS)}")
    torch.set_num_threads(run.threads)
    torch.use_deterministic_algorithms(True)
    store, work = open_store(run.store), Path(run.work)
    work.mkdir(parents=True, exist_ok=True)
    record = read_record(store, run.checkpoint)
    with open_report(work, rank=0, num_steps=1) as report:
        report.say(f"evaluating {name} of {run.checkpoint}")
        found = _measure(name, store, record, run)
        report.say(", ".join(f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, float)))
    result = {"checkpoint": run.checkpoint, "evaluation": name, **found}
    store.put(f"k25/evaluations/{record['digest']}/{name}.json", json.dumps(result, indent=1).encode())
    return result


def _measure(name: str, store: Store, record: dict, run: EvaluationRun) -> dict:
    model = KimiK25(parse(ModelConfig, record["config"]["model"]))
    model.load_state_dict(load_weights(store, run.checkpoint))
    model.eval()
    if name == "captions":
        return evaluate_captions(model, store, threads=run.threads)
    tokenizer = load_tokenizer(open_plan(store, record["plan"]).tokenizer, store)
    return evaluate_needle(model, store, tokenizer=tokenizer)


if __name__ == "__main__":
    end_with_parent()
    try:
        run_file = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        print(json.dumps(main(sys.argv[1], parse(EvaluationRun, run_file)), indent=1))
    except (K25Error, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
