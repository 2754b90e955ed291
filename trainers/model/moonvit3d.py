"""MoonViT-3D: patches of images and short clips at native size in, merged patch features out.

A clip of up to 4 frames is one volume: one attention over its space and time, with an image's weights, and a mean
over the frames at the end, so that a volume costs the tokens of one frame. Names are those of the released weights.

Source: the released model's public code, as laid out in the project's notes on it.
"""

# Shapes: P patches, M media (volumes), V tokens after merging (h * w / 4 each), D width, H heads.

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.config import VisionConfig
from trainers.model.attention import Groups, attend, groups_on, volume_groups
from trainers.model.rope import axial_turns, rotate

TEMPORAL_THETA = 10000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchPlaces:
    """Where each patch stands: all int64 [P] but `groups`."""

    medium: Tensor
    frame: Tensor
    row: Tensor
    column: Tensor
    merged: Tensor
    """Its cell in [V * merge * merge]: token, then place in the token, row-major."""
    frames: Tensor
    """Frames of its volume."""
    groups: Groups


def patch_places(grid_thw: np.ndarray, merge: int, device: torch.device) -> PatchPlaces:
    """Return where the patches of `grid_thw` [M, 3] stand, media one after another, each frame by frame, row-major."""
    t, h, w = (np.asarray(grid_thw, np.int64).reshape(-1, 3)[:, axis] for axis in range(3))
    size = t * h * w
    medium = np.repeat(np.arange(len(size)), size)
    within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
    frame, place = np.divmod(within, (h * w)[medium])
    row, column = np.divmod(place, w[medium])
    tokens = h * w // merge**2
    first = (np.cumsum(tokens) - tokens)[medium]
    token = first + (row // merge) * (w // merge)[medium] + column // merge
    merged = token * merge**2 + (row % merge) * merge + column % merge
    arrays = (medium, frame, row, column, merged, t[medium])
    columns = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in arrays)
    names = ("medium", "frame", "row", "column", "merged", "frames")
    groups = groups_on(volume_groups(size), device)
    return PatchPlaces(**dict(zip(names, columns, strict=True)), groups=groups)


class MoonViT3D(nn.Module):
    """The vision tower. `forward(patches, grid_thw)` gives float [V, merge * merge, D]."""

    def __init__(self, config: VisionConfig):
        """Build the tower."""
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.encoder = Encoder(config)

    def forward(self, patches: Tensor, grid_thw: np.ndarray) -> Tensor:
        """Return the merged features of all media.

        Args:
            patches: float [P, 3, patch, patch] in the order of `patch_places`.
            grid_thw: int [M, 3] frames, rows and columns of patches of each volume; rows and columns are
                multiples of `merge`, frames at most `max_frames`.
        """
        self._check(grid_thw)
        merge = self.config.merge
        places = patch_places(grid_thw, merge, patches.device)
        x = self.patch_embed(patches, places, grid_thw)
        turns = axial_turns(places.row, places.column, self.config.width // self.config.heads)
        x = self.encoder(x, turns, places.groups) / places.frames[:, None]
        tokens = int(np.prod(np.asarray(grid_thw)[:, 1:], axis=1).sum()) // merge**2
        pooled = x.new_zeros(tokens * merge**2, x.shape[-1]).index_add(0, places.merged, x)
        return pooled.view(tokens, merge**2, -1)

    def _check(self, grid_thw: np.ndarray) -> None:
        t, sides = grid_thw[:, 0], grid_thw[:, 1:]
        if len(grid_thw) and (t.min() < 1 or t.max() > self.config.max_frames or (sides % self.config.merge).any()):
            raise ValueError(
                f"a volume has 1 to {self.config.max_frames} frames and sides that are multiples of "
                f"{self.config.merge} patches; grid_thw spans {grid_thw.min(0)} to {grid_thw.max(0)}"
            )


class PositionTable(nn.Module):
    """The learned place in a picture, float [rows, columns, D]."""

    def __init__(self, config: VisionConfig):
        """Build the table."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.table, config.table, config.width))


class PatchEmbed(nn.Module):
    """Pixels to features, with the learned place in the picture and, in clips, the fixed place in time."""

    time: Tensor
    """float [max_frames, D]."""

    def __init__(self, config: VisionConfig):
        """Build the patch projection and the tables."""
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.pos_emb = PositionTable(config)
        self.register_buffer("time", _time_table(config.max_frames, config.width), persistent=False)

    def forward(self, patches: Tensor, places: PatchPlaces, grid_thw: np.ndarray) -> Tensor:
        """Return float [P, D]."""
        x = functional.linear(patches.flatten(1), self.proj.weight.flatten(1), self.proj.bias)
        x = x + self._table_rows(places, grid_thw)
        moving = (places.frames > 1)[:, None]
        return x + torch.where(moving, self.time[places.frame], 0.0)

    def _table_rows(self, places: PatchPlaces, grid_thw: np.ndarray) -> Tensor:
        sizes, which = np.unique(np.asarray(grid_thw)[:, 1:], axis=0, return_inverse=True)
        table = self.pos_emb.weight.permute(2, 0, 1)[None]
        flat = [_resized(table, int(h), int(w)).flatten(2)[0].T for h, w in sizes]
        first = np.cumsum([0, *(h * w for h, w in sizes)])[:-1][which.reshape(-1)]
        width, start = (
            torch.from_numpy(each.astype(np.int64)).to(table.device)[places.medium]
            for each in (np.asarray(grid_thw)[:, 2], first)
        )
        row = start + places.row * width + places.column
        return torch.cat(flat).index_select(0, row)


class Encoder(nn.Module):
    """The blocks one after another, and the norm at their end."""

    def __init__(self, config: VisionConfig):
        """Build blocks and norm."""
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_layernorm = nn.LayerNorm(config.width, eps=1e-5)

    def forward(self, x: Tensor, turns: Tensor, groups: Groups) -> Tensor:
        """Return float [P, D]."""
        for block in self.blocks:
            x = block(x, turns, groups)
        return self.final_layernorm(x)


class Block(nn.Module):
    """A pre-norm transformer block: attention over the volume, then an MLP with the tanh GELU."""

    def __init__(self, config: VisionConfig):
        """Build attention and MLP."""
        super().__init__()
        self.heads = config.heads
        self.norm0 = nn.LayerNorm(config.width, eps=1e-5)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.wqkv = nn.Linear(config.width, 3 * config.width)
        self.wo = nn.Linear(config.width, config.width)
        self.mlp = nn.ModuleDict(
            {"fc0": nn.Linear(config.width, config.mlp), "fc1": nn.Linear(config.mlp, config.width)}
        )

    def forward(self, x: Tensor, turns: Tensor, groups: Groups) -> Tensor:
        """Return float [P, D]."""
        q, k, v = self.wqkv(self.norm0(x)).view(len(x), 3, self.heads, -1).unbind(1)
        x = x + self.wo(attend(rotate(q, turns), rotate(k, turns), v, groups, causal=False))
        hidden = functional.gelu(self.mlp["fc0"](self.norm1(x)), approximate="tanh")
        return x + self.mlp["fc1"](hidden)


def _resized(table: Tensor, height: int, width: int) -> Tensor:
    if table.shape[-2:] == (height, width):
        return table
    return functional.interpolate(table, (height, width), mode="bicubic", align_corners=False)


def _time_table(frames: int, width: int) -> Tensor:
    frequency = TEMPORAL_THETA ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(frames, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()
