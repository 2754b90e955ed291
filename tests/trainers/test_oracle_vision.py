"""Our vision tower and projector against transformers' own, weights copied across."""

import numpy as np
import pytest
import torch

from tests.trainers.batches import Media
from tests.trainers.oracle import CLOSE, CONFIG, assert_same_gradient, ours, theirs

pytest.importorskip("transformers.models.kimi_k25")

SIZES = [(2, 2), (4, 6), (6, 4), (8, 8), (12, 10), (2, 16)]
"""Rows and columns of patches: below, at and beyond the position table's 8."""


@pytest.fixture(scope="module")
def pair():
    model = ours()
    return model, theirs(model)


@torch.no_grad()
def both(pair, media: list[Media]):
    """Return the merged features of ours and theirs, float [V, 4, D]; theirs takes clips of one length at a time."""
    model, other = pair
    patches, grid = torch.from_numpy(np.concatenate([m.patches for m in media])), np.array([m.thw for m in media])
    return model.vision(patches, grid), other.model.vision_tower(patches, grid_thw=torch.from_numpy(grid)).pooler_output


def test_pictures_of_many_sizes_in_one_call(pair):
    mine, other = both(pair, [Media(thw=(1, *size), seed=i) for i, size in enumerate(SIZES)])
    assert mine.shape == (sum(h * w for h, w in SIZES) // 4, 4, CONFIG.vision.width)
    torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_clips_of_every_length(pair, frames):
    mine, other = both(pair, [Media(thw=(frames, 4, 6), seed=1), Media(thw=(frames, 10, 2), seed=2)])
    torch.testing.assert_close(mine, other, **CLOSE)


def test_clips_of_different_lengths_in_our_one_call_are_theirs_in_one_call_each(pair):
    media = [Media(thw=(t, 4, 4), seed=t) for t in (3, 1, 4, 2)]
    other = torch.cat([both(pair, [m])[1] for m in media])
    patches, grid = torch.from_numpy(np.concatenate([m.patches for m in media])), np.array([m.thw for m in media])
    with torch.no_grad():
        mine = pair[0].vision(patches, grid)
    torch.testing.assert_close(mine, other, **CLOSE)


def test_time_in_a_clip_is_what_theirs_adds(pair):
    table = pair[1].model.vision_tower.patch_embed.pos_emb.time_position_embeddings
    torch.testing.assert_close(pair[0].vision.patch_embed.time, table[1:], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_the_projector(pair):
    merged = torch.randn(7, 4, CONFIG.vision.width, generator=torch.Generator().manual_seed(0))
    other = pair[1].model.mm_projector(merged).squeeze(1)
    torch.testing.assert_close(pair[0].projector(merged), other, **CLOSE)


def test_the_tower_s_gradients_are_theirs():
    model = ours()
    other, media = theirs(model), Media(thw=(2, 4, 6), seed=3)
    patches = torch.from_numpy(media.patches)
    aim = torch.randn(6, 4, CONFIG.vision.width, generator=torch.Generator().manual_seed(1))
    (model.vision(patches, np.array([media.thw])) * aim).sum().backward()
    grid = torch.tensor([media.thw])
    (other.model.vision_tower(patches, grid_thw=grid).pooler_output * aim).sum().backward()
    tower, theirs_ = model.vision, other.model.vision_tower
    for mine, wanted in (
        (tower.patch_embed.pos_emb.weight, theirs_.patch_embed.pos_emb.position_embeddings),
        (tower.patch_embed.proj.weight, theirs_.patch_embed.proj.weight),
        (tower.encoder.blocks[1].mlp.fc0.weight, theirs_.layers[1].mlp.fc1.weight),
    ):
        assert_same_gradient(mine, wanted)
