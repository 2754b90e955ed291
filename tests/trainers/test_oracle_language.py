"""Our decoder against transformers' deepseek_v3 and the whole model against its kimi_k25, weights copied across."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.trainers.batches import Media, batch_of
from tests.trainers.oracle import (
    CLOSE,
    CONFIG,
    MEDIA_TOKEN,
    assert_same_gradient,
    ours,
    their_frequencies,
    their_rope,
    theirs,
)
from trainers.inputs import inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.model.language import mla_layers, moe_layers
from trainers.model.mla import MLA
from trainers.model.rope import yarn_frequencies
from trainers.recipes import model_config

pytest.importorskip("transformers.models.kimi_k25")

LENGTHS = (60, 1, 17, 43, 16)
"""Documents of a pack; the longest reaches beyond the first context of 32."""
PICTURE = [1, Media(thw=(1, 4, 6), seed=1), 5, 6, 7]
CLIP = [2, Media(thw=(4, 4, 4), seed=2), 9, Media(thw=(1, 2, 6), seed=3), 8, 7, 3]
CHUNKS = [4, 4, Media(thw=(4, 6, 4), seed=4), 31, Media(thw=(2, 6, 4), seed=5), 32, 33]


@pytest.fixture(scope="module")
def pair():
    model = ours()
    return model, theirs(model)


def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, MEDIA_TOKEN - 1, (n,), generator=generator).tolist() for n in LENGTHS]


@torch.no_grad()
def our_logits(model: KimiK25, packs: list[list[list]], *, length: int) -> Tensor:
    """Return float [N, vocab] at every place."""
    inputs = inputs_of(batch_of(packs, length=length))
    inputs = replace(inputs, source=torch.arange(len(inputs.input_ids)))
    return model.logits(inputs, model.see(inputs) if len(inputs.slots) else None)


@torch.no_grad()
def their_logits(other, document: list[int]) -> Tensor:
    return other(input_ids=torch.tensor([document]), use_cache=False).logits[0]


def test_the_decoder_s_logits(pair):
    for document in documents():
        mine = our_logits(pair[0], [[document]], length=len(document))
        torch.testing.assert_close(mine, their_logits(pair[1], document), **CLOSE)


def test_a_pack_of_documents_is_each_of_them_alone_in_both(pair):
    pack = documents()
    mine = our_logits(pair[0], [pack], length=sum(LENGTHS))
    torch.testing.assert_close(mine, torch.cat([their_logits(pair[1], each) for each in pack]), **CLOSE)
    position = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with torch.no_grad():
        ids = torch.tensor([[token for document in pack for token in document]])
        packed = pair[1](input_ids=ids, position_ids=position, use_cache=False).logits[0]
    torch.testing.assert_close(mine, packed, **CLOSE)


def test_every_layer_routes_each_token_as_theirs(pair):
    model, other = pair
    mine, wanted, hooks = [], [], []
    for layer, block in zip(moe_layers(model), other.model.language_model.layers[1:], strict=True):
        hooks.append(layer.register_forward_hook(lambda m, args, _: mine.append(m.route(args[0]))))
        hooks.append(block.mlp.gate.register_forward_hook(lambda _m, _args, out: wanted.append(out[1:])))
    document = documents()[0]
    our_logits(model, [[document]], length=len(document))
    their_logits(other, document)
    for hook in hooks:
        hook.remove()
    assert len(mine) == len(wanted) == 2
    for (indices, weights), (their_weights, their_indices) in zip(mine, wanted, strict=True):
        by, theirs_by = indices.argsort(-1), their_indices.argsort(-1)
        assert torch.equal(indices.gather(1, by), their_indices.gather(1, theirs_by))
        torch.testing.assert_close(weights.gather(1, by), their_weights.gather(1, theirs_by), **CLOSE)
    assert len(torch.unique(mine[0][0])) == CONFIG.language.experts


def test_the_bias_of_the_choice_moves_choices_and_no_weight(pair):
    layer = moe_layers(pair[0])[0]
    x = torch.randn(50, CONFIG.language.width, generator=torch.Generator().manual_seed(2))
    scores = (x @ layer.gate.weight.T).sigmoid()
    indices, weights = layer.route(x)
    plain = scores.topk(3).indices
    assert not torch.equal(indices.sort().values, plain.sort().values)
    chosen = scores.gather(1, indices)
    torch.testing.assert_close(weights, 2.827 * chosen / chosen.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("theta", "context", "factor", "width"),
    [(50000.0, 4096, 64.0, 64), (50000.0, 4096, 8.0, 64), (10000.0, 2048, 2.0, 128), (50000.0, 32, 4.0, 16)],
)
def test_yarn_frequencies(theta, context, factor, width):
    config = replace(CONFIG.language, rope_theta=theta, context=context, yarn_factor=factor, head_rope=width)
    mine = yarn_frequencies(width, theta=theta, context=context, factor=factor)
    torch.testing.assert_close(mine.float(), their_frequencies(config), rtol=1e-6, atol=0)


def test_the_logits_scale_has_yarn_s_correction(pair):
    for mine, other in zip(mla_layers(pair[0]), pair[1].model.language_model.layers, strict=True):
        assert mine.scale == pytest.approx(other.self_attn.scaling, rel=1e-12)
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    published = model_config("k2_5").language
    with torch.device("meta"):
        scale = MLA(published).scale
    assert scale == pytest.approx(yarn_apply_mscale(their_rope(published), 192**-0.5), rel=1e-12)


def test_queries_without_a_latent_of_their_own():
    config = replace(CONFIG, language=replace(CONFIG.language, q_rank=None))
    model, document = ours(config), documents()[3]
    mine = our_logits(model, [[document]], length=len(document))
    torch.testing.assert_close(mine, their_logits(theirs(model), document), **CLOSE)


@pytest.mark.parametrize("document", [PICTURE, CLIP, CHUNKS], ids=["picture", "clip and picture", "chunks of a video"])
@torch.no_grad()
def test_the_whole_model_with_media(pair, document):
    """Theirs breaks on clips between tower and decoder, so its own parts are joined by hand there, clip by clip."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    model, other = pair
    seen, ids = [], []
    for item in document:
        if isinstance(item, Media):
            grid = torch.tensor([item.thw])
            merged = other.model.vision_tower(torch.from_numpy(item.patches), grid_thw=grid).pooler_output
            seen.append(other.model.mm_projector(merged).squeeze(1))
            ids += [MEDIA_TOKEN] * item.tokens
        else:
            ids.append(item)
    media = {"image": BaseModelOutputWithPooling(pooler_output=tuple(seen))}
    wanted = other(input_ids=torch.tensor([ids]), mm_encoder_outputs=media, use_cache=False).logits[0]
    mine = our_logits(model, [[document]], length=len(ids))
    torch.testing.assert_close(mine, wanted, **CLOSE)


@torch.no_grad()
def test_a_picture_through_the_front_door_of_theirs(pair):
    picture = PICTURE[1]
    ids = [1, *[MEDIA_TOKEN] * picture.tokens, 5, 6, 7]
    grid, pixels = torch.tensor([picture.thw]), torch.from_numpy(picture.patches)
    wanted = pair[1](input_ids=torch.tensor([ids]), pixel_values=pixels, image_grid_thw=grid, use_cache=False).logits[0]
    torch.testing.assert_close(our_logits(pair[0], [[PICTURE]], length=len(ids)), wanted, **CLOSE)


def test_gradients_are_theirs():
    model, document = ours(), documents()[0]
    other = theirs(model)
    ids = torch.tensor([document])
    aim = torch.randn(len(document), CONFIG.language.vocab, generator=torch.Generator().manual_seed(3))
    inputs = inputs_of(batch_of([[document]], length=len(document)))
    (model.logits(replace(inputs, source=torch.arange(len(document))), None) * aim).sum().backward()
    (other(input_ids=ids, use_cache=False).logits[0] * aim).sum().backward()
    mine, wanted = model.language.layers[1], other.model.language_model.layers[1]
    for ours_, theirs_ in (
        (mine.mlp.experts.gate_up, wanted.mlp.experts.gate_up_proj),
        (mine.mlp.experts.down, wanted.mlp.experts.down_proj),
        (mine.mlp.gate.weight, wanted.mlp.gate.weight),
        (mine.self_attn.kv_a_proj_with_mqa.weight, wanted.self_attn.kv_a_proj_with_mqa.weight),
        (mine.self_attn.q_b_proj.weight, wanted.self_attn.q_b_proj.weight),
        (model.language.embed_tokens.weight, other.model.language_model.embed_tokens.weight),
    ):
        assert_same_gradient(ours_, theirs_)
