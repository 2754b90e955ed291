"""DeepSpeed's only door: a model in, steps of ZeRO-1 out. Runs alone or as one of torchrun's ranks.

On CPU over gloo, in fp32. DeepSpeed would compile C++ at three places on a machine without a GPU and wait for ever on
the lock of a killed build; all three are off, and what is left has a folder of its own.

Under AdamW DeepSpeed's ZeRO-1 cuts the weights into flat shards. MuonClip needs whole matrices and shares its states
out itself, so DeepSpeed runs it at stage 0 and adds up the gradients: a step moves three times the weights' size over
the network, where reduce-scatter and all-gather would move two.
"""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from k25_pipelines.errors import CheckpointError
from trainers.config import TrainConfig
from trainers.model.language import forget_records, moe_layers, record_over_forwards, track_logits
from trainers.optim.muonclip import MuonClip
from trainers.optim.qk_clip import clip_heads, largest_logits, trained_attentions

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

BUCKET_ELEMENTS = 5_000_000
"""Gradients reduced at once; DeepSpeed reserves this much memory, and its default is 100 times as large."""
ENGINE_TAG = "engine"
"""Folder of DeepSpeed's own files in a checkpoint."""
PARTITION = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
"""MuonClip's states of a rank, under the name that DeepSpeed gives those of its ZeRO."""

OPTIMIZERS = ("muonclip", "adamw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a step showed, the same on every rank but for the seconds."""

    max_logit: float | None = None
    """Largest attention logit of any head, layer and rank, before QK-Clip; None where none was recorded."""
    clipped_heads: int = 0
    """Heads that QK-Clip scaled down."""
    expert_loads: tuple[tuple[int, ...], ...] = ()
    """Places that each expert had on all ranks, a row for each layer with experts."""
    backward_seconds: float = 0.0
    """Wall time of this rank in the backward pass of `step`."""
    optimizer_seconds: float = 0.0
    """Wall time of this rank in the reduction of gradients, the optimizer and what follows it."""


class Engine:
    """A model and its optimizer on this rank of a group. Collective: every rank makes the same calls."""

    def __init__(self, model: nn.Module, config: TrainConfig):
        """Wrap `model`, whose frozen weights do not require gradients.

        Raises:
            ValueError: `config.optimizer` is none of `OPTIMIZERS`.
        """
        import deepspeed

        if config.optimizer not in OPTIMIZERS:
            raise ValueError(f"config.optimizer is {config.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")
        self._muonclip = _muonclip(model, config) if config.optimizer == "muonclip" else None
        optimizer = self._muonclip or _adamw(model, config)
        settings = _settings(config)
        self._engine, wrapped, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self._optimizer: Any = wrapped  # DeepSpeed's base class declares nothing of what its ZeRO-1 has
        self._threshold = config.qk_clip_threshold if self._muonclip else math.inf
        self._is_new_step = True
        self.model = model
        self.seen = Seen()
        self.rank = torch.distributed.get_rank()
        self.num_ranks = torch.distributed.get_world_size()
        track_logits(model, True)
        record_over_forwards(model, True)

    def forward(self, inputs: Any) -> Any:
        """Return the model's outputs with gradients; a step may have several forward passes."""
        self.begin_step()
        return self._engine(inputs)

    def begin_step(self) -> None:
        """Forget what passes outside of steps recorded; for those who call the model and not `forward`."""
        if self._is_new_step:
            forget_records(self.model)
        self._is_new_step = False

    def step(self, loss: Tensor, learning_rate: float) -> float:
        """Update the weights and return the norm of the gradient before clipping.

        Args:
            loss: this rank's part of a loss that is a sum over ranks; DeepSpeed would take the mean.
            learning_rate: of this step.
        """
        start = time.perf_counter()
        self._engine.backward(loss * self.num_ranks)
        seconds = time.perf_counter() - start
        norm = self.update(learning_rate)
        self.seen = replace(self.seen, backward_seconds=seconds)
        return norm

    def update(self, learning_rate: float) -> float:
        """Update the weights by the gradients that stand at them, and return their norm before clipping.

        For those who run the backward passes of `model` themselves, after `begin_step`, which MuonClip alone allows:
        the gradients are this rank's part of a sum over ranks, times the number of ranks. Clipping is by the norm of
        all gradients together, before the optimizer's momentum.
        """
        start = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        self.seen = self._after_step()
        self.seen = replace(self.seen, optimizer_seconds=time.perf_counter() - start)
        return float(self._engine.get_global_grad_norm() or 0.0)

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of each value over the ranks."""
        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain value, in the order of the ranks."""
        values: list[Any] = [None] * self.num_ranks
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def partition_elements(self) -> int:
        """Return how many weights this rank keeps optimizer state for."""
        if self._muonclip:
            return self._muonclip.partition_elements()
        states = self._optimizer.optimizer.state.values()
        return sum(state["exp_avg"].numel() for state in states if "exp_avg" in state)

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random state below `folder`: one file of each rank, one of all."""
        state = {"torch_rng": torch.get_rng_state()}
        self._engine.save_checkpoint(str(folder), tag=ENGINE_TAG, client_state=state, save_latest=False)
        if self._muonclip:
            torch.save(self._muonclip.partition(), folder / ENGINE_TAG / PARTITION.format(self.rank))

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote: under AdamW on as many ranks, under MuonClip on any number.

        Raises:
            CheckpointError: it wrote nothing there, or states of another model.
        """
        _, state = self._engine.load_checkpoint(str(folder), tag=ENGINE_TAG)
        if state is None:
            raise CheckpointError(f"{folder} holds no state of an engine: its record names no file of {ENGINE_TAG}/")
        if self._muonclip:
            files = sorted((folder / ENGINE_TAG).glob(PARTITION.format("*")))
            self._muonclip.take(torch.load(each, weights_only=True) for each in files)
        torch.set_rng_state(state["torch_rng"])

    def _after_step(self) -> Seen:
        """Clip heads, move the balance of experts, and return what was seen of both; frozen layers stay as they are."""
        self._is_new_step = True
        attentions = trained_attentions(self.model)
        largest = largest_logits(attentions)
        for attention, logits in zip(attentions, largest, strict=True):
            clip_heads(attention, logits, self._threshold)
        top = float(largest.max()) if largest.numel() else -math.inf
        return Seen(
            max_logit=top if math.isfinite(top) else None,
            clipped_heads=int((largest > self._threshold).sum()),
            expert_loads=_balance(self.model),
        )


def rank_of_file(name: str) -> int:
    """Return the rank that wrote a file of `Engine.save`, by its name."""
    base = name.rsplit("/", 1)[-1]
    return int(base.split("_")[3]) if base.startswith("zero_pp_rank_") else 0


def join_ranks(work: Path, *, threads: int) -> int:
    """Join the group that torchrun's variables describe, or be one alone, and return this process's rank.

    Args:
        work: folder for whatever DeepSpeed may still build, so that no other run's lock is waited on.
        threads: compute threads, pinned, since sums depend on their number.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False  # a debugging aid that costs 3% of a step
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(work / "torch_extensions"))
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    import deepspeed
    import deepspeed.ops
    from torch._C._distributed_c10d import HashStore

    cast(Any, deepspeed.ops).__compatible_ops__ = {}  # probed by compiling where absent; empty: build nothing
    deepspeed.utils.logger.setLevel(logging.ERROR)
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    return torch.distributed.get_rank()


def leave_ranks() -> None:
    """Close the group: the last thing a trainer does."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _balance(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Add up the experts' loads over the ranks, move the bias of trained routers, and return the loads."""
    layers = [layer for layer in moe_layers(model) if layer.gate.weight.requires_grad]
    if not layers:
        return ()
    loads = torch.stack([layer.last_load for layer in layers])
    torch.distributed.all_reduce(loads)
    for layer, load in zip(layers, loads, strict=True):
        layer.update_balance(load)
    return tuple(map(tuple, loads.tolist()))


def _muonclip(model: nn.Module, config: TrainConfig) -> MuonClip:
    return MuonClip(
        [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad],
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        betas=config.betas,
        gradient_clip=config.gradient_clip,
    )


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the trained weights in two groups: matrices decay; norms, biases and tables do not."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    still = [weight for name, weight in trained if weight.ndim < 2 or "embed_tokens" in name or "pos_emb" in name]
    names = {id(weight) for weight in still}
    moving = [weight for _, weight in trained if id(weight) not in names]
    groups = [{"params": moving, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _settings(config: TrainConfig) -> dict:
    """Return DeepSpeed's; gradients are reduced in its `step`, so that a step may have several backward passes."""
    buckets = {"reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}
    is_ours = config.optimizer == "muonclip"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": not is_ours,
        "gradient_clipping": 0.0 if is_ours else config.gradient_clip,
        "zero_optimization": {"stage": 0} if is_ours else {"stage": 1, **buckets},
        "steps_per_print": 2**31,
    }
