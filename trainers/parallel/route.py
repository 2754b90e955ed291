"""How a step's media travel: from the ranks whose packs hold them to the ranks that encode them, and back."""

# Shapes: M media of the global batch, m media here, P patches, V vision tokens, R ranks.

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.parallel.exchange import Group, exchange, gather_rows, rank_in, ranks_of
from trainers.parallel.layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """The media of the global batch, in global order: rank by rank, each micro-batch by micro-batch."""

    grid: np.ndarray
    """int64 [M, 3]."""
    owner: np.ndarray
    """int64 [M] the rank whose batch holds each."""
    microbatch: np.ndarray
    """int64 [M] which of the owner's micro-batches."""
    num_ranks: int

    @property
    def patches(self) -> np.ndarray:
        """Return int64 [M]."""
        return self.grid.prod(1)


LayoutRule = Callable[[Media], Layout]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Who encodes what in a step, as one rank sees it."""

    media: Media
    layout: Layout
    group: Group
    merge: int
    """Patches on a side that become one token."""
    own: np.ndarray
    """int64 [m] this rank's media in global order: neighbours in it."""
    mine: np.ndarray
    """int64 the media this rank encodes, in global order."""

    def sizes(self, unit: str) -> np.ndarray:
        """Return int64 [M]: "patches", or "tokens" after merging, of each medium."""
        grid = self.media.grid
        return self.media.patches if unit == "patches" else grid[:, 1] * grid[:, 2] // self.merge**2

    def calls(self) -> list[np.ndarray]:
        """Return the media of each of this rank's encoder calls; a rank without media makes none."""
        edges = np.flatnonzero(np.diff(self.layout.call[self.mine])) + 1
        return np.split(self.mine, edges) if len(self.mine) else []

    def to_encoders(self, rows: Tensor, unit: str) -> Tensor:
        """Return the rows of `mine`, given those of `own`; a medium has `sizes(unit)` rows."""
        there, here = self._counts(unit)
        return exchange(rows.index_select(0, self._order(unit).to(rows.device)), there, here, self.group)

    def to_owners(self, rows: Tensor, unit: str) -> Tensor:
        """Return the rows of `own`, given those of `mine`."""
        there, here = self._counts(unit)
        back = exchange(rows, here, there, self.group)
        return torch.empty_like(back).index_copy_(0, self._order(unit).to(rows.device), back)

    def _counts(self, unit: str) -> tuple[list[int], list[int]]:
        """Return how many rows of `own` each rank encodes, and how many of `mine` each rank owns."""
        sizes, ranks = self.sizes(unit), self.media.num_ranks
        there = np.bincount(self.layout.rank[self.own], weights=sizes[self.own], minlength=ranks)
        here = np.bincount(self.media.owner[self.mine], weights=sizes[self.mine], minlength=ranks)
        return there.astype(np.int64).tolist(), here.astype(np.int64).tolist()

    def _order(self, unit: str) -> Tensor:
        """Return int64: the rows of `own` by the rank that encodes them, then in global order."""
        sizes = self.sizes(unit)[self.own]
        order = np.argsort(self.layout.rank[self.own], kind="stable")
        start, size = (np.cumsum(sizes) - sizes)[order], sizes[order]
        return torch.from_numpy(np.arange(int(size.sum())) + np.repeat(start - (np.cumsum(size) - size), size))


def route_of(grids: list[np.ndarray], rule: LayoutRule, *, merge: int, group: Group, device: torch.device) -> Route:
    """Return this rank's route of a step. Collective: every rank learns all grids and works out the same layout.

    Args:
        grids: int64 [m, 3] of each micro-batch.
        rule: the layout.
        merge: patches on a side that become one token.
        group: the ranks.
        device: where the group communicates.
    """
    told = np.concatenate([np.insert(grid, 3, number, axis=1) for number, grid in enumerate(grids)])
    parts = gather_rows(told, group, device)
    rows = np.concatenate(parts)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    media = Media(grid=rows[:, :3], owner=owner, microbatch=rows[:, 3], num_ranks=ranks_of(group))
    layout, rank = rule(media), rank_in(group)
    own, mine = np.flatnonzero(owner == rank), np.flatnonzero(layout.rank == rank)
    return Route(media=media, layout=layout, group=group, merge=merge, own=own, mine=mine)
