"""Weights in sharded safetensors: named tensors to a folder and back, and the digest they go by."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from k25_pipelines.errors import CheckpointError
from trainers.interchange.names import is_published

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30
"""A shard holds no more, unless one tensor does."""
HASHED_AT_ONCE = 2**24

Progress = Callable[[int, int, str], None]


def write_shards(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    dtype_of: Callable[[str], torch.dtype],
    shard_bytes: int = SHARD_BYTES,
    progress: Progress,
) -> dict[str, str]:
    """Write weights as shards with their index, and return the SHA-256 of each file by name.

    Args:
        folder: exists; other files may stand in it.
        weights: names and tensors, in the order they are written; a shard's worth is copied at a time.
        dtype_of: the type a tensor is written in, by name.
        shard_bytes: most bytes of a shard.
        progress: called after each shard with bytes done, bytes of all, and its name.
    """
    weights = list(weights)
    size = {name: value.numel() * dtype_of(name).itemsize for name, value in weights}
    parts = _parts(weights, size, shard_bytes)
    sums, places, done = {}, {}, 0
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        copies = {name: value.to(dtype_of(name), copy=True).contiguous() for name, value in part}
        save_file(copies, folder / file, metadata={"format": "pt"})
        sums[file] = sha256_of(folder / file)
        places |= dict.fromkeys(copies, file)
        done += sum(size[name] for name in copies)
        progress(done, sum(size.values()), file)
    index = {"metadata": {"total_size": sum(size.values())}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return {**sums, INDEX: sha256_of(folder / INDEX)}


def shard_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of a folder: by its index, or all of a lone `model.safetensors`.

    Raises:
        CheckpointError: there are no weights, or a shard that the index names is missing or cut off.
    """
    index, alone = folder / INDEX, folder / "model.safetensors"
    if index.exists():
        places = {name: folder / file for name, file in read_json(index)["weight_map"].items()}
    elif alone.exists():
        places = dict.fromkeys(_names_in(alone), alone)
    else:
        raise CheckpointError(f"{folder} holds no {INDEX} and no {alone.name}; give a folder as `k25 export` writes it")
    for path in sorted(set(places.values())):
        if not path.exists():
            raise CheckpointError(f"{path} is missing, and {INDEX} names it; complete the folder")
        told = {name for name, place in places.items() if place == path}
        if told != (found := _names_in(path)):
            odd = sorted(told ^ found)[0]
            raise CheckpointError(f"{path} and {INDEX} disagree on {odd}; copy the folder anew")
    return places


def shapes_in(places: Mapping[str, Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of each tensor, from the files' headers alone."""
    found = {}
    for path in sorted(set(places.values())):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                found[name] = tuple(part.get_shape()), part.get_dtype()
    return found


class ShardReader:
    """Tensors of a folder by name; files are opened once and mapped, not read whole."""

    def __init__(self, places: Mapping[str, Path]):
        """Open the files."""
        self.places = places
        self._open = {path: safe_open(path, framework="pt") for path in sorted(set(places.values()))}

    def __call__(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._open[self.places[name]].get_tensor(name)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return 64 hexadecimal characters that name the weights which the released layout has a place for."""
    sums = hashlib.sha256()
    for name, value in sorted(state.items()):
        if is_published(name):
            sums.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sums.update(value.contiguous().numpy().data)
    return sums.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    sums = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASHED_AT_ONCE):
            sums.update(chunk)
    return sums.hexdigest()


def read_json(path: Path) -> dict:
    """Return the mapping in a file. Raises CheckpointError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give a folder as `k25 export` writes it") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy the folder anew") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} is no JSON mapping; copy the folder anew")
    return told


def _names_in(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not whole safetensors ({error}); copy the folder anew") from error


def _parts(
    weights: list[tuple[str, Tensor]], size: Mapping[str, int], shard_bytes: int
) -> list[list[tuple[str, Tensor]]]:
    parts, filled = [[]], 0
    for name, value in weights:
        if parts[-1] and filled + size[name] > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append((name, value))
        filled += size[name]
    return parts
