"""The bubble of the interleaved pipeline against theory: 2 ranks with 2 virtual stages each, beside 1 stage each.

Run: python -m benchmarks.pipeline      (no lake needed; writes benchmarks/results/pipeline.json)

Two ranks of one thread on this machine's CPU, over gloo; no GPU takes part. The bubble is step time over the time of a
rank's work, less 1; in theory (ranks - 1) / (virtual stages * micro-batches).
waiting: layers sleep, 80 ms forward and 160 ms backward, so that only schedule and communication are measured, whatever
    else the machine does. A rank's work is the time its layers slept, which a busy machine stretches.
computing: the layers of a small decoder; a rank's work is half of what the whole model takes in one piece, measured in
    the same rounds on both ranks at once. On a machine that others use these are not steady.
"""

# Shapes: T tokens of a pack.

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.report import keep
from trainers.config import ModelConfig
from trainers.inputs import Inputs, inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.models import SMALL
from trainers.parallel.pipeline import Pipeline, bubble

FORWARD_SECONDS = 0.08
LAYERS = 4
PACKS = (4, 8)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        run_rank(Path(options.as_rank), rounds=options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run(
            [*launcher, "-m", "benchmarks.pipeline", "--rounds", str(options.rounds), "--as-rank", folder],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        told = json.loads((Path(folder) / "measured.json").read_text())
    print(json.dumps(told, indent=1))
    told = {"hardware": "2 CPU ranks of 1 thread over gloo; no GPU took part", **told}
    print(keep("pipeline", told, command="python -m benchmarks.pipeline"))


def run_rank(out: Path, *, rounds: int) -> None:
    """Measure as one of two ranks; rank 0 writes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    told: dict[str, list[dict]] = {"waiting": [], "computing": []}
    for packs in PACKS:
        for num_virtual in (1, 2):
            theory = bubble(2, num_virtual, packs)
            for kind, rows in told.items():
                seconds, work = measured(kind, packs=packs, num_virtual=num_virtual, rounds=rounds)
                shape = {"virtual_stages": num_virtual, "micro_batches": packs}
                figures = {
                    "step_seconds": seconds,
                    "work_seconds": work,
                    "bubble": seconds / work - 1,
                    "theory": theory,
                }
                rows.append({**shape, **{name: round(value, 4) for name, value in figures.items()}})
    if dist.get_rank() == 0:
        (out / "measured.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


def measured(kind: str, *, packs: int, num_virtual: int, rounds: int) -> tuple[float, float]:
    """Return the seconds of a step, and those of a rank's share of the work, of the round with the median bubble."""
    language = replace(SMALL.language, layers=LAYERS)
    config = ModelConfig(name="pipeline benchmark", language=language)
    whole, model = KimiK25(config, seed=3), KimiK25(config, seed=3)
    if kind == "waiting":
        model.language.layers = nn.ModuleList(Sleeper() for _ in range(LAYERS))
    tokens = 32 if kind == "waiting" else 512
    inputs = inputs_for(packs, tokens)
    pipeline = Pipeline(model, packs=packs, pack_tokens=tokens, num_virtual=num_virtual)
    one = inputs_for(1, tokens)

    def in_one_piece() -> None:
        for _ in range(packs):
            whole(one).target_losses.sum().backward()

    pairs = []
    for _ in range(rounds + 1):
        _Sleep.spent = 0.0
        step = seconds_of(lambda: pipeline.run(inputs))
        pairs.append((step, slowest(_Sleep.spent) if kind == "waiting" else seconds_of(in_one_piece) / 2))
    pairs = sorted(pairs[1:], key=lambda pair: pair[0] / pair[1])  # the first warms up
    return pairs[len(pairs) // 2]


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long the slower rank takes."""
    dist.barrier()
    started = time.perf_counter()
    work()
    return slowest(time.perf_counter() - started)


def slowest(seconds: float) -> float:
    """Return the largest of the ranks' numbers."""
    spent = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return float(spent)


def inputs_for(packs: int, tokens: int) -> Inputs:
    """Return packs of words, four documents in each."""
    from k25_pipelines.loader import Batch

    ids = np.random.default_rng(1).integers(1, 4096, (packs, tokens))
    return inputs_of(
        Batch(
            input_ids=ids,
            labels=ids,
            position_ids=np.tile(np.arange(tokens // 4), (packs, 4)),
            cu_seqlens=np.arange(0, packs * tokens + 1, tokens // 4, dtype=np.int32),
            patches=np.empty((0, 3, 14, 14), np.float32),
            grid_thw=np.empty((0, 3), np.int64),
            media_slots=np.empty((0, 3), np.int64),
            provenance=[],
        )
    )


class Sleeper(nn.Module):
    """A layer that takes its time and changes nothing."""

    def __init__(self) -> None:
        """Have one weight, as layers do."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, turns: Tensor, groups: object) -> Tensor:
        """Return `x`, later."""
        return _Sleep.apply(x * self.weight)


class _Sleep(torch.autograd.Function):
    spent = 0.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        _sleep(FORWARD_SECONDS)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _sleep(2 * FORWARD_SECONDS)
        return gradients[0]


def _sleep(seconds: float) -> None:
    started = time.perf_counter()
    time.sleep(seconds)
    _Sleep.spent += time.perf_counter() - started


if __name__ == "__main__":
    main()
