"""Adapters: silent at the start, alone in being trained, and the same model once they are merged."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from k25_pipelines.errors import CheckpointError
from k25_pipelines.storage.local import LocalStore
from tests.trainers.batches import Media, batch_of
from tests.trainers.interchange import checkpoint, grown, public_model, tiny
from trainers.config import plain
from trainers.inputs import inputs_of
from trainers.interchange.export import export_checkpoint
from trainers.interchange.lora import (
    LoraLinear,
    adapters_of,
    add_adapters,
    has_adapters,
    merged,
    read_adapters,
    write_adapters,
)
from trainers.interchange.lora_config import TARGETS, LoraConfig, check_lora
from trainers.model.kimi_k25 import KimiK25

LORA = LoraConfig(rank=4, alpha=8.0)
CONFIG = tiny()
BATCH = [[[1, Media(thw=(1, 4, 6), seed=1), 5, 6, 7], [11, 12, 13, 14, 15]]]


def losses(model: KimiK25) -> torch.Tensor:
    return model(inputs_of(batch_of(BATCH, length=24))).target_losses


def adapted(config: LoraConfig = LORA, *, steps: int = 0) -> KimiK25:
    """A model with adapters that have taken some steps of plain descent."""
    model = grown(CONFIG)
    add_adapters(model, config, seed=5)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for _ in range(steps):
        for weight, slope in zip(weights, torch.autograd.grad(losses(model).mean(), weights), strict=True):
            weight.data -= 0.5 * slope
    return model


def test_adapters_stand_beside_the_layers_that_are_named():
    model = grown(CONFIG)
    attention = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj")
    mlp = ("down_proj", "gate_proj", "up_proj")
    assert set(add_adapters(model, LORA)) == {
        *(f"language.layers.{n}.self_attn.{name}" for n in range(3) for name in attention),
        *(f"language.layers.0.mlp.{name}" for name in mlp),
        *(f"language.layers.{n}.mlp.shared_experts.{name}" for n in (1, 2) for name in mlp),
        "projector.proj.0",
        "projector.proj.2",
    }
    layer = model.language.layers[0].self_attn.q_a_proj
    assert isinstance(layer, LoraLinear)
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((4, 32), (24, 4))


def test_a_group_of_layers_can_be_left_out_and_stage_1as_text_tower_always_is():
    model = KimiK25(tiny(contrastive=True))
    names = add_adapters(model, dataclasses.replace(LORA, targets=("mlp",)))
    assert {name.split(".")[0] for name in names} == {"language"}
    assert {name.split(".")[3] for name in names} == {"mlp"}


def test_before_the_first_step_every_answer_has_the_same_bits():
    assert torch.equal(losses(adapted()), losses(grown(CONFIG)))


def test_a_weight_keeps_its_name_and_its_value():
    before, after = grown(CONFIG).state_dict(), adapted(steps=2).state_dict()
    assert {name for name in after if name not in before} == set(adapters_of(after))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_reach_adapters_alone():
    model = adapted(steps=1)
    losses(model).mean().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == set(adapters_of(model.state_dict()))
    assert all(weight.grad.abs().max() > 0 for name, weight in model.named_parameters() if name in with_gradient)


def test_the_same_seed_draws_the_same_adapters_whatever_stands_beside_them():
    few = adapted(dataclasses.replace(LORA, targets=("projector",)))
    assert torch.equal(few.projector.proj[0].lora_A, adapted().projector.proj[0].lora_A)
    assert not torch.equal(adapted().projector.proj[0].lora_A, adapted().projector.proj[2].lora_A)


def test_merged_weights_are_a_plain_model_with_the_same_answers():
    model, base = adapted(steps=5), grown(CONFIG)
    whole = KimiK25(CONFIG).eval()
    whole.load_state_dict(merged(model.state_dict(), LORA))
    before, with_adapters = losses(base), losses(model)
    assert (before - with_adapters).abs().max() > 0.05
    torch.testing.assert_close(losses(whole), with_adapters, rtol=1e-5, atol=1e-5)


def test_files_come_back_and_are_small(tmp_path):
    state = adapted(steps=1).state_dict()
    write_adapters(tmp_path, state, LORA, base="k25/checkpoints/joint-1/00000070")
    found, config = read_adapters(tmp_path)
    assert config == LORA
    assert found.keys() == adapters_of(state).keys()
    assert all(torch.equal(found[name], state[name]) for name in found)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", 4, 8.0)
    assert told["base_model_name_or_path"] == "k25/checkpoints/joint-1/00000070"


def test_each_adapter_is_named_as_peft_finds_its_layer_in_the_public_model(tmp_path):
    """What peft does with the files, by hand: the public model with B A added is our model with adapters."""
    pytest.importorskip("transformers")
    model, store = adapted(steps=5), LocalStore(str(tmp_path / "lake"))
    key = checkpoint(store, model.state_dict(), CONFIG, lora=plain(LORA))
    base = checkpoint(store, grown(CONFIG).state_dict(), CONFIG, run="base-1")
    export_checkpoint(store, key, tmp_path / "adapters")
    export_checkpoint(store, base, tmp_path / "base")
    public = public_model(tmp_path / "base")
    adapters = load_file(tmp_path / "adapters/adapter_model.safetensors")
    told = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert {f"base_model.model.{n}.{s}.weight" for n in told["target_modules"] for s in ("lora_A", "lora_B")} == set(
        adapters
    )
    with torch.no_grad():
        for name in told["target_modules"]:
            low, high = (adapters[f"base_model.model.{name}.{side}.weight"] for side in ("lora_A", "lora_B"))
            public.get_submodule(name).weight += high @ low * told["lora_alpha"] / told["r"]
        ids = torch.tensor([BATCH[0][1]])
        found = public(input_ids=ids, use_cache=False).logits[0, :-1]
        ours = model.logits(inputs_of(batch_of([[BATCH[0][1]]], length=5)), None)
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)


def test_an_export_holds_adapters_alone_or_merged_into_a_whole_model(tmp_path):
    store, state = LocalStore(str(tmp_path / "lake")), adapted(steps=2).state_dict()
    key = checkpoint(store, state, CONFIG, lora=plain(LORA))
    export_checkpoint(store, key, tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "lineage.json",
    }
    export_checkpoint(store, key, tmp_path / "whole", merge=True)
    weights = load_file(tmp_path / "whole/model-00001-of-00001.safetensors")
    name = "self_attn.o_proj.weight"
    expected = merged(state, LORA)[f"language.layers.2.{name}"]
    assert torch.equal(weights[f"language_model.model.layers.2.{name}"], expected)
    assert not has_adapters(weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 0}, "lora.rank is 0; it must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha is 0.0; it must be above 0"),
        ({"alpha": float("inf")}, "lora.alpha is inf; it must be above 0 and finite"),
        ({"alpha": float("nan")}, "lora.alpha is nan; it must be above 0 and finite"),
        ({"targets": ("mlp", "heads")}, "lora.targets has heads; it is some of attention, mlp, projector"),
        ({"targets": ()}, "lora.targets is empty"),
    ],
)
def test_adapters_that_cannot_be_are_refused_by_field(changes, said):
    with pytest.raises(ValueError, match=said):
        add_adapters(KimiK25(CONFIG), dataclasses.replace(LORA, **changes))


@pytest.mark.parametrize("targets", [("attention",), ("mlp",), ("projector",), tuple(TARGETS)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(q_rank=None, kv_rank=40),
        tiny(dense_layers=0, shared_experts=3),
        tiny(experts=0, mlp=11, q_rank=7),
        tiny(shared_experts=0, mlp=90),
    ],
    ids=["whole", "plain queries", "shared", "dense", "routed alone"],
)
def test_a_rank_above_a_layers_smaller_side_is_refused_by_that_layer_before_anything_is_changed(config, targets):
    model = KimiK25(config)
    sides = {name: min(layer.weight.shape) for name, layer in linear_layers(model, targets)}
    most = min(sides.values())
    chosen = LoraConfig(rank=most + 1, targets=targets)
    names, said = list(model.state_dict()), f"lora.rank is {most + 1}; it must be at most {most}, the smaller side of "
    with pytest.raises(ValueError, match=f"^{said}") as refused:
        add_adapters(model, chosen)
    assert sides[str(refused.value).removeprefix(said)] == most
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match=f"^{said}"):
        check_lora(chosen, config)
    check_lora(dataclasses.replace(chosen, rank=most), config)
    add_adapters(model, dataclasses.replace(chosen, rank=most))


def linear_layers(model: KimiK25, targets: tuple[str, ...]) -> list[tuple[str, torch.nn.Linear]]:
    ends = tuple(f".{name}" for word in targets for name in TARGETS[word])
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    return [(name, layer) for name, layer in found if name.endswith(ends) and not name.startswith("vision.")]


def test_adapters_for_a_module_that_the_model_lacks_are_refused():
    with pytest.raises(ValueError, match="the model has no such layer"):
        add_adapters(KimiK25(tiny(vision=False)), dataclasses.replace(LORA, targets=("projector",)))


def test_a_checkpoint_with_adapters_says_their_scale(tmp_path):
    store = LocalStore(str(tmp_path / "lake"))
    key = checkpoint(store, adapted().state_dict(), CONFIG)
    with pytest.raises(CheckpointError, match="its config has no `lora` to say their scale"):
        export_checkpoint(store, key, tmp_path / "out", merge=True)
