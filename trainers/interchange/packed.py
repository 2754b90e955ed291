"""Experts as the release packs them: 4-bit integers and their scales in, plain weights out.

Eight values lie in an int32, the first in its lowest bits, each with 8 added to it; a group of neighbours in a row
shares a scale. The product is exact in float32: 4 bits times the 8 of a bfloat16 scale.

Source: format `pack-quantized` of compressed-tensors' public code, with the arguments that the release names.
"""

# Shapes: R rows, C columns, G columns of a group.

from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor

from k25_pipelines.errors import CheckpointError

Headers = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type of tensors by name, as a file's header tells them."""

BITS = 4
PER_WORD = 32 // BITS
PARTS = (".weight_packed", ".weight_scale", ".weight_shape")
MUST_BE: Mapping[str, Any] = {"num_bits": BITS, "type": "int", "symmetric": True, "strategy": "group"}
WAY_OUT = "unpack the weights to bfloat16 first, and remove quantization_config from config.json"


def check_packing(told: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a `quantization_config` packs weights in a way that is not read here."""
    if told.get("format") != "pack-quantized":
        raise CheckpointError(f"config.json: quantization_config.format is {told.get('format')!r}, not read; {WAY_OUT}")
    groups = told.get("config_groups", {})
    if not isinstance(groups, Mapping):
        raise CheckpointError(f"config.json: quantization_config.config_groups is {groups!r}, no mapping; {WAY_OUT}")
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        weights = weights if isinstance(weights, Mapping) else {}
        for key, wanted in MUST_BE.items():
            if weights.get(key) != wanted:
                place = f"quantization_config.config_groups.{name}.weights.{key}"
                raise CheckpointError(
                    f"config.json: {place} is {weights.get(key)!r}, only {wanted!r} is read; {WAY_OUT}"
                )
        if weights.get("actorder"):
            raise CheckpointError(f"config.json: group {name} has reordered columns (actorder), not read; {WAY_OUT}")


def as_unpacked(found: Headers) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the headers that the tensors would have if none of them were packed.

    Raises:
        CheckpointError: a packed weight lacks a part, or its scales do not divide its columns.
    """
    plain = {name: header for name, header in found.items() if not name.endswith(PARTS)}
    for name in found:
        if name.endswith(PARTS):
            layer = name.rpartition(".")[0]
            plain[f"{layer}.weight"] = _header(layer, found)
    return plain


def unpacking(found: Container[str], read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Return `read` that also answers the name of a weight that `found` has only the packed parts of."""

    def answer(name: str) -> Tensor:
        if name in found:
            return read(name)
        packed, scale, shape = (read(f"{name.removesuffix('.weight')}{part}") for part in PARTS)
        if shape.tolist() != [len(packed), packed.shape[1] * PER_WORD]:
            raise CheckpointError(f"{name}: weight_shape tells {shape.tolist()}, the packed words another; {WAY_OUT}")
        return unpacked(packed, scale)

    return answer


def unpacked(packed: Tensor, scale: Tensor) -> Tensor:
    """Return float32 [R, C] of words int32 [R, C / 8] and scales float [R, C / G]."""
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32)
    values = ((packed[..., None] >> shifts) & (2**BITS - 1)) - 2 ** (BITS - 1)
    groups = values.view(*scale.shape, -1).to(torch.float32)
    return (groups * scale.to(torch.float32)[..., None]).flatten(1)


def _header(layer: str, found: Headers) -> tuple[tuple[int, ...], str]:
    if missing := [part for part in PARTS if f"{layer}{part}" not in found]:
        raise CheckpointError(f"{layer}: packed, and without {', '.join(missing)}; complete the folder")
    (rows, words), (scale_rows, groups) = (found[f"{layer}{part}"][0] for part in PARTS[:2])
    if scale_rows != rows or words * PER_WORD % groups:
        raise CheckpointError(
            f"{layer}: scales [{scale_rows}, {groups}] do not fit {rows} rows of {words} words; {WAY_OUT}"
        )
    return (rows, words * PER_WORD), "F32"
