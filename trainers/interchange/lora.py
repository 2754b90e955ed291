"""Low-rank adapters: a model in, the same model with adapters beside chosen linear layers out; merged or alone.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685), equation 3; the files are laid out as peft writes them, for the
names that transformers' classes have in memory.
"""

# Shapes: r rank, N places.

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from k25_pipelines.errors import CheckpointError
from k25_pipelines.keys import random_key
from trainers.interchange.lora_config import TARGETS, LoraConfig, check_lora, check_rank
from trainers.interchange.shards import read_json
from trainers.interchange.weights import Held, Weights, refuse_no_numbers, tensor_of

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SIDES = ("lora_A", "lora_B")
MODULES = ("language.", "projector.")
"""Where adapters go; stage 1a's own text tower has layers of the same names and gets none."""

IN_MEMORY: Mapping[str, str] = {
    "language.": "base_model.model.model.language_model.",
    "projector.proj.0": "base_model.model.model.mm_projector.in_proj",
    "projector.proj.2": "base_model.model.model.mm_projector.out_proj",
}
"""Our module -> peft's name of the same one under Kimi_K25ForConditionalGeneration."""
TEXT_IN_MEMORY: Mapping[str, str] = {"language.": "base_model.model.model."}
"""The same under DeepseekV3ForCausalLM, for a model of text alone."""


class LoraLinear(nn.Linear):
    """A linear layer with its own names and weights, and an adapter beside it."""

    def __init__(self, linear: nn.Linear, config: LoraConfig, *, seed: int, name: str):
        """Take over the layer's weights; draw A from a generator of its own, leave B zero."""
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, config.scale
        place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(config.rank, linear.in_features, **place))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, config.rank, **place))
        generator = torch.Generator().manual_seed(random_key("initial adapter", seed, name) >> 1)
        drawn = torch.randn(config.rank, linear.in_features, generator=generator) * linear.in_features**-0.5
        with torch.no_grad():
            self.lora_A.copy_(drawn)

    def forward(self, input: Tensor) -> Tensor:
        """Return float [N, out]."""
        low = functional.linear(functional.linear(input, self.lora_A), self.lora_B)
        return functional.linear(input, self.weight, self.bias) + self.scale * low


def add_adapters(model: nn.Module, config: LoraConfig, *, seed: int = 0) -> list[str]:
    """Put adapters beside the layers that `config` names, freeze all other weights, and return the layers' names.

    Until the first step the model's answers are the same bits as without adapters.

    Raises:
        ValueError: a field cannot be, or the model has no such layer.
    """
    check_lora(config)
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    layers = {name: layer for name, layer in linear.items() if _is_target(name, config)}
    if not layers:
        raise ValueError(f"lora.targets {', '.join(config.targets)}: the model has no such layer")
    for name, layer in layers.items():
        check_rank(config, name, min(layer.weight.shape))
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoraLinear(layer, config, seed=seed, name=name))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.endswith(SIDES))
    return list(layers)


def has_adapters(state: Mapping[str, object]) -> bool:
    """Return whether weights have adapters among them."""
    return any(name.endswith(SIDES) for name in state)


def adapters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters alone."""
    return {name: value for name, value in state.items() if name.endswith(SIDES)}


def read_state(weights: Weights) -> dict[str, Tensor]:
    """Return the adapters alone, of weights that are not in memory."""
    return {name: tensor_of(weights, name) for name in weights.shapes if name.endswith(SIDES)}


class Merged:
    """Weights without adapters, each weight W that has one as W + scale * B A, made when it is asked for."""

    def __init__(self, weights: Weights, config: LoraConfig) -> None:
        """Take weights with adapters among them."""
        self._weights, self._scale = weights, config.scale
        self._last: tuple[str, Tensor] | None = None
        self.shapes = {name: shape for name, shape in weights.shapes.items() if not name.endswith(SIDES)}

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Return a run of elements; of a weight with an adapter the last one is kept, as runs of it follow."""
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A" not in self._weights.shapes:
            return self._weights.read(name, start, count)
        if self._last is None or self._last[0] != name:
            low, high = (tensor_of(self._weights, f"{layer}.{side}").double() for side in SIDES)
            weight = tensor_of(self._weights, name)
            self._last = name, (weight.double() + high @ low * self._scale).to(weight.dtype).view(-1)
        flat = self._last[1]
        return flat[start:] if count is None else flat[start : start + count]


def merged(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return weights in memory without adapters, each weight W that has one as W + scale * B A."""
    whole = Merged(Held(state), config)
    return {name: tensor_of(whole, name) for name in whole.shapes}


def index_of_adapters(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what an index would say of the file that `write_adapters` writes.

    Raises:
        CheckpointError: an adapter is no finite number.
    """
    adapters = _named(state)
    total = sum(value.nbytes for value in adapters.values())
    return {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(sorted(adapters), WEIGHTS)}


def write_adapters(folder: Path, state: Mapping[str, Tensor], config: LoraConfig, *, base: str) -> None:
    """Write the adapters among `state` as peft's two files.

    Args:
        folder: exists.
        state: weights of a model with adapters; those of the model itself are left out.
        config: what the adapters are.
        base: where the model they belong to is found: a folder, or a checkpoint's key.

    Raises:
        CheckpointError: an adapter is no finite number.
    """
    adapters = _named(state)
    save_file(adapters, folder / WEIGHTS, metadata={"format": "pt"})
    layers = {re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", name) for name in adapters}
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "target_modules": sorted(layers),
        "k25_targets": list(config.targets),
    }
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n")


def read_adapters(folder: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """Return adapters under our names and what they are, of a folder that `write_adapters` wrote.

    Raises:
        CheckpointError: it holds no adapters, or some for layers that are not ours.
    """
    told = read_json(folder / CONFIG)
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder / WEIGHTS} is missing; complete the folder")
    adapters = load_file(folder / WEIGHTS)
    is_whole = any(name.startswith(IN_MEMORY["language."]) or "mm_projector" in name for name in adapters)
    back = {theirs: own for own, theirs in (IN_MEMORY if is_whole else TEXT_IN_MEMORY).items()}
    state = {_renamed(name.removesuffix(".weight"), back): value for name, value in adapters.items()}
    targets = tuple(told.get("k25_targets") or _targets_of(state))
    return state, LoraConfig(rank=told["r"], alpha=float(told["lora_alpha"]), targets=targets)


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters alone, by peft's names."""
    table = _table_of(state)
    for name, value in adapters_of(state).items():
        refuse_no_numbers(value, name, "export a checkpoint from before its run broke")
    return {f"{_renamed(name, table)}.weight": value.contiguous() for name, value in adapters_of(state).items()}


def _is_target(name: str, config: LoraConfig) -> bool:
    suffixes = {suffix for word in config.targets for suffix in TARGETS[word]}
    return name.startswith(MODULES) and any(name.endswith(f".{suffix}") for suffix in suffixes)


def _targets_of(state: Mapping[str, Tensor]) -> list[str]:
    layers = {name.rpartition(".")[0] for name in state}
    return [word for word, ends in TARGETS.items() if any(layer.endswith(ends) for layer in layers)]


def _table_of(state: Mapping[str, Tensor]) -> Mapping[str, str]:
    return IN_MEMORY if any(name.startswith("projector.") for name in state) else TEXT_IN_MEMORY


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for prefix, other in table.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    raise CheckpointError(f"{name}: an adapter for no layer of this model; known begin with {', '.join(table)}")
