"""What the ranks of test_optim_ranks.py run: python -m tests.trainers.optim_ranks FOLDER, four forks of one process.

The same model takes the same steps on groups of one, two and four ranks; every rank writes what it saw to
<folder>/<rank>.pt. The gradients are the same on all ranks, as they are once they have been added up.
"""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tests.trainers.test_optim_muonclip import give_gradients, muonclip, toy, values
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import mla_layers
from trainers.optim import muonclip as module
from trainers.optim.muonclip import MuonClip
from trainers.optim.qk_clip import qk_clip
from trainers.recipes import model_config

NUM_RANKS = 4
STEPS = (11, 12, 13)
"""Seeds of the gradients."""
TORN = 2
"""Steps before the states are given to others."""


def run(group: Any) -> tuple[MuonClip, dict, list[dict]]:
    """Take all steps; return the optimizer, the states of this rank after `TORN` steps, and the weights after each."""
    named = toy()
    optimizer = muonclip(named, group=group)
    after, states = [], {}
    for step, seed in enumerate(STEPS, 1):
        give_gradients(named, seed)
        optimizer.step()
        after.append(values(named))
        states = clone(optimizer.partition()) if step == TORN else states
    return optimizer, states, after


def clone(states: Any) -> Any:
    """Return a copy of nested states."""
    if isinstance(states, torch.Tensor):
        return states.clone()
    if isinstance(states, dict):
        return {name: clone(each) for name, each in states.items()}
    return type(states)(clone(each) for each in states) if isinstance(states, list | tuple) else states


def resume(group: Any, partitions: list[dict], weights: dict) -> dict:
    """Take up states on a group, take the steps that are left, and return the weights."""
    named = toy()
    with torch.no_grad():
        for name, weight in named:
            weight.copy_(weights[name])
    optimizer = muonclip(named, group=group)
    optimizer.take(partitions)
    for seed in STEPS[TORN:]:
        give_gradients(named, seed)
        optimizer.step()
    return values(named)


def clip(rank: int) -> dict:
    """Return what QK-Clip makes of logits that differ from rank to rank: each head is loudest on another one."""
    model = KimiK25(model_config("toy"), seed=1)
    attentions = mla_layers(model)
    for attention in attentions:
        attention.last_max_logit.fill_(1.0)
        attention.last_max_logit[rank % attention.heads] = 10.0 * (1 + rank)
    largest = qk_clip(model, 25.0)
    return {"largest": largest, "weights": values(list(model.named_parameters()))}


def crowd() -> dict:
    """Return a weight after a step of more ranks than there is to own."""
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = muonclip([("matrix", weight)])
    weight.grad = torch.arange(6.0).view(2, 3)
    optimizer.step()
    optimizer.take([optimizer.partition()])
    return {"weight": weight.detach().clone(), "elements": optimizer.partition_elements()}


def work(rank: int, folder: Path) -> None:
    """Be one rank."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_RANKS)
    module.BUCKET_ELEMENTS = 30_000  # so that there are many
    groups = {size: distributed.new_subgroups(size)[0] for size in (1, 2)}
    groups[NUM_RANKS] = distributed.group.WORLD
    seen: dict[str, Any] = {"weights": {}, "elements": {}, "resumed": {}, "clip": clip(rank), "crowd": crowd()}
    partitions: list[Any] = [None] * NUM_RANKS
    states: dict = {}
    for size, group in groups.items():
        optimizer, states, after = run(group)
        seen["weights"][size] = after
        seen["elements"][size] = optimizer.partition_elements()
    distributed.all_gather_object(partitions, states)
    for size, group in groups.items():
        seen["resumed"][size] = resume(group, partitions, seen["weights"][NUM_RANKS][TORN - 1])
    torch.save(seen, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, Path(sys.argv[1]))) for rank in range(NUM_RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
