"""How evenly the steps of a plan load the ranks, and which may not fit: rows of a plan in, numbers a step out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from k25_pipelines.plan.balance import pack_costs, rank_packs
from k25_pipelines.planning import Plan

Progress = Callable[[int, int, str], None]

TOWER_LAYERS, TOWER_WIDTH = 27, 1152
"""Of Kimi K2.5's vision tower (published)."""
BYTES_PER_PATCH = 34 * TOWER_WIDTH * TOWER_LAYERS
"""What the tower keeps of a patch for the way back, all layers, nothing made again [bytes].

Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models": 34 bytes a position
and width in 16 bits, without the scores of attention, which a fused kernel does not keep.
"""
BYTES_PER_PATCH_MADE_AGAIN = 2 * TOWER_WIDTH * TOWER_LAYERS
"""The same where each layer keeps its input alone [bytes]."""
MOST_STEPS = 2000
"""Steps looked at; of a longer plan as many, evenly spread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """What steps ask of ranks, by estimate."""

    steps: np.ndarray
    """int64 [steps] which steps were looked at."""
    most_patches: np.ndarray
    """int64 [steps] of the rank that has the most of them."""
    mean_patches: np.ndarray
    """float64 [steps] over the ranks."""
    imbalance: np.ndarray
    """float64 [steps] cost of the costliest rank by the mean: 1 is even; at 1.2 ranks wait a sixth of the time."""
    bytes_per_patch: int
    """What the vision tower keeps of a patch [bytes]."""

    @property
    def tower_bytes(self) -> np.ndarray:
        """What the vision tower keeps on the rank with the most patches, int64 [steps]."""
        return self.most_patches * self.bytes_per_patch

    def steps_over(self, limit_bytes: int) -> np.ndarray:
        """Return the steps of which a rank needs more than a limit, int64, ascending."""
        return self.steps[self.tower_bytes > limit_bytes]


def step_balance(
    plan: Plan,
    *,
    num_ranks: int,
    ranks_per_node: int = 1,
    bytes_per_patch: int = BYTES_PER_PATCH,
    progress: Progress | None = None,
) -> Balance:
    """Return how the packs of a plan's steps load ranks, dealt out as the loader deals them.

    Args:
        plan: which plan.
        num_ranks: that share a step.
        ranks_per_node: neighbours that share a machine and even out its packs.
        bytes_per_patch: what a tower keeps of a patch [bytes].
        progress: told steps done, steps in all, and what.

    Raises:
        ValueError: there is no rank.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; a step needs at least 1")
    count = min(plan.num_steps, MOST_STEPS)
    steps = np.unique(np.linspace(0, plan.num_steps - 1, count).astype(np.int64))
    found = []
    for done, step in enumerate(steps.tolist()):
        found.append(_of_step(plan, step, num_ranks, ranks_per_node))
        if progress:
            progress(done + 1, len(steps), f"step {step}")
    most, mean, uneven = (np.array(column) for column in zip(*found, strict=True))
    return Balance(
        steps=steps,
        most_patches=most.astype(np.int64),
        mean_patches=mean,
        imbalance=uneven,
        bytes_per_patch=bytes_per_patch,
    )


def _of_step(plan: Plan, step: int, num_ranks: int, ranks_per_node: int) -> tuple[int, float, float]:
    """Return the patches of the rank with the most, their mean over the ranks, and the imbalance of one step."""
    rows = plan.rows(step)
    columns = {name: rows[name].to_numpy() for name in ("pack", "num_tokens", "patches")}
    costs = pack_costs(columns)
    patches = np.bincount(columns["pack"], weights=columns["patches"], minlength=len(costs)).astype(np.int64)
    held = [rank_packs(costs, rank, num_ranks, ranks_per_node) for rank in range(num_ranks)]
    loads = np.array([costs[packs].sum() for packs in held], dtype=np.float64)
    by_rank = np.array([patches[packs].sum() for packs in held], dtype=np.int64)
    return int(by_rank.max()), float(by_rank.mean()), float(loads.max() / max(loads.mean(), 1e-9))
