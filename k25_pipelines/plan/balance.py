"""Packs -> ranks: a step's packs are dealt in contiguous runs, so that their content never depends on the ranks."""


def rank_packs(packs_per_step: int, rank: int, num_ranks: int) -> range:
    """Return which packs of a step a rank takes: contiguous runs whose lengths differ by at most one.

    `num_ranks` need not divide `packs_per_step`; with more ranks than packs some ranks take none.

    Raises:
        ValueError: the rank lies outside [0, num_ranks).
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} lies outside [0, {num_ranks})")
    return range(rank * packs_per_step // num_ranks, (rank + 1) * packs_per_step // num_ranks)
