"""DeepSpeed's only door: a model in, steps of ZeRO-1 out. Runs alone or as one of torchrun's ranks.

On CPU over gloo, in fp32. DeepSpeed would compile C++ at three places on a machine without a GPU and wait for ever on
the lock of a killed build; all three are off, and what is left has a folder of its own.

Under AdamW DeepSpeed's ZeRO-1 cuts the weights into flat shards. MuonClip needs whole matrices and shares its states
out itself, so DeepSpeed runs it at stage 0 and adds up the gradients: a step moves three times the weights' size over
the network, where reduce-scatter and all-gather would move two. Where ranks keep different weights (experts or layers
spread, MuonClip only) DeepSpeed is left out, since at stage 0 it takes all weights for copies of each other.
"""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from k25_pipelines.errors import CheckpointError
from trainers.config import ParallelConfig, TrainConfig
from trainers.inputs import Inputs
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import forget_records, record_over_forwards, track_logits
from trainers.optim.adamw import adamw
from trainers.optim.after_step import Seen, after_step, watched
from trainers.optim.files import read_model, take_states, write_model, write_states
from trainers.optim.muonclip import MuonClip
from trainers.optim.together import step_together
from trainers.parallel.ranks import Place, check_parallel
from trainers.parallel.spread import Share, Spread, sum_gradients, whole_share

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

BUCKET_ELEMENTS = 5_000_000
"""Gradients reduced at once; DeepSpeed reserves this much memory, and its default is 100 times as large."""
ENGINE_TAG = "engine"
"""Folder of the engine's files in a checkpoint."""
OPTIMIZERS = ("muonclip", "adamw")


class Engine:
    """A model and its optimizer on this rank of a group. Collective: every rank makes the same calls."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, parallel: ParallelConfig | None = None, *, pack_tokens: int = 0
    ) -> None:
        """Wrap `model`, whose frozen weights do not require gradients.

        Args:
            model: whole, the same on every rank; where `parallel` spreads it, this rank's part stays of it.
            config: the optimizer's fields are read.
            parallel: how ranks share experts and layers; None: every rank has all.
            pack_tokens: of each pack, padding included; what the stages of a pipeline exchange.

        Raises:
            ValueError: `config.optimizer` is none of `OPTIMIZERS`, or so many ranks cannot share the model so.
        """
        if config.optimizer not in OPTIMIZERS:
            raise ValueError(f"config.optimizer is {config.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")
        parallel = parallel or ParallelConfig()
        self.rank = torch.distributed.get_rank()
        self.num_ranks = torch.distributed.get_world_size()
        check_parallel(parallel, config, self.num_ranks)
        stages, expert_ranks = parallel.pipeline_stages, parallel.expert_ranks
        self.place = Place(rank=self.rank, num_ranks=self.num_ranks, stages=stages, expert_ranks=expert_ranks)
        self.model, self.seen, self._watched, self._is_new_step = model, Seen(), watched(model), True
        is_spread = stages * expert_ranks > 1
        self._spread = None
        if is_spread:
            self._spread = Spread(cast(KimiK25, model), parallel, place=self.place, pack_tokens=pack_tokens)
        self._shares = [whole_share(model)] if self._spread is None else self._spread.shares()
        is_ours = config.optimizer == "muonclip"
        self._muonclips = [_muonclip(share, config) for share in self._shares] if is_ours else []
        self._threshold = config.qk_clip_threshold if is_ours else math.inf
        self._engine = None if is_spread else _wrapped(model, config, next(iter(self._muonclips), None))
        track_logits(model, True)
        record_over_forwards(model, True)

    @property
    def data_rank(self) -> int:
        """Return whose packs this rank learns from; all ranks of a pipeline learn from the same."""
        return self.place.replica

    @property
    def num_data_ranks(self) -> int:
        """Return how many ranks have packs of their own."""
        return self.place.num_replicas

    @property
    def spread(self) -> Spread | None:
        """Return how the model is spread; None where every rank has all of it."""
        return self._spread

    def forward(self, inputs: Any) -> Any:
        """Return the model's outputs with gradients; a step may have several forward passes. Not in a pipeline."""
        self.begin_step()
        return self._engine(inputs) if self._engine else self.model(inputs)

    def begin_step(self) -> None:
        """Forget what passes outside of steps recorded; for those who call the model and not `forward`."""
        if self._is_new_step:
            forget_records(self.model)
        self._is_new_step = False

    def step(self, loss: Tensor, learning_rate: float) -> float:
        """Take `backward` and `update` together, and return the norm of the gradient before clipping."""
        start = time.perf_counter()
        self.backward(loss)
        seconds = time.perf_counter() - start
        norm = self.update(learning_rate)
        self.seen = replace(self.seen, backward_seconds=seconds)
        return norm

    def backward(self, loss: Tensor) -> None:
        """Make gradients of `loss`: this rank's part of a sum over ranks; DeepSpeed would take the mean."""
        whole = loss * self.num_ranks
        if self._engine:
            self._engine.backward(whole)
        else:
            whole.backward()

    def update(self, learning_rate: float) -> float:
        """Update the weights by the gradients that stand at them, and return their norm before clipping.

        After `backward`; or after `begin_step` and backward passes of one's own, which MuonClip alone allows: the
        gradients are this rank's part of a sum over ranks, times the number of ranks. Clipping is by the norm of all
        gradients together, before the optimizer's momentum. A norm that is not finite leaves weights, states, heads
        and balances as they were: whoever gets it must stop.
        """
        start = time.perf_counter()
        for group in self._groups():
            group["lr"] = learning_rate
        if self._engine:
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm() or 0.0)
        else:
            sum_gradients(self._shares, 1 / self.num_ranks)
            norm = step_together(self._muonclips)
            self.model.zero_grad()
        self._is_new_step, self.seen = True, Seen()
        if math.isfinite(norm):
            self.seen = after_step(self.model, self._watched, threshold=self._threshold)
        self.seen = replace(self.seen, optimizer_seconds=time.perf_counter() - start)
        return norm

    @torch.no_grad()
    def target_losses(self, inputs: Inputs) -> Tensor:
        """Return float [n] the loss of each target, without learning; in a pipeline on each of its ranks."""
        if self._spread and self._spread.pipeline:
            return self._spread.target_losses(inputs)
        return self.model(inputs).target_losses

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of each value over the ranks that have data of their own: a pipeline counts once."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.place.stage:
            tensor.zero_()
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain value, in the order of the ranks."""
        values: list[Any] = [None] * self.num_ranks
        torch.distributed.all_gather_object(values, value)
        return values

    def gather_data(self, value: Any) -> list[Any]:
        """Return the plain value of each rank that has data of its own: of a pipeline that of its first stage."""
        return self.gather(value)[: self.num_data_ranks]

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()

    def partition_elements(self) -> int:
        """Return how many weights this rank keeps optimizer state for."""
        if self._muonclips:
            return sum(each.partition_elements() for each in self._muonclips)
        states = cast(Any, self._engine).optimizer.optimizer.state.values()
        return sum(state["exp_avg"].numel() for state in states if "exp_avg" in state)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole model's weights and buffers by name: of a spread model on rank 0, elsewhere nothing."""
        return self._spread.weights() if self._spread else self.model.state_dict()

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random state below `folder`: one file of each rank, one of all.

        Under MuonClip no file depends on how the ranks shared the work but for its states' place in it.
        """
        state = {"torch_rng": torch.get_rng_state()}
        if not self._muonclips:
            cast(Any, self._engine).save_checkpoint(str(folder), tag=ENGINE_TAG, client_state=state, save_latest=False)
            return
        weights = self.weights()
        if self.rank == 0:
            write_model(folder / ENGINE_TAG, weights, **state)
        write_states(folder / ENGINE_TAG, self._muonclips, rank=self.rank)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote: under AdamW on as many ranks, under MuonClip on any number shared in any way.

        Raises:
            CheckpointError: it wrote nothing there, or states of another model.
        """
        if self._muonclips:
            state = read_model(folder / ENGINE_TAG)
            (self._spread.take if self._spread else self.model.load_state_dict)(state["module"])
            take_states(folder / ENGINE_TAG, self._muonclips)
        else:
            _, state = cast(Any, self._engine).load_checkpoint(str(folder), tag=ENGINE_TAG)
        if state is None:
            raise CheckpointError(f"{folder} holds no state of an engine: its record names no file of {ENGINE_TAG}/")
        torch.set_rng_state(state["torch_rng"])

    def _groups(self) -> list[dict]:
        optimizers = self._muonclips or [cast(Any, self._engine).optimizer]
        return [group for each in optimizers for group in each.param_groups]


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


def _wrapped(model: nn.Module, config: TrainConfig, muonclip: MuonClip | None) -> Any:
    """Return DeepSpeed's engine, untyped: what its optimizer has is declared nowhere."""
    import deepspeed

    optimizer = muonclip or adamw(model, config)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=_settings(config))[0]


def _muonclip(share: Share, config: TrainConfig) -> MuonClip:
    return MuonClip(
        share.weights,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        betas=config.betas,
        gradient_clip=config.gradient_clip,
        group=share.group,
        offsets=share.offsets,
    )


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
