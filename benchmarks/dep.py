"""The decoupled encoder process against its ideal, beside the coupled model, on batches of the real planner.

Run: python -m benchmarks.dep      (no lake needed; writes benchmarks/results/dep.json)

The ideal of a step is backbone + (2 forward + 1 backward of all vision) / ranks. Two parts:
measured: two ranks of one thread each on this machine's CPU, over gloo. CPU seconds along the critical path (the sum
    over phases of the slower rank) and wall seconds, each against the ideal of pieces that were measured alone in the
    same rounds. CPU seconds of the calling thread leave out gloo's copies, wall seconds leave out nothing, and on a
    machine that others use only the first are steady.
counted: 4 to 256 ranks, multiply-adds instead of seconds, a backward as two forwards; no communication. `patches`
    weighs a medium by its patches; `work` also by its attention, which is quadratic. No layout of whole media beats
    the heaviest medium, and `best_possible` is that bound. With 16 stages a rank is a sixteenth of a pipeline.
"""

# Shapes: R ranks, M media of a step.

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.report import RESULTS, keep
from k25_pipelines.loader import Batch
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.source import SourceTable
from trainers.config import LanguageConfig, ModelConfig, VisionConfig
from trainers.parallel.layout import balanced, loads, volume_work

KINDS = ("measured", "counted")
PACK_TOKENS = 4096
RANKS = (4, 8, 16, 32, 64, 128, 256)
PACKS_PER_RANK = (1, 8)
SIZES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform": lambda rng, n: np.full(n, 700),
    "heavy-tailed": lambda rng, n: rng.lognormal(6.0, 0.9, n),
}
"""Sides of pictures [pixels], clipped to [28, 3500]; for the small packs that are measured, 0.4 times as wide."""
MEASURED = ModelConfig(
    name="dep benchmark",
    language=LanguageConfig(
        width=256,
        layers=4,
        heads=4,
        mlp=704,
        context=512,
        q_rank=128,
        kv_rank=64,
        head_nope=32,
        head_rope=32,
        head_value=64,
    ),
    vision=VisionConfig(width=192, layers=6, heads=4, mlp=768),
)
PARTS = ("backbone", "vision_forward", "vision_forward_backward", "dep", "coupled")


def main() -> None:
    """Measure, count, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each kind")
    parser.add_argument("--parts", nargs="+", default=KINDS, choices=KINDS, help="the other's last figures stay")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        run_rank(Path(options.as_rank), rounds=options.rounds, steps=options.steps)
        return
    path, told = RESULTS / "dep.json", {}
    if path.exists():
        told = {part: figures for part, figures in json.loads(path.read_text()).items() if part in KINDS}
    if "measured" in options.parts:
        cells = measured(options.rounds, options.steps)
        told["measured"] = {name: ratios(each) for name, each in cells.items()}
        print(json.dumps(told["measured"], indent=1), flush=True)
    if "counted" in options.parts:
        told["counted"] = {name: counted(name) for name in SIZES}
    told["hardware"] = "CPU: measured on 2 ranks of 1 thread over gloo, counted beyond; no GPU took part"
    print(keep("dep", told, command="python -m benchmarks.dep"))


def drawn_step(
    sizes: str, *, packs: int, pack_tokens: int, steps: int, share: float, scale: float = 1.0
) -> Iterator[list[list[dict]]]:
    """Return, step by step, the rows of each pack as the planner made them: tokens, media and patches of samples."""
    rng = np.random.default_rng(5)
    num_lines = 20_000
    tables, weights = [], {"captions": 1, "words": 1}
    for name in weights:
        text = np.clip(rng.lognormal(4.0 if name == "captions" else 6.0, 0.8, num_lines), 8, pack_tokens // 4)
        sides = [np.clip(scale * SIZES[sizes](rng, num_lines), 28, 3500).astype(np.int64) for _ in range(2)]
        pictures = {"width": sides[0], "height": sides[1], "frames": np.ones(num_lines, np.int64)}
        pictures = {**pictures, "fps": np.zeros(num_lines)} if name == "captions" else {}
        tables.append(SourceTable(name=name, text_tokens=text.astype(np.int64), chunk_lines=64, **pictures))
    recipe = {"name": sizes, "seed": 3, "pack_tokens": pack_tokens, "packs_per_step": packs, "steps": steps}
    sources = {name: {"weight": weight, "augment": []} for name, weight in weights.items()}
    shape = {
        "lanes": min(64, packs),
        "max_image_tokens": pack_tokens * 3 // 4,
        "vision_share": share,
        "sources": sources,
    }
    for segment in plan_segments(tables, parse_recipe({**recipe, **shape}), steps=steps):
        held: dict[int, list[list[dict]]] = {}
        for row in segment.table.select(["step", "pack", "num_tokens", "media", "patches"]).to_pylist():
            held.setdefault(row["step"], [[] for _ in range(packs)])[row["pack"]].append(row)
        yield from held.values()


def counted(sizes: str) -> list[dict]:
    """Return the shares of the ideal that DEP and the coupled model reach: by model, ranks, packs and stages."""
    from trainers.model.sizes import count_parameters
    from trainers.models import K2_5, SMALL

    told, active = [], {model.name: count_parameters(model).active for model in (K2_5, SMALL)}
    for packs in PACKS_PER_RANK:
        for ranks in RANKS:
            drawn = list(drawn_step(sizes, packs=ranks * packs, pack_tokens=PACK_TOKENS, steps=2, share=0.1))
            for model, stages in ((K2_5, 1), (K2_5, 16), (SMALL, 1)):
                if ranks < stages:
                    continue
                words = {"ranks": ranks, "stages": stages, "active": active[model.name]}
                reached = [shares_of_ideal(step, model, **words) for step in drawn]
                mean = {name: round(float(np.mean([each[name] for each in reached])), 4) for name in reached[0]}
                told.append({"model": model.name, "ranks": ranks, "stages": stages, "packs_per_rank": packs, **mean})
                print(sizes, told[-1], flush=True)
    return told


def shares_of_ideal(step: list[list[dict]], model: ModelConfig, *, ranks: int, stages: int, active: int) -> dict:
    """Return ideal / actual of one step, packs dealt in runs to pipelines of `stages` ranks.

    A coupled model encodes on the first stage, which the others wait for; DEP encodes on all ranks.
    """
    assert model.vision is not None
    pipelines = ranks // stages
    media = [(number * pipelines // len(step), row) for number, pack in enumerate(step) for row in pack if row["media"]]
    owner, patches = np.array([rank for rank, _ in media]), np.array([row["patches"] for _, row in media])
    backbone = 3 * len(step) * PACK_TOKENS * active / ranks
    linear = volume_work(np.array([1]), model.vision)[0] * patches
    work = volume_work(patches, model.vision)
    by_patches, by_work = balanced(patches, ranks), balanced(work, ranks)

    def share(heaviest: float, cost: np.ndarray, times: int) -> float:
        return float((backbone + 4 * cost.sum() / ranks) / (backbone + times * heaviest))

    def own(cost: np.ndarray) -> float:
        return np.bincount(owner, weights=cost, minlength=pipelines).max()

    return {
        "dep_patches": share(loads(by_patches, linear, ranks).max(), linear, 4),
        "best_possible_patches": share(max(linear.max(), linear.sum() / ranks), linear, 4),
        "coupled_patches": share(own(linear), linear, 3),
        "dep_work": share(loads(by_work, work, ranks).max(), work, 4),
        "best_possible_work": share(max(work.max(), work.sum() / ranks), work, 4),
        "dep_work_balanced_by_patches": share(loads(by_patches, work, ranks).max(), work, 4),
        "coupled_work": share(own(work), work, 3),
        "vision_mean_over_max_dep": float(linear.sum() / ranks / loads(by_patches, linear, ranks).max()),
        "vision_mean_over_max_coupled": float(linear.sum() / pipelines / own(linear)),
        "vision_of_backbone": float(3 * work.sum() / ranks / backbone),
        "media_per_rank": len(media) / ranks,
    }


def measured(rounds: int, steps: int) -> dict:
    """Return the seconds of each part in a group of two ranks, by kind of sizes, clock and rank."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        counts = ["--rounds", str(rounds), "--steps", str(steps)]
        subprocess.run(
            [*launcher, "-m", "benchmarks.dep", *counts, "--as-rank", folder],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return json.loads((Path(folder) / "measured.json").read_text())


def ratios(cells: dict) -> dict:
    """Return shares of the ideal: medians over rounds, of ratios within a round, all steps of a round together."""
    told = {}
    for clock, steps in cells.items():
        spent = {name: np.array([step[name] for step in steps]).sum(0) for name in PARTS}
        ideal = spent["backbone"] + (spent["vision_forward"] + spent["vision_forward_backward"]) / 2
        told[clock] = {
            "seconds": {name: round(float(np.median(value)), 3) for name, value in spent.items()},
            "ideal_seconds": round(float(np.median(ideal)), 3),
            "dep_of_ideal": round(float(np.median(ideal / spent["dep"])), 4),
            "dep_of_ideal_by_round": np.round(ideal / spent["dep"], 4).tolist(),
            "coupled_of_ideal": round(float(np.median(ideal / spent["coupled"])), 4),
        }
    return told


def run_rank(out: Path, *, rounds: int, steps: int) -> None:
    """Measure all parts as one of two ranks; rank 0 writes the seconds."""
    import torch
    import torch.distributed as dist

    from trainers.inputs import inputs_of
    from trainers.model.kimi_k25 import KimiK25

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, model, told = dist.get_rank(), KimiK25(MEASURED, seed=3), {}
    for sizes in SIZES:
        cells: dict[str, list] = {"cpu": [], "wall": []}
        for step in drawn_step(sizes, packs=16, pack_tokens=512, steps=steps, share=0.3, scale=0.4):
            own, whole = (inputs_of(batch_of(part, 512)) for part in (step[rank * 8 : rank * 8 + 8], step))
            seen = [seconds_of(model, own, whole) for _ in range(rounds + 1)][1:]
            for clock in cells:
                cells[clock].append({name: [each[clock][name] for each in seen] for name in PARTS})
        told[sizes] = cells
    if rank == 0:
        (out / "measured.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


def seconds_of(model, own, whole) -> dict:
    """Return the seconds of each part, of the slower rank in each phase, by clock."""
    import torch
    import torch.distributed as dist

    from trainers.parallel.dep import decoupled, seeing

    told: dict[str, dict[str, float]] = {"cpu": {}, "wall": {}}

    def loss_of(model, inputs):
        return model(inputs).target_losses.sum()

    def clock() -> np.ndarray:
        return np.array([time.thread_time(), time.perf_counter()])

    def slower(seconds: list[np.ndarray]) -> np.ndarray:
        slowest = torch.from_numpy(np.array(seconds))
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return slowest.numpy().sum(0)

    def keep_part(name: str, phases: list[np.ndarray], steps: list[np.ndarray]) -> None:
        told["cpu"][name], told["wall"][name] = float(slower(phases)[0]), float(slower(steps)[1])
        model.zero_grad()

    def timed(name: str, work: Callable[[], object]) -> None:
        dist.barrier()
        started = clock()
        work()
        spent = clock() - started
        keep_part(name, [spent], [spent])

    with torch.no_grad():
        features = model.see(own) if len(own.slots) else torch.empty(0)

    def backbone() -> None:
        with seeing(model, features.requires_grad_()):
            loss_of(model, own).backward()

    with torch.no_grad():
        timed("vision_forward", lambda: model.see(whole))
    timed("vision_forward_backward", lambda: model.see(whole).sum().backward())
    timed("backbone", backbone)
    timed("coupled", lambda: loss_of(model, own).backward())
    dist.barrier()
    started = clock()
    step = decoupled(model, own, loss_of, clock=clock)  # type: ignore[arg-type]
    keep_part("dep", list(step.seconds), [clock() - started])
    return told


def batch_of(packs: list[list[dict]], pack_tokens: int) -> Batch:
    """Return a batch of planned packs with drawn words and pixels; a picture of n tokens is 2 x 2 n patches."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 4096, (len(packs), pack_tokens))
    edges, grid, slots = [0], [], []
    positions = np.zeros_like(ids)
    for number, rows in enumerate(packs):
        at = 0
        for row in rows:
            if row["media"]:
                sides = side_of(row["patches"])
                grid.append((1, *sides))
                slots.append((number, at, sides[0] * sides[1] // 4))
            positions[number, at : at + row["num_tokens"]] = np.arange(row["num_tokens"])
            at += row["num_tokens"]
            edges.append(number * pack_tokens + at)
        edges += [] if at == pack_tokens else [(number + 1) * pack_tokens]
    patches = rng.uniform(-1, 1, (sum(t * h * w for t, h, w in grid), 3, 14, 14)).astype(np.float32)
    labels = ids.copy()
    for number, at, count in slots:
        labels[number, at : at + count] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=positions,
        cu_seqlens=np.array(edges, np.int32),
        patches=patches,
        grid_thw=np.array(grid, np.int64).reshape(-1, 3),
        media_slots=np.array(slots, np.int64).reshape(-1, 3),
        provenance=[],
    )


def side_of(patches: int) -> tuple[int, int]:
    """Return even sides whose product is `patches`, as square as can be."""
    tokens = patches // 4
    rows = next(side for side in range(int(tokens**0.5), 0, -1) if tokens % side == 0)
    return 2 * rows, 2 * (tokens // rows)


if __name__ == "__main__":
    main()
