"""What test_parallel_engine.py runs: python -m tests.trainers.parallel_layouts OUT, forks of one process.

The same model takes the same steps under every way to share the work, on two ranks and then on four; rank 0 writes what
each found to <OUT>/<layout>.pt, and each leaves a checkpoint in <OUT>/<layout>/, from which others go on.
"""

# Shapes: letters of `Inputs`.

import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.trainers.batches import batch_of
from tests.trainers.parallel_ranks import CLIP, LARGE, LENGTH, SMALL, WORDS, Packs
from trainers.config import ParallelConfig, TrainConfig
from trainers.engine import Engine, join_ranks, leave_ranks
from trainers.inputs import Inputs, inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.model.recompute import PARTS, set_recompute
from trainers.parallel.learn import Learnt, learn
from trainers.recipes import model_config

LAYOUTS: dict[str, tuple[int, ParallelConfig]] = {
    "experts": (2, ParallelConfig(expert_ranks=2, decoupled_vision=False)),
    "experts, decoupled": (2, ParallelConfig(expert_ranks=2)),
    "stages": (2, ParallelConfig(pipeline_stages=2)),
    "one virtual stage, coupled": (2, ParallelConfig(pipeline_stages=2, virtual_stages=1, decoupled_vision=False)),
    "data": (2, ParallelConfig(decoupled_vision=False)),
    "data, decoupled": (2, ParallelConfig()),
    "experts x data": (4, ParallelConfig(expert_ranks=2)),
    "stages x data": (4, ParallelConfig(pipeline_stages=2)),
    "stages x experts": (4, ParallelConfig(pipeline_stages=2, expert_ranks=2)),
}
"""Name -> ranks and how they share the work."""
RESUMED = {
    "stages": "experts",
    "one virtual stage, coupled": "stages",
    "data": "experts",
    "data, decoupled": "data",
    "experts x data": "stages",
    "stages x data": "experts",
    "stages x experts": "data",
}
"""Layout -> the one whose checkpoint it goes on from."""
SAME_BITS = ("experts", "data, decoupled", "experts x data", "stages x data", "stages x experts")
"""Layouts that also go on from their own."""
FROZEN = ("stages x data", "experts, decoupled", "stages x experts")
"""Layouts that also train the projector alone."""
STEPS: list[Packs] = [
    [[SMALL, CLIP], [LARGE], [WORDS, WORDS, SMALL], [WORDS], [CLIP, WORDS]],
    [[WORDS, SMALL]],
    [[WORDS, WORDS], [LARGE, SMALL], [CLIP], [SMALL]],
]
"""Packs of each step: of the second most ranks have none."""
TORN = 2
"""Steps before the checkpoint."""
RATE = 0.01
SIZES = replace(model_config("toy"), contrastive=None)
CONFIG = TrainConfig(
    stage="joint",
    model=replace(SIZES, language=replace(SIZES.language, layers=5)),
    plan="none",
    steps=len(STEPS),
    learning_rate=RATE,
    trainable=("vision", "projector", "language"),
    optimizer="muonclip",
    qk_clip_threshold=1.0,
)


def packs_of(step: int, rank: int, num_ranks: int) -> Packs:
    """A rank's packs: neighbours, as the loader deals them."""
    packs = STEPS[step]
    return packs[rank * len(packs) // num_ranks : (rank + 1) * len(packs) // num_ranks]


def precision(parallel: ParallelConfig) -> torch.dtype:
    """Float64 where it can be: DeepSpeed does not add it up."""
    return torch.float64 if parallel.expert_ranks * parallel.pipeline_stages > 1 else torch.float32


def inputs_for(packs: Packs, dtype: torch.dtype) -> Inputs:
    inputs = inputs_of(batch_of(packs, length=LENGTH), pad=0)
    return replace(inputs, patches=inputs.patches.to(dtype))


def built(config: TrainConfig, dtype: torch.dtype) -> KimiK25:
    model = KimiK25(config.model, seed=config.seed).to(dtype)
    for name, module in model.named_children():
        module.requires_grad_(name in config.trainable)
    return model


def engine_of(parallel: ParallelConfig, **changes: Any) -> Engine:
    config = replace(CONFIG, **changes)
    return Engine(built(config, precision(parallel)), config, parallel, pack_tokens=LENGTH)


def learnt(engine: Engine, parallel: ParallelConfig, step: int, *, weight: float = 1.0) -> Learnt:
    inputs = inputs_for(packs_of(step, engine.data_rank, engine.num_data_ranks), precision(parallel))
    (targets,) = engine.total([len(inputs.target)])

    def loss(model: KimiK25, inputs: Inputs) -> tuple[Tensor, Tensor]:
        losses = model(inputs).target_losses
        return weight / targets * losses.sum(), losses

    return learn(engine, inputs, loss, target_weight=weight / targets, decoupled=parallel.decoupled_vision)


def take_step(engine: Engine, parallel: ParallelConfig, step: int) -> dict:
    """What a step shows, the same on every rank."""
    found = learnt(engine, parallel, step)
    (loss,) = engine.total([float(found.loss)])
    norm = engine.update(RATE)
    patches = None if found.patches is None else found.patches.tolist()
    losses = torch.cat(engine.gather_data(found.target_losses))
    shown = [engine.seen.max_logit, engine.seen.clipped_heads, engine.seen.expert_loads]
    return {"loss": loss, "norm": norm, "losses": losses, "seen": shown, "patches": patches}


def whole(engine: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in engine.weights().items()}


def spoilt(engine: Engine, parallel: ParallelConfig) -> dict:
    """What a step whose gradients are not finite leaves."""
    before = whole(engine)
    learnt(engine, parallel, 0, weight=float("nan"))
    norm, after = engine.update(RATE), whole(engine)
    return {"norm": norm, "untouched": all(torch.equal(value, before[name]) for name, value in after.items())}


def run(name: str, parallel: ParallelConfig, out: Path) -> dict:
    """Take all steps, with a checkpoint on the way."""
    engine, steps = engine_of(parallel), []
    set_recompute(engine.model, PARTS if "coupled" in name else ())
    for step in range(len(STEPS)):
        if step == TORN:
            engine.save(out / name)
            engine.barrier()
        steps.append(take_step(engine, parallel, step))
    probe = engine.target_losses(inputs_for(packs_of(0, engine.data_rank, engine.num_data_ranks), precision(parallel)))
    return {
        "steps": steps,
        "weights": whole(engine),
        "probe": torch.cat(engine.gather_data(probe)),
        "elements": sum(engine.gather(engine.partition_elements())),
        "kept": engine.gather(sum(weight.numel() for weight in engine.model.parameters())),
        "spoilt": spoilt(engine, parallel),
    }


def resumed(parallel: ParallelConfig, folder: Path) -> dict[str, Tensor]:
    """The weights after the last step, taken from another's checkpoint."""
    engine = engine_of(parallel, seed=1)
    engine.load(folder)
    for step in range(TORN, len(STEPS)):
        take_step(engine, parallel, step)
    return whole(engine)


def frozen(parallel: ParallelConfig) -> dict:
    """A step of the projector alone, and the weights after it."""
    engine = engine_of(parallel, trainable=("projector",))
    return {**take_step(engine, parallel, 0), "weights": whole(engine)}


def work(rank: int, num_ranks: int, port: int, out: Path) -> None:
    """Be one rank of so many."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), **address)
    join_ranks(out, threads=1)
    for name, (size, parallel) in LAYOUTS.items():
        if size != num_ranks:
            continue
        found = run(name, parallel, out)
        found["resumed"] = resumed(parallel, out / RESUMED[name]) if name in RESUMED else None
        own = resumed(parallel, out / name) if name in SAME_BITS else found["weights"]
        found["same bits"] = all(torch.equal(value, own[each]) for each, value in found["weights"].items())
        found["frozen"] = frozen(parallel) if name in FROZEN else None
        if rank == 0:
            torch.save(found, out / f"{name}.pt")
    leave_ranks()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


if __name__ == "__main__":
    context, codes = multiprocessing.get_context("fork"), []
    for num_ranks in sorted({size for size, _ in LAYOUTS.values()}):
        arguments = (num_ranks, free_port(), Path(sys.argv[1]))
        processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(num_ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes += [abs(process.exitcode or 0) for process in processes]
    sys.exit(max(codes))
