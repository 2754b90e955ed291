"""Named models weigh what their published shapes give, and sizes that cannot work are refused by field."""

import re
import sys
from dataclasses import fields, replace

import pytest

from trainers.config import LanguageConfig, ModelConfig
from trainers.model.checks import check_context, check_model
from trainers.model.kimi_k25 import KimiK25
from trainers.model.sizes import count_parameters
from trainers.recipes import model_config

TOY = model_config("toy")


def language_by_hand(c: LanguageConfig, *, experts: int) -> int:
    """Return the decoder's size without embeddings, with so many routed experts a layer, shape by shape."""
    heads_qk, heads_v = c.heads * (c.head_nope + c.head_rope), c.heads * c.head_value
    assert c.q_rank
    attention = c.width * c.q_rank + c.q_rank + c.q_rank * heads_qk
    attention += c.width * (c.kv_rank + c.head_rope) + c.kv_rank
    attention += c.kv_rank * (c.heads * c.head_nope + heads_v) + heads_v * c.width
    dense, expert = 3 * c.width * c.mlp, 3 * c.width * c.expert_mlp
    sparse = expert * (experts + c.shared_experts) + c.experts * c.width
    norms = 2 * c.width * c.layers + c.width
    return attention * c.layers + dense * c.dense_layers + sparse * (c.layers - c.dense_layers) + norms


def vision_by_hand(config: ModelConfig) -> int:
    v = config.vision
    assert v
    block = 4 * v.width * v.width + 4 * v.width + 2 * v.width * v.mlp + v.mlp + v.width + 4 * v.width
    patches = 3 * v.patch**2 * v.width + v.width
    return block * v.layers + patches + v.table**2 * v.width + 2 * v.width


def test_the_published_model_has_its_published_size():
    config = model_config("k2_5")
    counts, c = count_parameters(config), config.language
    sys.stdout.write(f"{counts}\n")
    tables = 2 * 163840 * 7168
    assert counts.language == language_by_hand(c, experts=384) + tables
    assert counts.active == language_by_hand(c, experts=8) + tables // 2
    assert counts.vision == vision_by_hand(config)
    assert counts.projector == 2 * 1152 + 4608 * 4608 + 4608 + 4608 * 7168 + 7168
    assert 1.02e12 < counts.language < 1.04e12
    assert 31e9 < counts.active < 33e9
    assert 0.39e9 < counts.vision < 0.43e9
    assert counts.contrastive == 0


@pytest.mark.parametrize("name", ["toy", "small", "base"])
def test_the_smaller_models_have_every_part_of_the_published_one(name):
    config = model_config(name)
    counts, c = count_parameters(config), config.language
    tables = c.vocab * c.width * (1 if c.tied else 2)
    assert counts.language == language_by_hand(c, experts=c.experts) + tables
    assert counts.active == language_by_hand(c, experts=c.experts_per_token) + c.vocab * c.width
    assert counts.vision == vision_by_hand(config)
    assert 1 < c.experts_per_token < c.experts
    assert 0 < c.dense_layers < c.layers


def test_a_count_is_the_size_of_the_weights_that_are_made():
    made = sum(weight.numel() for weight in KimiK25(TOY).parameters())
    assert count_parameters(TOY).total == made


def test_an_unknown_model_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match="no model is called 'large'; there are toy, small, base, k2_5"):
        model_config("large")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("width", 0, "at least 1"),
        ("layers", 0, "at least 1"),
        ("vocab", 0, "at least 1"),
        ("context", 0, "at least 1"),
        ("q_rank", 0, "at least 1"),
        ("kv_rank", -1, "at least 1"),
        ("head_rope", 7, "an even number"),
        ("head_nope", 0, "at least 1"),
        ("head_value", 0, "at least 1"),
        ("yarn_factor", 0.5, "at least 1: it only stretches"),
        ("rope_theta", 1.0, "above 1"),
        ("experts", -1, "0 for a dense model"),
        ("experts_per_token", 5, "at most experts, which is 4"),
        ("experts_per_token", 0, "at least 1"),
        ("expert_mlp", 0, "at least 1"),
        ("shared_experts", -1, "0 or more"),
        ("dense_layers", 2, "0 to 1 of 2 layers"),
        ("dense_layers", -1, "0 to 1 of 2 layers"),
        ("routed_scale", 0.0, "above 0"),
        ("balance_rate", -0.1, "0 \\(never balanced\\) or more"),
        ("balance_rate", 1.5, "0 \\(never balanced\\) or more, and at most 1: scores lie between 0 and 1"),
        ("routed_scale", 1e30, "above 0 and at most 1e\\+06"),
        ("rope_theta", 1e300, "above 1 and at most 1e\\+12"),
        ("yarn_factor", 1e300, "at least 1: it only stretches a context, and at most 8.38861e\\+06: positions end"),
        ("context", 10**400, "at most 2147483647"),
        ("width", 2**31, "at most 2147483647"),
        ("experts", 2**31, "0 for a dense model"),
        ("shared_experts", 2**31, "0 or more"),
    ],
)
def test_a_decoder_that_cannot_work_is_refused_by_field(field, value, said):
    config = replace(TOY, language=replace(TOY.language, **{field: value}))
    with pytest.raises(
        ValueError, match=rf"^model toy: language\.{field} is {re.escape(str(value))}; it must be {said}"
    ):
        KimiK25(config)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("field", [each.name for each in fields(LanguageConfig) if each.type is float])
def test_what_is_no_finite_number_is_refused_by_field(field, value):
    config = replace(TOY, language=replace(TOY.language, **{field: value}))
    with pytest.raises(ValueError, match=rf"^model toy: language\.{field} is {value}; it must be "):
        check_model(config)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("heads", 0, "at least 1"),
        ("max_frames", 0, "at least 1"),
        ("merge", 0, "at least 1"),
        ("table", 0, "at least 1"),
        ("mlp", 0, "at least 1"),
        ("width", 33, "a multiple of heads, which is 2"),
        ("width", 12, "4 times something for each head"),
    ],
)
def test_a_tower_that_cannot_work_is_refused_by_field(field, value, said):
    assert TOY.vision
    config = replace(TOY, vision=replace(TOY.vision, **{field: value}))
    with pytest.raises(ValueError, match=rf"^model toy: vision\.{field} is {value}; it must be {said}"):
        check_model(config)


def test_a_text_tower_that_cannot_work_is_refused_by_field():
    assert TOY.contrastive
    config = replace(TOY, contrastive=replace(TOY.contrastive, width=34))
    with pytest.raises(ValueError, match=r"^model toy: contrastive\.width is 34; it must be a multiple of twice heads"):
        check_model(config)


def test_what_experts_need_is_not_asked_of_a_dense_model():
    check_model(replace(TOY, language=replace(TOY.language, experts=0, experts_per_token=0, dense_layers=9)))


def test_documents_beyond_the_stretched_context_are_refused_with_the_factor_that_would_do():
    language = replace(TOY.language, yarn_factor=4.0)
    check_context(language, 1024)
    with pytest.raises(ValueError, match=r"language.context is 256 and yarn_factor 4: positions reach 1024 tokens"):
        check_context(language, 1025)
    with pytest.raises(ValueError, match="give a yarn_factor of 5"):
        check_context(language, 1025)
