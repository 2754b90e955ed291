"""Weights in sharded safetensors: to a folder and back, never more at once than a run of elements."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from k25_pipelines.errors import CheckpointError
from trainers.interchange.names import Place, places
from trainers.interchange.weights import Weights, refuse_no_numbers, runs

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30
"""A shard holds no more, unless one tensor does."""
HASHED_AT_ONCE = 2**24
HEADER_ALIGNMENT = 8
SHOWN = 40
"""Characters that an error shows of a value."""
NAMES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Types of weights, as safetensors call them, wide ones first: the order in which a file has them."""
KINDS = {kind: number for number, kind in enumerate(NAMES)}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A file of weights that is still to be written."""

    file: str
    places: list[Place]
    """What it holds, in the order in which it lies there."""


def plan_shards(
    shapes: Mapping[str, Sequence[int]],
    *,
    dtype_of: Callable[[str], torch.dtype],
    shard_bytes: int = SHARD_BYTES,
) -> list[Shard]:
    """Return which weight goes into which file, from shapes alone.

    Args:
        shapes: of our weights, by name.
        dtype_of: the type a released weight is written in, by name.
        shard_bytes: most bytes of a file, unless one weight has more.
    """
    parts, filled = [[]], 0
    for place in places(shapes):
        size = place.size * dtype_of(place.name).itemsize
        if parts[-1] and filled + size > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(place)
        filled += size
    return [
        Shard(
            file=f"model-{number:05d}-of-{len(parts):05d}.safetensors",
            places=sorted(part, key=lambda place: (KINDS[dtype_of(place.name)], place.name)),
        )
        for number, part in enumerate(parts, 1)
    ]


def index_of(shards: Sequence[Shard], dtype_of: Callable[[str], torch.dtype]) -> dict[str, Any]:
    """Return what `model.safetensors.index.json` says of files that are planned or written."""
    file_of = {place.name: shard.file for shard in shards for place in shard.places}
    total = sum(place.size * dtype_of(place.name).itemsize for shard in shards for place in shard.places)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}


def write_shards(
    folder: Path,
    weights: Weights,
    *,
    dtype_of: Callable[[str], torch.dtype],
    shard_bytes: int = SHARD_BYTES,
    progress: Progress,
) -> dict[str, str]:
    """Write weights as shards with their index, and return the SHA-256 of each file by name.

    A run of elements is held at a time, whatever the size of a shard or of the model.

    Args:
        folder: exists; other files may stand in it.
        weights: by our names.
        dtype_of: the type a released weight is written in, by name.
        shard_bytes: most bytes of a shard, unless one weight has more.
        progress: called after each weight with bytes done, bytes of all, and its shard's name.

    Raises:
        CheckpointError: a weight is no finite number, or not in its type.
    """
    shards = plan_shards(weights.shapes, dtype_of=dtype_of, shard_bytes=shard_bytes)
    index = index_of(shards, dtype_of)
    sums, done, total = {}, 0, index["metadata"]["total_size"]
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            sums[shard.file] = hashlib.sha256()
            for data in _safetensors(shard, weights, dtype_of):
                file.write(data)
                sums[shard.file].update(data)
                done += len(data)
                progress(min(done, total), total, shard.file)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return {**{name: each.hexdigest() for name, each in sums.items()}, INDEX: sha256_of(folder / INDEX)}


def check_shards(
    weights: Weights, *, dtype_of: Callable[[str], torch.dtype], shard_bytes: int = SHARD_BYTES, progress: Progress
) -> dict[str, Any]:
    """Return the index that `write_shards` would write, after making all it would write and keeping none of it.

    Args and errors are those of `write_shards`.
    """
    shards = plan_shards(weights.shapes, dtype_of=dtype_of, shard_bytes=shard_bytes)
    index = index_of(shards, dtype_of)
    done, total = 0, index["metadata"]["total_size"]
    for shard in shards:
        for data in _safetensors(shard, weights, dtype_of):
            done += len(data)
            progress(min(done, total), total, shard.file)
    return index


def _safetensors(shard: Shard, weights: Weights, dtype_of: Callable[[str], torch.dtype]) -> Iterator[bytes]:
    """Yield the bytes of a file: the length of its header, the header, and the weights one after the other.

    Source: the format's description in the safetensors repository, README.md; the same bytes as its `save_file`.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for place in shard.places:
        kind, start = dtype_of(place.name), end
        end += place.size * kind.itemsize
        header[place.name] = {"dtype": NAMES[kind], "shape": list(place.shape), "data_offsets": [start, end]}
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    words += b" " * (-len(words) % HEADER_ALIGNMENT)
    yield struct.pack("<Q", len(words)) + words
    for place in shard.places:
        for start, count in runs(place.start, place.size):
            run = weights.read(place.own, start, count)
            refuse_no_numbers(run, place.name, "export a checkpoint from before its run broke")
            run = run.to(dtype_of(place.name)).contiguous()
            refuse_no_numbers(run, place.name, f"it does not fit {NAMES[run.dtype]}: export it wider, with --dtype")
            yield run.view(torch.uint8).numpy().tobytes()


def shard_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of a folder: by its index, or all of a lone `model.safetensors`.

    Raises:
        CheckpointError: there are no weights, the index is broken, or a shard it names is missing or cut off.
    """
    index, alone = folder / INDEX, folder / "model.safetensors"
    if index.exists():
        places = {name: folder / file for name, file in _weight_map(index).items()}
    elif alone.exists():
        places = dict.fromkeys(_names_in(alone), alone)
    else:
        raise CheckpointError(f"{folder} holds no {INDEX} and no {alone.name}; give a folder as `k25 export` writes it")
    for path in sorted(set(places.values())):
        if not path.is_file():
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
    """Tensors of a folder by name; one file at a time is open, and mapped, not read whole."""

    def __init__(self, places: Mapping[str, Path]):
        """Take which file has each tensor."""
        self.places = places
        self._path: Path | None = None
        self._file: Any = None

    def __call__(self, name: str) -> Tensor:
        """Return one tensor."""
        path = self.places[name]
        if path != self._path:
            self._path, self._file = path, safe_open(path, framework="pt")
        return self._file.get_tensor(name)


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


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file that an index names for each tensor. Raises CheckpointError."""
    told = read_json(index).get("weight_map")
    if not isinstance(told, dict) or not told:
        said = "lacks weight_map" if told is None else f"has a weight_map of {json.dumps(told)[:SHOWN]}"
        raise CheckpointError(f"{index} {said}; it maps each tensor's name to its file; copy the folder anew")
    for name, file in told.items():
        if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file:
            raise CheckpointError(
                f"{index}: weight_map.{name} is {file!r}; it must be the name of a file beside it; copy the folder anew"
            )
    return told


def _names_in(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not whole safetensors ({error}); copy the folder anew") from error
