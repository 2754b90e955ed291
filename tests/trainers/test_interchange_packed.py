"""Experts packed to 4 bits, as the release has them, are read; packings that are not that one are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from k25_pipelines.errors import CheckpointError
from k25_pipelines.sample.tokens import load_tokenizer
from tests.trainers.interchange import grown, tiny
from trainers.interchange.export import export_model
from trainers.interchange.importing import import_model
from trainers.interchange.packed import check_packing, unpacked
from trainers.interchange.shards import INDEX

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": None}
PACKING = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"g": {"weights": WEIGHTS}},
}
CONFIG = tiny(expert_mlp=32)


def packed(values: torch.Tensor) -> torch.Tensor:
    """int32 [R, C / 8] of values -8 to 7, int64 [R, C]: written out place by place."""
    words = []
    for row in (values + 8).tolist():
        numbers = [
            sum(value << (4 * place) for place, value in enumerate(row[i : i + 8])) for i in range(0, len(row), 8)
        ]
        words.append([number - 2**32 if number >= 2**31 else number for number in numbers])
    return torch.tensor(words, dtype=torch.int32)


def test_a_word_holds_eight_values_from_its_lowest_bits_up():
    words = torch.tensor([[0x76543210, -0x76543211]], dtype=torch.int32)  # the second is 0x89ABCDEF
    found = unpacked(words, torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16))
    assert found.tolist() == [[*range(-8, 0), *(value / 2 for value in range(7, -1, -1))]]


def test_a_folder_with_packed_experts_gives_their_weights(tmp_path):
    model = grown(CONFIG)
    export_model(model, CONFIG, load_tokenizer("default"), tmp_path / "out")
    path = tmp_path / "out/model-00001-of-00001.safetensors"
    weights, expected = load_file(path), {}
    generator = torch.Generator().manual_seed(3)
    for name in [name for name in weights if ".mlp.experts." in name]:
        layer, (rows, columns) = name.removesuffix(".weight"), weights.pop(name).shape
        values = torch.randint(-8, 8, (rows, columns), generator=generator)
        scale = torch.rand(rows, columns // 32, generator=generator).to(torch.bfloat16)
        weights[f"{layer}.weight_packed"], weights[f"{layer}.weight_scale"] = packed(values), scale
        weights[f"{layer}.weight_shape"] = torch.tensor([rows, columns])
        expected[name] = values * scale.float().repeat_interleave(32, dim=1)
    save_file(weights, path)
    (tmp_path / "out" / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, path.name)}))
    told = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps({**told, "quantization_config": PACKING}))
    state, config = import_model(tmp_path / "out")
    assert config == CONFIG
    for layer in (1, 2):
        place, theirs = f"language.layers.{layer}.mlp.experts", f"language_model.model.layers.{layer}.mlp.experts"
        for expert in range(6):
            gate, up, down = (expected[f"{theirs}.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down"))
            assert torch.equal(state[f"{place}.gate_up"][expert], torch.cat([gate, up]))
            assert torch.equal(state[f"{place}.down"][expert], down)
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in state.items() if ".mlp.experts." not in name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_bits": 8}, "weights.num_bits is 8, only 4 is read; unpack the weights to bfloat16 first"),
        ({"symmetric": False}, "weights.symmetric is False, only True is read"),
        ({"strategy": "channel"}, "weights.strategy is 'channel', only 'group' is read"),
        ({"actorder": "group"}, "group g has reordered columns"),
    ],
)
def test_another_packing_is_refused_by_its_key(change, said):
    with pytest.raises(CheckpointError, match=said):
        check_packing({**PACKING, "config_groups": {"g": {"weights": {**WEIGHTS, **change}}}})
    check_packing(PACKING)
