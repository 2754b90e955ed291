"""The table of names and the config: each weight of the release has one place, and comes back from it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.errors import CheckpointError
from tests.trainers.interchange import tiny
from trainers.config import LanguageConfig, ModelConfig, VisionConfig
from trainers.interchange.names import places, published
from trainers.interchange.published_config import model_of, published_config
from trainers.interchange.weights import FolderWeights, tensor_of, weights_digest
from trainers.model.kimi_k25 import KimiK25

SPECIAL = {"bos": 0, "eos": 1, "pad": 2, "media_begin": 3, "media_end": 4, "media_pad": 5}


def stacked(experts=3, hidden=2, width=4) -> dict[str, torch.Tensor]:
    """One layer of our weights, no two numbers alike."""
    shapes = {
        "vision.patch_embed.pos_emb.weight": (2, 2, width),
        "vision.encoder.blocks.0.wqkv.weight": (3 * width, width),
        "projector.proj.2.bias": (width,),
        "language.embed_tokens.weight": (5, width),
        "language.layers.1.mlp.gate.e_score_correction_bias": (experts,),
        "language.layers.1.mlp.experts.gate_up": (experts, 2 * hidden, width),
        "language.layers.1.mlp.experts.down": (experts, width, hidden),
        "language.layers.1.mlp.shared_experts.up_proj.weight": (hidden, width),
        "language.lm_head.weight": (5, width),
    }
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_every_weight_has_the_name_and_shape_of_the_release():
    state = stacked(experts=2)
    found = dict(published(state))
    experts = "language_model.model.layers.1.mlp.experts"
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "vision_tower.patch_embed.pos_emb.weight": (2, 2, 4),
        "vision_tower.encoder.blocks.0.wqkv.weight": (12, 4),
        "mm_projector.proj.2.bias": (4,),
        "language_model.model.embed_tokens.weight": (5, 4),
        "language_model.model.layers.1.mlp.gate.e_score_correction_bias": (2,),
        f"{experts}.0.gate_proj.weight": (2, 4),
        f"{experts}.0.up_proj.weight": (2, 4),
        f"{experts}.1.gate_proj.weight": (2, 4),
        f"{experts}.1.up_proj.weight": (2, 4),
        f"{experts}.0.down_proj.weight": (4, 2),
        f"{experts}.1.down_proj.weight": (4, 2),
        "language_model.model.layers.1.mlp.shared_experts.up_proj.weight": (2, 4),
        "language_model.lm_head.weight": (5, 4),
    }
    gate_up = state["language.layers.1.mlp.experts.gate_up"]
    assert found[f"{experts}.1.gate_proj.weight"].tolist() == gate_up[1, :2].tolist()
    assert found[f"{experts}.1.up_proj.weight"].tolist() == gate_up[1, 2:].tolist()


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.data())
def test_any_run_of_a_weight_comes_back_from_the_released_ones(experts, hidden, width, data):
    state = stacked(experts, hidden, width)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    back = FolderWeights(shapes, places(shapes), dict(published(state)).__getitem__)
    for name, value in state.items():
        start = data.draw(st.integers(0, value.numel() - 1))
        count = data.draw(st.integers(1, value.numel() - start))
        assert torch.equal(back.read(name, start, count), value.flatten()[start : start + count])
        assert torch.equal(tensor_of(back, name), value)


def test_a_model_of_text_goes_by_the_names_of_the_text_release():
    with torch.device("meta"):
        state = KimiK25(tiny(vision=False)).state_dict()
    names = [name for name, _ in published(state)]
    assert {name.partition(".")[0] for name in names} == {"model", "lm_head"}
    assert "model.layers.2.mlp.experts.5.down_proj.weight" in names
    assert [place.name for place in places({name: value.shape for name, value in state.items()})] == names


def test_the_contrastive_head_has_no_place():
    with torch.device("meta"):
        state = KimiK25(tiny(contrastive=True)).state_dict()
        plain_state = KimiK25(tiny()).state_dict()
    assert [name for name, _ in published(state)] == [name for name, _ in published(plain_state)]


def test_the_digest_of_weights_does_not_see_what_is_left_out_or_the_order():
    state = stacked()
    more = {"contrastive.bias": torch.zeros(1), **dict(reversed(state.items()))}
    assert weights_digest(more) == weights_digest(state)
    assert weights_digest({**state, "projector.proj.2.bias": torch.zeros(4)}) != weights_digest(state)


K2_5 = ModelConfig(
    name="k2_5",
    language=LanguageConfig(
        width=7168,
        layers=61,
        heads=64,
        mlp=18432,
        vocab=163840,
        tied=False,
        context=4096,
        yarn_factor=64.0,
        experts=384,
    ),
    vision=VisionConfig(width=1152, layers=27, heads=16, mlp=4304),
)


def test_the_published_sizes_give_the_published_config():
    told = published_config(K2_5, {**SPECIAL, "media_pad": 163605}, dtype="bfloat16")
    text, tower = told["text_config"], told["vision_config"]
    released = {
        "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 1, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 384, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "num_attention_heads": 64, "num_key_value_heads": 64, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 163840, "n_group": 1,
        "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 2.827, "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "max_position_embeddings": 262144,
        "rope_scaling": {"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
        "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
    }  # fmt: skip
    assert {key: text[key] for key in released} == released
    assert [tower[k] for k in ("vt_hidden_size", "hidden_size", "vt_intermediate_size", "init_pos_emb_time")] == [
        1152,
        1152,
        4304,
        4,
    ]
    assert (told["video_token_id"], told["image_token_id"]) == (163840, 163605)
    assert model_of(told) == K2_5


@pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(vision=False),
        tiny(yarn_factor=1.0, tied=True, q_rank=None, balance_rate=0.5),
        tiny(dense_layers=0, shared_experts=3, routed_scale=1.5),
    ],
    ids=["whole", "text", "plain", "experts"],
)
def test_a_config_comes_back(config):
    assert model_of(published_config(config, SPECIAL, dtype="float32")) == config


def test_a_dense_model_comes_back_dense():
    config = tiny(experts=0)
    back = model_of(published_config(config, SPECIAL, dtype="float32"))
    with torch.device("meta"):
        shapes = [{name: v.shape for name, v in KimiK25(c).state_dict().items()} for c in (config, back)]
    assert shapes[0] == shapes[1]
    assert back.language.experts == 0


def test_the_released_codes_own_keys_are_enough_for_the_tower():
    told = published_config(K2_5, SPECIAL, dtype="bfloat16")
    theirs = {key for key in told["vision_config"] if key.startswith(("vt_", "init_pos_emb", "patch", "merge"))}
    only = {key: told["vision_config"][key] for key in theirs}
    assert model_of({**told, "vision_config": only}) == K2_5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_config": {"topk_group": 4}}, "topk_group is 4; this model has 1 only"),
        ({"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "'linear'; this model knows yarn only"),
        ({"text_config": {"kv_lora_rank": None}}, "kv_lora_rank is None; it must be a whole number"),
        ({"vision_config": {"merge_kernel_size": [2, 3]}}, "merge_kernel_size is .2, 3.; it must be a square"),
        ({"quantization_config": {"format": "int8"}}, "quantization_config.format is 'int8', not read; unpack"),
    ],
)  # fmt: skip
def test_a_config_of_another_model_is_refused_by_its_key(change, said):
    told = published_config(tiny(), SPECIAL, dtype="float32")
    changed = {k: {**told[k], **v} if isinstance(told.get(k), dict) else v for k, v in change.items()}
    with pytest.raises(CheckpointError, match=said):
        model_of({**told, **changed})


def test_a_config_without_a_size_names_the_key():
    told = published_config(tiny(), SPECIAL, dtype="float32")
    del told["text_config"]["kv_lora_rank"]
    with pytest.raises(CheckpointError, match=r"config\.json lacks kv_lora_rank"):
        model_of(told)


def test_experts_without_a_shared_one_are_not_exported():
    with pytest.raises(CheckpointError, match="shared_experts is 0"):
        published_config(tiny(shared_experts=0), SPECIAL, dtype="float32")
