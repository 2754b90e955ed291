"""Who stands where: a rank's number in, its stage, its data and its experts out. No torch.

Rank = stage * replicas + replica. Neighbours share experts, whose tokens travel most, and stages stand farthest apart,
since only hidden states go from one to the next.
"""

from dataclasses import dataclass

from trainers.config import ParallelConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A rank among stages, replicas of the model, and sets of experts."""

    rank: int
    num_ranks: int
    stages: int = 1
    expert_ranks: int = 1

    @property
    def num_replicas(self) -> int:
        """Return how many ranks have data of their own."""
        return self.num_ranks // self.stages

    @property
    def stage(self) -> int:
        """Return which rank of its pipeline this is."""
        return self.rank // self.num_replicas

    @property
    def replica(self) -> int:
        """Return whose data this rank learns from; all ranks of a pipeline learn from the same."""
        return self.rank % self.num_replicas

    @property
    def expert_rank(self) -> int:
        """Return which run of each layer's experts this rank keeps."""
        return self.replica % self.expert_ranks

    def pipeline(self) -> tuple[int, ...]:
        """Return the ranks of this rank's pipeline, stage by stage."""
        return tuple(range(self.replica, self.num_ranks, self.num_replicas))

    def same_stage(self) -> tuple[int, ...]:
        """Return the ranks that keep the same layers."""
        first = self.stage * self.num_replicas
        return tuple(range(first, first + self.num_replicas))

    def expert_group(self) -> tuple[int, ...]:
        """Return the ranks that share one set of the experts of these layers."""
        first = self.rank - self.expert_rank
        return tuple(range(first, first + self.expert_ranks))

    def same_experts(self) -> tuple[int, ...]:
        """Return the ranks that keep the same experts of the same layers."""
        return self.same_stage()[self.expert_rank :: self.expert_ranks]


def check_parallel(parallel: ParallelConfig, config: TrainConfig, num_ranks: int) -> None:
    """Raise ValueError, naming the field, where so many ranks cannot share this training in this way."""
    stages, experts, virtual = parallel.pipeline_stages, parallel.expert_ranks, parallel.virtual_stages
    language = config.model.language
    for name, value in (("pipeline_stages", stages), ("expert_ranks", experts), ("virtual_stages", virtual)):
        if value < 1:
            raise ValueError(f"parallel.{name} is {value}; expected at least 1")
    if stages == 1 and experts == 1:
        return
    if config.optimizer != "muonclip":
        raise ValueError(
            f"config.optimizer is {config.optimizer!r}, for which every rank has all weights: parallel.expert_ranks "
            f"({experts}) and parallel.pipeline_stages ({stages}) must be 1, or the optimizer muonclip"
        )
    if num_ranks % (stages * experts):
        raise ValueError(
            f"{num_ranks} ranks cannot share out parallel.pipeline_stages ({stages}) x parallel.expert_ranks "
            f"({experts}): start a multiple of {stages * experts}"
        )
    if experts > 1 and (not language.experts or language.experts % experts):
        raise ValueError(f"parallel.expert_ranks is {experts}; it must divide language.experts ({language.experts})")
    if stages > 1 and stages * virtual > language.layers:
        raise ValueError(
            f"parallel.pipeline_stages ({stages}) x parallel.virtual_stages ({virtual}) are more stages than "
            f"language.layers ({language.layers})"
        )
    if stages > 1 and config.contrastive_weight:
        raise ValueError(
            f"parallel.pipeline_stages is {stages}, and config.contrastive_weight {config.contrastive_weight}: a "
            "pipeline does not compare pictures with captions; one of the two must go"
        )
