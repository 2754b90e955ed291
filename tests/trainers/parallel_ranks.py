"""What each rank of test_parallel.py runs: python -m tests.trainers.parallel_ranks OUT under torchrun, three ranks.

Every check runs in groups of the first one, two and three ranks and against a coupled model that sees every rank's
batch; rank 0 writes what it found to <OUT>/<check>.json.
"""

# Shapes: P patches; letters of `Inputs`.

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainers.batches import Media, batch_of
from trainers.config import TrainConfig
from trainers.engine import OPTIMIZERS, Engine, join_ranks, leave_ranks
from trainers.inputs import Inputs, inputs_of
from trainers.loss import siglip_loss
from trainers.model.kimi_k25 import KimiK25
from trainers.model.moe import Experts, MoE, experts_forward
from trainers.parallel.dep import at_home, by_patches, decoupled, dep_step
from trainers.parallel.expert import gathered, spread_experts, spread_parameters
from trainers.parallel.layout import Layout, balanced
from trainers.parallel.learn import learn
from trainers.parallel.pipeline import Pipeline
from trainers.parallel.route import LayoutRule
from trainers.parallel.route import Media as MediaOfStep
from trainers.recipes import model_config

LENGTH = 48
WORDS = [11, 12, 13, 14, 15, 16, 17, 18]
SMALL = [1, Media(thw=(1, 4, 6), seed=1), 5, 6, 7]
LARGE = [1, Media(thw=(1, 8, 10), seed=4), 9, 9, 8]
CLIP = [1, Media(thw=(4, 4, 4), seed=2), 9, Media(thw=(3, 2, 6), seed=3), 8, 7, 3]

Packs = list[list[list]]
CASES: dict[str, list[list[Packs]]] = {
    "pictures and clips everywhere": [[[[SMALL, CLIP]]], [[[LARGE], [CLIP, WORDS]]], [[[SMALL]], [[LARGE, SMALL]]]],
    "a rank with words alone": [[[[WORDS]]], [[[SMALL, LARGE]]], [[[CLIP]]]],
    "a rank with no packs": [[[[CLIP, SMALL]]], [[]], [[[LARGE]]]],
    "all media on one rank": [[[[WORDS]]], [[[SMALL, CLIP]], [[LARGE]]], [[[WORDS, WORDS]]]],
    "no media at all": [[[[WORDS]]], [[[WORDS, WORDS]]], [[[WORDS]]]],
    "clips": [[[[CLIP]], [[CLIP, CLIP]]], [[[CLIP, WORDS]]], [[[WORDS]]]],
}
"""Case -> each rank's micro-batches, lists of packs."""
TRAINED = {
    "all": ("vision", "projector", "language", "contrastive"),
    "frozen tower": ("projector", "language"),
    "projector": ("projector",),
    "tower and head": ("vision", "contrastive"),
}
EXPERT_ROWS = ([7, 30, 2], [12, 0, 5], [0, 9, 0])
"""Tokens of each rank."""
EXPERT_CASES = (
    ("pictures and clips everywhere", "all"),
    ("a rank with no packs", "all"),
    ("a rank with words alone", "projector"),
)


def loss_of(model: KimiK25, inputs: Inputs) -> Tensor:
    """Both losses of stage 1a, as sums."""
    outputs = model(inputs)
    loss = outputs.target_losses.sum()
    if outputs.images is None:
        return loss
    head, pairs = model.contrastive, inputs.pairs
    return loss + siglip_loss(
        outputs.images, outputs.texts, log_scale=head.log_scale, bias=head.bias, caption=pairs.caption
    )


def built(trained: Sequence[str], dtype: torch.dtype) -> KimiK25:
    model = KimiK25(model_config("toy"), seed=3).to(dtype)
    for name, module in model.named_children():
        module.requires_grad_(name in trained)
    return model


def inputs_for(microbatches: list[Packs], dtype: torch.dtype) -> list[Inputs]:
    each = [inputs_of(batch_of(packs, length=LENGTH)) for packs in microbatches]
    return [replace(inputs, patches=inputs.patches.to(dtype)) for inputs in each]


def joined(microbatches: list[Packs]) -> Packs:
    return [pack for packs in microbatches for pack in packs]


def coupled_gradients(ranks: list[list[Packs]], trained: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, dict]:
    """One process, all batches, micro-batch by micro-batch."""
    model, loss = built(trained, dtype), torch.zeros((), dtype=dtype)
    for microbatches in ranks:
        for inputs in inputs_for(microbatches, dtype):
            part = loss_of(model, inputs)
            part.backward()
            loss = loss + part.detach()
    return loss, {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def farthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest distance of a gradient relative to its own norm."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - expected[name]).norm() / max(float(expected[name].norm()), 1e-12)) for name in expected
    )


def in_small_calls(media: MediaOfStep) -> Layout:
    return balanced(media.patches, media.num_ranks, call_work=70)


def near_coupled(group: dist.ProcessGroup, size: int, case: str, trained: str, layout: LayoutRule = by_patches) -> dict:
    rank, ranks, dtype = dist.get_rank(group), CASES[case][:size], torch.float64
    model = built(TRAINED[trained], dtype)
    loss = dep_step(model, inputs_for(ranks[rank], dtype), loss_of, group, layout=layout)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    for tensor in (loss, *found.values()):
        dist.all_reduce(tensor, group=group)
    expected_loss, expected = coupled_gradients(ranks, TRAINED[trained], dtype)
    return {"loss": float((loss - expected_loss).abs() / expected_loss), "gradients": farthest(found, expected)}


def same_bits(group: dist.ProcessGroup, size: int, case: str) -> dict:
    """This rank's own part, in float32, when every rank encodes its own media, one call a micro-batch."""
    rank, dtype, trained = dist.get_rank(group), torch.float32, TRAINED["all"]
    own = CASES[case][rank]
    model = built(trained, dtype)
    loss = dep_step(model, inputs_for(own, dtype), loss_of, group, layout=at_home)
    expected_loss, expected = coupled_gradients([own], trained, dtype)
    equal = [torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in expected.items()]
    same = torch.tensor([int(all(equal) and torch.equal(loss, expected_loss)), len(equal)])
    dist.all_reduce(same, op=dist.ReduceOp.MIN, group=group)
    return {"equal": bool(same[0]), "weights": int(same[1])}


def spread_of_patches(group: dist.ProcessGroup, size: int, case: str) -> dict:
    dtype = torch.float32
    model, own = built(TRAINED["all"], dtype), inputs_for(CASES[case][dist.get_rank(group)], dtype)
    told = {rule.__name__: decoupled(model, own, loss_of, group, layout=rule) for rule in (at_home, by_patches)}
    return {name: step.patches.tolist() for name, step in told.items()}


def expert_layer(group: dist.ProcessGroup, size: int, rows: list[int]) -> dict:
    """A layer of 6 experts, the last of them without a token, its tokens dealt unevenly to the ranks, in float64."""
    torch.manual_seed(0)
    experts, rank = Experts(8, 6, 5).double(), dist.get_rank(group)
    for weight in experts.parameters():
        weight.data.normal_()
    whole = torch.randn(sum(rows[:size]), 8, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(len(whole), 6) * torch.tensor([9.0, 1, 1, 5, 1, 0]) - torch.tensor([0.0, 0, 0, 0, 0, 1])
    indices = scores.topk(2).indices
    weights = torch.rand(len(whole), 2, dtype=torch.float64, requires_grad=True)
    expected = experts_forward(whole, indices, weights, experts.gate_up, experts.down)
    expected.square().sum().backward()
    first = sum(rows[:rank])
    own = slice(first, first + rows[rank])
    layer = torch.nn.Module()
    layer.moe = MoE(replace(model_config("toy").language, width=8, experts=6, expert_mlp=5)).double()
    layer.moe.experts.load_state_dict(experts.state_dict())
    spread_experts(layer, group)
    part, shares = (each[own].detach().requires_grad_() for each in (whole, weights))
    found = layer.moe.dispatcher(part, indices[own], shares, layer.moe.experts)
    found.square().sum().backward()
    pairs = [(found, expected[own]), (part.grad, whole.grad[own]), (shares.grad, weights.grad[own])]
    for name, weight in spread_parameters(layer).items():
        pairs.append((gathered(weight.grad, group), getattr(experts, name.rsplit(".")[-1]).grad))
    errors = [float((one - other).norm() / max(float(other.norm()), 1e-12)) for one, other in pairs]
    worst = torch.tensor(max(errors))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=group)
    load = torch.bincount(indices.flatten(), minlength=6)
    return {"worst": float(worst), "load": load.tolist(), "local": len(layer.moe.experts.down)}


def experts_of_a_model(group: dist.ProcessGroup, size: int, case: str, trained: str) -> dict:
    """The toy model with its experts spread, its vision too, against one process."""
    if model_config("toy").language.experts % size:
        with contextlib.suppress(ValueError):
            spread_experts(built(TRAINED[trained], torch.float64), group)
            return {"refused": False}
        return {"refused": True}
    rank, ranks, dtype = dist.get_rank(group), CASES[case][:size], torch.float64
    model = built(TRAINED[trained], dtype)
    spread_experts(model, group)
    loss = dep_step(model, inputs_for([joined(ranks[rank])], dtype), loss_of, group)
    spread = spread_parameters(model)
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and name in spread:
            found[name] = gathered(weight.grad, group)
        elif weight.requires_grad:
            dist.all_reduce(weight.grad, group=group)
            found[name] = weight.grad
    dist.all_reduce(loss, group=group)
    expected_loss, expected = coupled_gradients([[joined(each)] for each in ranks], TRAINED[trained], dtype)
    return {"loss": float((loss - expected_loss).abs() / expected_loss), "gradients": farthest(found, expected)}


def pipeline_of(group: dist.ProcessGroup, size: int, tied: bool) -> dict:
    """Two virtual stages a rank over five layers, four packs, against the same model in one piece; then once more."""
    config, dtype = model_config("toy"), torch.float64
    config = replace(config, contrastive=None, language=replace(config.language, layers=5, tied=tied))
    packs = [[SMALL, CLIP], [LARGE], [WORDS, WORDS, SMALL], [WORDS]]
    (inputs,) = inputs_for([packs], dtype)
    whole = KimiK25(config, seed=3).to(dtype)
    expected = whole(inputs).target_losses.sum()
    expected.backward()
    model, rank = KimiK25(config, seed=3).to(dtype), dist.get_rank(group)
    try:
        pipeline = Pipeline(model, packs=len(packs), pack_tokens=LENGTH, group=group)
    except ValueError as error:
        return {"refused": str(error)}
    for _ in range(2):
        model.zero_grad()
        merged = whole.see(inputs).detach().requires_grad_() if rank == 0 else None
        loss = pipeline.run(inputs, merged)
    if rank == 0:
        model.vision(inputs.patches, inputs.grid_thw).backward(merged.grad)
    dist.all_reduce(loss, group=group)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    gradients = torch.tensor(farthest(found, {name: whole.get_parameter(name).grad for name in found}))
    dist.all_reduce(gradients, op=dist.ReduceOp.MAX, group=group)
    names: list[list[str]] = [[] for _ in range(size)]
    dist.all_gather_object(names, sorted(found), group=group)
    return {
        "loss": float((loss - expected.detach()).abs() / expected.detach()),
        "gradients": float(gradients),
        "covered": sorted({name for each in names for name in each}) == sorted(dict(whole.named_parameters())),
        "layers": [sorted({name.split(".")[2] for name in each if ".layers." in name}) for each in names],
    }


def engine_step(case: str, optimizer: str) -> dict:
    """Weights after one step of the engine over all ranks: coupled, and decoupled through the same door."""
    stage = {"stage": "vit", "plan": "", "steps": 1, "learning_rate": 1e-2, "trainable": TRAINED["all"]}
    config = TrainConfig(model=model_config("toy"), optimizer=optimizer, **stage)
    own, after, norms = CASES[case][dist.get_rank()], [], []
    for is_decoupled in (False, True):
        model = built(TRAINED["all"], torch.float32)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        engine = Engine(model, config)
        (inputs,) = inputs_for([joined(own)], torch.float32)
        learn(engine, inputs, lambda model, inputs: (loss_of(model, inputs), torch.zeros(0)), decoupled=is_decoupled)
        norms.append(engine.update(1e-2))
        after.append({name: weight.detach() - before[name] for name, weight in model.named_parameters()})
    moved = {name: float(change.abs().max()) for name, change in after[0].items()}
    return {"updates": farthest(after[1], after[0]), "norms": norms, "least_moved": min(moved.values())}


def main(out: Path) -> None:
    rank = join_ranks(out, threads=1)
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3)}

    def tell(name: str, check: Callable[..., dict], *arguments: Any) -> None:
        told = {}
        for size, group in groups.items():
            if rank < size:
                told[size] = check(group, size, *arguments)
        if rank == 0:
            (out / f"{name}.json").write_text(json.dumps(told))

    for case in CASES:
        tell(f"near {case}", near_coupled, case, "all")
        tell(f"bits {case}", same_bits, case)
        tell(f"patches {case}", spread_of_patches, case)
    for trained in TRAINED:
        tell(f"trained {trained}", near_coupled, "pictures and clips everywhere", trained)
    tell("small calls", near_coupled, "pictures and clips everywhere", "all", in_small_calls)
    for rows in EXPERT_ROWS:
        tell(f"experts {rows}", expert_layer, rows)
    for case, trained in EXPERT_CASES:
        tell(f"experts in {case}, {trained}", experts_of_a_model, case, trained)
    for tied in (True, False):
        tell(f"pipeline tied {tied}", pipeline_of, tied)
    for optimizer in OPTIMIZERS:
        seen = engine_step("a rank with words alone", optimizer)
        if rank == 0:
            (out / f"engine {optimizer}.json").write_text(json.dumps(seen))
    dist.barrier()
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
