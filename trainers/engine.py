"""DeepSpeed's only door: a model in, steps of ZeRO-1 out. Runs alone or as one of torchrun's ranks.

On CPU over gloo, in fp32, with torch's AdamW. DeepSpeed would compile C++ at three places on a machine without a GPU
and wait for ever on the lock of a killed build; all three are off, and what is left has a folder of its own.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from k25_pipelines.errors import CheckpointError
from trainers.config import TrainConfig

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

BUCKET_ELEMENTS = 5_000_000
"""Gradients reduced at once; DeepSpeed reserves this much memory, and its default is 100 times as large."""
ENGINE_TAG = "engine"
"""Folder of DeepSpeed's own files in a checkpoint."""


class Engine:
    """A model and its optimizer on this rank of a group. Collective: every rank makes the same calls."""

    def __init__(self, model: nn.Module, config: TrainConfig):
        """Wrap `model`, whose frozen weights do not require gradients, in ZeRO stage 1."""
        import deepspeed

        groups = _parameter_groups(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        settings = _settings(config)
        self._engine, wrapped, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self._optimizer: Any = wrapped  # DeepSpeed's base class declares nothing of what its ZeRO-1 has
        self.model = model
        self.rank = torch.distributed.get_rank()
        self.num_ranks = torch.distributed.get_world_size()

    def forward(self, inputs: Any) -> Any:
        """Return the model's outputs with gradients."""
        return self._engine(inputs)

    def step(self, loss: Tensor, learning_rate: float) -> float:
        """Update the weights and return the norm of the gradient before clipping.

        Args:
            loss: this rank's part of a loss that is a sum over ranks; DeepSpeed would take the mean.
            learning_rate: of this step.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.backward(loss * self.num_ranks)
        self._engine.step()
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
        states = self._optimizer.optimizer.state.values()
        return sum(state["exp_avg"].numel() for state in states if "exp_avg" in state)

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random state below `folder`: one file of each rank, one of all."""
        state = {"torch_rng": torch.get_rng_state()}
        self._engine.save_checkpoint(str(folder), tag=ENGINE_TAG, client_state=state, save_latest=False)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote under as many ranks. Raises CheckpointError: it wrote nothing there."""
        _, state = self._engine.load_checkpoint(str(folder), tag=ENGINE_TAG)
        if state is None:
            raise CheckpointError(f"{folder} holds no state of an engine: its record names no file of {ENGINE_TAG}/")
        torch.set_rng_state(state["torch_rng"])


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


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the trained weights in two groups: matrices decay; norms, biases and tables do not."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    still = [weight for name, weight in trained if weight.ndim < 2 or "embed_tokens" in name or "pos_emb" in name]
    names = {id(weight) for weight in still}
    moving = [weight for _, weight in trained if id(weight) not in names]
    groups = [{"params": moving, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _settings(config: TrainConfig) -> dict:
    buckets = {"reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": 1, **buckets},
        "steps_per_print": 2**31,
    }
