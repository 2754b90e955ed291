"""The model's promises: a pack is its documents, a picture is where its slot is, and the tower's facts hold."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.trainers.batches import Media, batch_of
from trainers.inputs import inputs_of
from trainers.model.attention import attend, causal_groups
from trainers.model.kimi_k25 import KimiK25
from trainers.model.moonvit3d import patch_places
from trainers.model.rope import axial_turns, rotate, text_turns, yarn_frequencies, yarn_scale
from trainers.recipes import model_config

CPU = torch.device("cpu")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CONFIG = model_config("toy")
CAPTION = [1, Media(thw=(1, 4, 6), seed=1), 5, 6, 7]
CLIP = [1, Media(thw=(4, 4, 4), seed=2), 9, Media(thw=(2, 2, 6), seed=3), 8, 7, 3]
WORDS = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


def model(**changes) -> KimiK25:
    return KimiK25(dataclasses.replace(CONFIG, **changes), seed=3)


def losses(packs, *, length=40, network=None) -> torch.Tensor:
    return (network or model())(inputs_of(batch_of(packs, length=length))).target_losses


def test_documents_of_a_pack_are_predicted_as_if_they_stood_alone():
    packed = losses([[CAPTION, WORDS], [CLIP, WORDS[:3]]])
    alone = torch.cat([losses([[document]]) for document in (CAPTION, WORDS, CLIP, WORDS[:3])])
    torch.testing.assert_close(packed, alone, **CLOSE)


def test_the_first_word_of_a_document_is_not_predicted_from_the_one_before():
    inputs = inputs_of(batch_of([[WORDS, CAPTION]], length=40))
    assert inputs.target.tolist() == [*WORDS[1:], 5, 6, 7]
    assert inputs.source.tolist() == [*range(10), 17, 18, 19]


def test_a_picture_is_seen_by_its_own_document_and_by_no_other():
    other = [1, Media(thw=(1, 4, 6), seed=99), 5, 6, 7]
    before, after = losses([[CAPTION, WORDS]]), losses([[other, WORDS]])
    assert (before[:3] != after[:3]).all()
    torch.testing.assert_close(before[3:], after[3:], rtol=0, atol=0)


def test_vision_embeddings_stand_in_their_slots():
    network, seen = model(), {}
    network.language.layers[0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    inputs = inputs_of(batch_of([[WORDS, CAPTION]], length=40))
    network(inputs)
    places = [12 + i for i in range(6)]
    assert inputs.slots.tolist() == places
    torch.testing.assert_close(seen["x"][places], network.projector(network.see(inputs)))
    torch.testing.assert_close(seen["x"][:11], network.language.embed_tokens.weight[WORDS])


def test_an_empty_batch_and_a_batch_of_text_have_a_loss_of_their_own_size():
    empty = batch_of([], length=40)
    assert losses([]).shape == (0,)
    assert inputs_of(empty).pairs.count == 0
    assert losses([[WORDS]]).shape == (10,)


def test_grouped_attention_is_masked_attention():
    lengths = np.array([3, 40, 1, 17, 18, 40])
    q, k, v = torch.randn(3, int(lengths.sum()), 2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    document = torch.from_numpy(np.repeat(np.arange(6), lengths))
    mask = (document[:, None] == document[None]).tril()
    expected = functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask)
    answer = attend(q, k, v, causal_groups(lengths), causal=True)
    torch.testing.assert_close(answer, expected.transpose(0, 1).flatten(1), **CLOSE)


def test_a_tower_gives_each_volume_what_it_gives_it_alone():
    tower, media = model().vision, [Media(thw=(1, 4, 6), seed=1), Media(thw=(3, 2, 8), seed=2), Media(thw=(1, 2, 2))]
    patches = torch.from_numpy(np.concatenate([m.patches for m in media]))
    together = tower(patches, np.array([m.thw for m in media]))
    alone = [tower(torch.from_numpy(m.patches), np.array([m.thw])) for m in media]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_four_frames_cost_the_tokens_of_one_and_their_mean_is_taken_last():
    tower, clip = model().vision, Media(thw=(4, 4, 4), seed=4)
    seen = {}
    tower.encoder.final_layernorm.register_forward_hook(lambda *args: seen.update(x=args[2]))
    merged = tower(torch.from_numpy(clip.patches), np.array([clip.thw]))
    frames = seen["x"].view(4, 2, 2, 2, 2, -1).mean(0)  # token row, dy, token column, dx
    torch.testing.assert_close(merged, frames.permute(0, 2, 1, 3, 4).reshape(4, 4, -1), **CLOSE)


def test_time_is_added_in_clips_only():
    embed = model().vision.patch_embed
    width = CONFIG.vision.width
    assert embed.time[0].tolist() == [0.0] * (width // 2) + [1.0] * (width // 2)
    image, clip = Media(thw=(1, 2, 2), seed=5), Media(thw=(2, 2, 2), seed=5)
    tower = model().vision
    before = {}
    for name, media in (("image", image), ("clip", clip)):
        pre = tower.encoder.blocks[0].register_forward_pre_hook(lambda _, a, n=name: before.update({n: a[0]}))
        tower(torch.from_numpy(media.patches), np.array([media.thw]))
        pre.remove()
    same_pixels = torch.from_numpy(clip.patches[:4] - image.patches).abs().max()
    assert same_pixels == 0
    torch.testing.assert_close(before["clip"][:4] - before["image"], embed.time[0].expand(4, -1), **CLOSE)


def test_the_position_table_is_used_as_it_is_at_its_own_size():
    tower, side = model().vision, CONFIG.vision.table
    media = Media(thw=(1, side, side), seed=6)
    seen = {}
    tower.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    tower(torch.from_numpy(media.patches), np.array([media.thw]))
    pixels = functional.conv2d(torch.from_numpy(media.patches), tower.patch_embed.proj.weight)
    expected = pixels.flatten(1) + tower.patch_embed.pos_emb.weight.flatten(0, 1)
    torch.testing.assert_close(seen["x"], expected, **CLOSE)


def test_the_position_table_is_stretched_as_a_picture_would_be_and_once_for_each_grid():
    tower, media = model().vision, [Media(thw=(1, 4, 6), seed=1), Media(thw=(2, 12, 10), seed=2)]
    places, grid = patch_places(np.array([m.thw for m in media]), 2, CPU), np.array([m.thw for m in media])
    rows = tower.patch_embed._table_rows(places, grid)
    table = tower.patch_embed.pos_emb.weight.permute(2, 0, 1)[None]
    expected = []
    for frames, height, width in grid.tolist():
        stretched = functional.interpolate(table, (height, width), mode="bicubic", align_corners=False)[0]
        expected += [stretched.permute(1, 2, 0).flatten(0, 1)] * frames
    torch.testing.assert_close(rows, torch.cat(expected), rtol=0, atol=0)


def test_a_picture_is_not_what_the_first_frame_of_a_clip_is():
    tower, clip = model().vision, Media(thw=(2, 4, 4), seed=7)
    still = np.concatenate([clip.patches[:16]] * 2)  # a clip in which nothing moves
    picture = tower(torch.from_numpy(clip.patches[:16]), np.array([(1, 4, 4)]))
    standing = tower(torch.from_numpy(still), np.array([(2, 4, 4)]))
    assert picture.shape == standing.shape == (4, 4, CONFIG.vision.width)
    assert (picture - standing).abs().max() > 0.01


def test_a_patch_turns_by_its_column_first():
    row, column = torch.tensor([2, 0]), torch.tensor([0, 3])
    angle = axial_turns(row, column, 8).angle()
    torch.testing.assert_close(angle, torch.tensor([[0, 2, 0, 0.02], [3, 0, 0.03, 0]]), **CLOSE)


def test_yarn_of_factor_one_is_plain_rope_and_of_four_slows_only_slow_pairs():
    plain = yarn_frequencies(32, theta=50000.0, context=1024, factor=1.0)
    torch.testing.assert_close(plain, 50000.0 ** (-torch.arange(16, dtype=torch.float64) / 16))
    slowed = yarn_frequencies(32, theta=50000.0, context=1024, factor=4.0) / plain
    assert slowed[0] == 1
    assert slowed[-1] == 0.25
    assert (slowed.diff() <= 0).all()
    assert yarn_scale(1.0) == 1
    assert yarn_scale(4.0) == pytest.approx(1.13863**2, rel=1e-5)


def test_a_model_stretched_by_one_is_the_model_that_was_not_stretched():
    stretched = dataclasses.replace(CONFIG.language, yarn_factor=1.0)
    longer = dataclasses.replace(CONFIG.language, yarn_factor=4.0)
    plain = losses([[WORDS]])
    torch.testing.assert_close(losses([[WORDS]], network=model(language=stretched)), plain, rtol=0, atol=0)
    assert not torch.equal(losses([[WORDS]], network=model(language=longer)), plain)


def test_a_volume_that_the_tower_cannot_hold_is_refused():
    tower = model().vision
    for thw in ((5, 2, 2), (0, 2, 2), (1, 3, 2)):
        with pytest.raises(ValueError, match="a volume has 1 to 4 frames and sides that are multiples of 2 patches"):
            tower(torch.zeros(int(np.prod(thw)), 3, 14, 14), np.array([thw]))


def test_a_head_that_compares_pictures_needs_a_tower():
    with pytest.raises(ValueError, match="model toy has a contrastive head and no vision tower"):
        model(vision=None)


def test_turning_keeps_lengths_and_depends_on_distance_only():
    x, y = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(1)).unbind(0)

    def product(a: int, b: int) -> torch.Tensor:
        turn = text_turns(torch.tensor([a, b]), 16, theta=10000.0, context=64, factor=4.0)
        return (rotate(x, turn[:1]) * rotate(y, turn[1:])).sum()

    torch.testing.assert_close(product(3, 10), product(30, 37), **CLOSE)
    turned = rotate(x, text_turns(torch.tensor([9]), 16, theta=1e4, context=64, factor=1.0))
    torch.testing.assert_close(turned.norm(), x.norm())


def test_weights_depend_on_their_name_and_the_seed_alone():
    full, without = model().state_dict(), model(contrastive=None).state_dict()
    assert all(torch.equal(weight, full[name]) for name, weight in without.items())
    other = KimiK25(CONFIG, seed=4).state_dict()
    assert not torch.equal(other["language.embed_tokens.weight"], full["language.embed_tokens.weight"])
