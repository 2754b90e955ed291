"""What training costs: packed against padded, the model's products against plain ones, and the wait for data.

Run: . .k25/env && python -m benchmarks.training      (after `make demo`; writes benchmarks/results/training.json)

packing: the same samples of the demo's joint stage, once as the plan packs them, once a sample to a row: filled up to
    the context, and to the longest of its batch with neighbours of like length beside it. True tokens a second,
    forward and backward of the same model.
products: forward and backward, QK-Clip's look at the logits included, against the same matrix products alone, in
    turns; at `small`, and at a slice of `base` with its widths, 3 of its layers and a quarter of its words, on
    a quarter of the packs.
waiting: steps at `toy` size with MuonClip: the share of a step's wall time until its inputs are there, asked for when
    they are needed, and a step ahead in a thread; beside it the share of CPU time, which other users of the machine do
    not move. The first steps open the plan and are told apart.
gpu: the share of the peak that `base` reaches in bfloat16, and its five largest kernels; only where a GPU is at hand.

CPU seconds of the calling thread, one compute thread, but for waiting, which is wall time. Rounds alternate; ratios
are medians of rounds.
"""

# Shapes: N places, H heads.

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.batches import documents_of, padded_batches
from benchmarks.products import Products, recorded, seconds_alone
from benchmarks.report import RESULTS, keep
from k25_pipelines.loader import Batch, PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import Plan, make_plan, open_plan
from k25_pipelines.storage.store import Store, open_store
from trainers.config import ModelConfig
from trainers.inputs import Inputs, inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import track_logits
from trainers.models import BASE, SMALL, TOY
from trainers.recipes import stage_recipe

PARTS = ("packing", "products", "waiting", "gpu")
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12}
"""Dense bfloat16 products a second that the maker states, by a part of the device's name."""
THREADS = 2
"""That decode while a toy's steps are computed: a run's default."""
SLICE = replace(
    BASE,
    name="slice of base",
    language=replace(BASE.language, layers=3, vocab=8192),
    vision=replace(BASE.vision, layers=3) if BASE.vision else None,
)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="the others' last figures stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lake = open_store(os.environ["K25_LAKE"])
    path, told = RESULTS / "training.json", {}
    if path.exists():
        told = {part: figures for part, figures in json.loads(path.read_text()).items() if part in PARTS}
    for part in options.parts:
        told[part] = MEASURES[part](lake, options.rounds)
        print(part, json.dumps(told[part], indent=1), flush=True)
    told["hardware"] = "CPU, one compute thread; gpu: " + ("none at hand" if not torch.cuda.is_available() else "CUDA")
    print(keep("training", told, command=". .k25/env && python -m benchmarks.training"))


def packing(lake: Store, rounds: int) -> dict:
    """Return true tokens a second, packed and padded, and the ratios."""
    plan, model = planned(lake, "joint", "demo"), model_of(SMALL)
    with PlanLoader(plan, lake, threads=1) as loader:
        packed = [loader.batch(step) for step in range(2)]
    documents = [each for batch in packed for each in documents_of(batch)]
    tokens = sum(len(each.input_ids) for each in documents)
    ways = {
        "packed": packed,
        "padded to the context": padded_batches(documents, rows=8, length=plan.recipe.pack_tokens),
        "padded to the longest": padded_batches(documents, rows=8),
    }
    inputs = {name: [inputs_of(batch) for batch in batches] for name, batches in ways.items()}
    steps = {name: lambda each=each: [forward_backward(model, one) for one in each] for name, each in inputs.items()}
    spent = in_turns(steps, rounds)
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    lengths = np.array([len(each.input_ids) for each in documents])
    return {
        "samples": len(documents),
        "tokens": tokens,
        "sample_tokens": {
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        "fill": {name: tokens / sum(batch.input_ids.size for batch in batches) for name, batches in ways.items()},
        "tokens_per_second": {name: tokens / seconds for name, seconds in median.items()},
        "packed_over": {name: ratio(spent[name], spent["packed"]) for name in ways if name != "packed"},
    }


def products(lake: Store, rounds: int) -> dict:
    """Return the share of plain products' speed that forward and backward reach, by model."""
    plan = planned(lake, "joint", "demo")
    told = {}
    for config, num_ranks, num_rounds in ((SMALL, 1, rounds), (SLICE, 4, min(rounds, 3))):
        with PlanLoader(plan, lake, threads=1, num_ranks=num_ranks) as loader:
            batch = loader.batch(0)
        model, inputs = model_of(config), inputs_of(batch)
        step = lambda model=model, inputs=inputs: forward_backward(model, inputs)  # noqa: E731
        found = recorded(step, pairs=causal_pairs(config, batch), values=config.language.head_value)
        operands: dict = {}
        spent = in_turns({"model": step, "plain": lambda f=found, o=operands: seconds_alone(f, o)}, num_rounds)
        told[config.name] = shares(found, spent, config, batch)
        print(json.dumps(told[config.name]), flush=True)
    return told


def shares(found: Products, spent: dict[str, list[float]], config: ModelConfig, batch: Batch) -> dict:
    """Return the figures of one model."""
    return {
        "places": batch.input_ids.size,
        "vision_tokens": int(batch.media_slots[:, 2].sum()),
        "experts": config.language.experts,
        "gigaflops_of_work": found.flops / 1e9,
        "attention_seen_of_rectangles": found.seen,
        "seconds": statistics.median(spent["model"]),
        "seconds_of_plain_products": statistics.median(spent["plain"]),
        "gigaflops_per_second": found.flops / statistics.median(spent["model"]) / 1e9,
        "of_plain_products": ratio(spent["plain"], spent["model"]),
    }


def waiting(lake: Store, rounds: int) -> dict:
    """Return the share of a step's wall time that waits for its batch, at toy size."""
    plan = planned(lake, "joint", "toy", steps=20 + 20 * rounds)
    ways = {"asked for when needed": 0, "asked for a step ahead": 1}
    return {name: waited(lake, plan, ahead=ahead) for name, ahead in ways.items()}


def waited(lake: Store, plan: Plan, *, ahead: int) -> dict:
    """Return the seconds of all steps, and those of them that waited, with a cache that begins empty.

    Args:
        lake: the store.
        plan: of few and small steps.
        ahead: steps that a thread of its own asks the loader for before they are needed.
    """
    from trainers.optim.muonclip import MuonClip

    model = model_of(replace(TOY, contrastive=None))
    optimizer = MuonClip(list(model.named_parameters()), learning_rate=1e-3, weight_decay=0.05)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        PlanLoader(plan, lake, threads=THREADS, cache=Path(folder), cached_tokens=True) as loader,
    ):
        get = asked_ahead(loader) if ahead else lambda step: inputs_of(loader.batch(step))
        for step in range(plan.num_steps):
            begun = clock()
            inputs = get(step)
            got = clock()
            model(inputs).target_losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append((got - begun, clock() - begun))
    first, later = np.array(rows[:5]).sum(0), np.array(rows[5:])
    return {
        "steps": len(later),
        "first_5_steps_seconds": {"waited": first[0, 0], "all": first[1, 0]},
        "step_seconds": float(np.median(later[:, 1, 0])),
        "waited_share": float(later[:, 0, 0].sum() / later[:, 1, 0].sum()),
        "waited_share_of_the_median_step": float(np.median(later[:, 0, 0]) / np.median(later[:, 1, 0])),
        "longest_wait_seconds": float(later[:, 0, 0].max()),
        "cpu_share_of_the_trainer_s_thread": float(later[:, 0, 1].sum() / later[:, 1, 1].sum()),
    }


def asked_ahead(loader: PlanLoader) -> Callable[[int], Inputs]:
    """Return what gives a step's inputs and has a thread begin with the next one's."""
    thread, coming = ThreadPoolExecutor(1), {}

    def get(step: int) -> Inputs:
        found = coming.pop(step, None) or thread.submit(lambda: inputs_of(loader.batch(step)))
        inputs = found.result()
        if step + 1 < loader.plan.num_steps:
            coming[step + 1] = thread.submit(lambda: inputs_of(loader.batch(step + 1)))
        return inputs

    return get


def clock() -> np.ndarray:
    """Return wall seconds and CPU seconds of this thread."""
    return np.array([time.perf_counter(), time.thread_time()])


def gpu(lake: Store, rounds: int) -> dict | str:
    """Return the share of the peak in bfloat16 and the five largest kernels, where a GPU is at hand."""
    if not torch.cuda.is_available():
        return "skipped: no GPU is at hand"
    from benchmarks.gpu import measured

    return measured(rounds, PEAK_BF16)


def planned(lake: Store, stage: str, scale: str, steps: int | None = None) -> Plan:
    """Return the plan of a stage over the demo's datasets; one that is there already is not made again."""
    recipe = stage_recipe(stage, scale)
    recipe = recipe if steps is None else {**recipe, "steps": steps, "name": f"{recipe['name']}-benchmark"}
    return open_plan(lake, make_plan(lake, parse_recipe(recipe)))


def model_of(config: ModelConfig) -> KimiK25:
    """Return a model that looks at its logits, as under MuonClip."""
    model = KimiK25(replace(config, contrastive=None), seed=3).train()
    track_logits(model, True)
    return model


def forward_backward(model: KimiK25, inputs: Inputs) -> None:
    """Do what a step does before its optimizer."""
    model(inputs).target_losses.sum().backward()
    model.zero_grad()


def causal_pairs(config: ModelConfig, batch: Batch) -> float:
    """Return the pairs of places that see each other in the decoder, times heads and layers."""
    lengths = np.diff(batch.cu_seqlens).astype(np.int64)
    return float((lengths * (lengths + 1) // 2).sum()) * config.language.heads * config.language.layers


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each work by round, after one round that warms up; a number that it returns counts."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.thread_time()
            told = work()
            seconds = told if isinstance(told, float) else time.thread_time() - started
            if number:
                spent[name].append(seconds)
    return spent


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


MEASURES = {"packing": packing, "products": products, "waiting": waiting, "gpu": gpu}


if __name__ == "__main__":
    main()
