"""A folder of the released layout in, a checkpoint of the lake out: what a training config's `initial` starts from.

Shards are read a tensor at a time, and the checkpoint is written a part at a time.

Run: python -m trainers.interchange.importing folder --store s3://lake
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from k25_pipelines.commands.parts import progress_bar
from k25_pipelines.errors import CheckpointError, K25Error, RecipeError
from k25_pipelines.keys import digest
from k25_pipelines.sample.tokens import Tokenizer, load_tokenizer, publish_tokenizer, tokenizer_of
from k25_pipelines.storage.store import Store, open_store
from trainers.checkpoint import RECORD, read_record
from trainers.config import ModelConfig, checkpoint_key, plain
from trainers.interchange.card import LINEAGE
from trainers.interchange.names import places
from trainers.interchange.npz import PART_BYTES, npz_parts
from trainers.interchange.packed import Headers, as_unpacked, unpacking
from trainers.interchange.published_config import check_media_token, model_of
from trainers.interchange.shards import (
    Progress,
    ShardReader,
    read_json,
    sha256_of,
    shapes_in,
    shard_files,
)
from trainers.interchange.weights import FolderWeights, Held, Weights, tensor_of, weights_digest
from trainers.lifetime import end_with_parent
from trainers.model.kimi_k25 import KimiK25
from trainers.record import code_version

TYPES: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types that float32 holds without loss, as safetensors call them."""
NAMED = 3
"""So many odd tensors an error names; the rest are counted."""


def import_checkpoint(
    store: Store,
    folder: Path,
    *,
    tokenizer: str | None = None,
    part_bytes: int = PART_BYTES,
    progress: Progress = lambda done, total, what: None,
) -> str:
    """Publish a folder's model as a checkpoint, and return its key; the same folder gives the same key.

    Args:
        store: the lake.
        folder: config.json, safetensors, and where there is one tokenizer.json.
        tokenizer: name, digest or URI of the model's tokenizer, where the folder has none that fits.
        part_bytes: most bytes of one of the checkpoint's files of weights.
        progress: called with bytes done, bytes of all, and what is at hand.

    Raises:
        K25Error: the folder is not whole, or its model is not one of ours; nothing is published then.
    """
    words = _tokenizer(store, folder, tokenizer)
    state, config = open_folder(folder)
    if words and words.num_tokens > config.language.vocab:
        raise CheckpointError(
            f"{folder}: the tokenizer has {words.num_tokens} tokens, config.json's vocab_size is "
            f"{config.language.vocab}; name the model's own with --tokenizer"
        )
    if words and config.vision:
        check_media_token(read_json(folder / "config.json"), words.special["media_pad"])
    progress(0, 1, "reading")
    weights = weights_digest(state)
    name = digest(weights, plain(config), words.digest if words else None)
    key = checkpoint_key(f"import-{name[:12]}", 0)
    if not list(store.list(f"{key}/{RECORD}")):
        if words:
            publish_tokenizer(store, words)
        record = _record(folder, config, weights=weights, name=name, tokenizer=words.digest if words else None)
        record["parent"] = _origin(store, folder, weights)
        publish_weights(store, key, state, record, part_bytes=part_bytes, progress=progress)
    return key


def import_model(folder: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    """Return the weights of a folder in float32 under our names, all in memory, and the sizes of their model.

    Raises:
        CheckpointError: as `open_folder`.
    """
    weights, config = open_folder(folder)
    return {name: tensor_of(weights, name) for name in weights.shapes}, config


def open_folder(folder: Path) -> tuple[FolderWeights, ModelConfig]:
    """Return the weights of a folder, read when they are asked for, and the sizes of their model.

    Names, shapes and types are compared with the model that config.json tells of before a tensor is read.

    Raises:
        CheckpointError: what does not fit, by name.
    """
    config = model_of(read_json(folder / "config.json"))
    files = shard_files(folder)
    found = _headers(folder, files)
    try:
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in KimiK25(config).state_dict().items()}
    except ValueError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from error
    _same_shapes(folder, {place.name: place.shape for place in places(shapes)}, found)
    return FolderWeights(shapes, places(shapes), unpacking(files, ShardReader(files))), config


def _tokenizer(store: Store, folder: Path, name: str | None) -> Tokenizer | None:
    if name is not None:
        return load_tokenizer(name, store)
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return tokenizer_of(path.read_bytes(), str(path))
    except RecipeError as error:
        raise CheckpointError(f"{error}; or name the one you train with: --tokenizer default") from error


def _headers(folder: Path, places: Mapping[str, Path]) -> Headers:
    """Return the tensors' headers, packed ones as they are when unpacked. Raises CheckpointError."""
    headers = as_unpacked(shapes_in(places))
    if odd := sorted(name for name, (_, kind) in headers.items() if kind not in TYPES):
        raise CheckpointError(f"{folder}: {odd[0]} is of type {headers[odd[0]][1]}; weights are {', '.join(TYPES)}")
    return headers


def _same_shapes(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Headers) -> None:
    odd = {
        "missing": sorted(expected.keys() - found.keys()),
        "not of this model": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(
            f"{name} {list(found[name][0])}, by config.json {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name][0] != shape
        ),
    }
    if told := [f"{what}: {_some(names)}" for what, names in odd.items() if names]:
        raise CheckpointError(f"{folder}: weights and config.json disagree; {'; '.join(told)}")


def _origin(store: Store, folder: Path, weights: str) -> str | None:
    """Return the checkpoint that the folder was exported from, if the lake has it and the weights are still its own."""
    path = folder / LINEAGE
    told = read_json(path) if path.exists() else {}
    if told.get("weights") != weights or not told.get("checkpoint"):
        return None
    try:
        record = read_record(store, told["checkpoint"])
    except CheckpointError:
        return None
    return told["checkpoint"] if record["digest"] == told["digest"] else None


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _record(folder: Path, config: ModelConfig, *, weights: str, name: str, tokenizer: str | None) -> dict[str, Any]:
    """Return the record of a checkpoint that was trained on nothing here."""
    told = {"stage": "import", "model": plain(config)}
    places = shard_files(folder)
    kinds = {tensor: TYPES[kind] for tensor, (_, kind) in _headers(folder, places).items()}
    common = Counter(kinds.values()).most_common(1)[0][0]
    files = sorted({*places.values(), folder / "config.json"})
    return {
        "run": f"import-{name[:12]}",
        "stage": "import",
        "step": 0,
        "plan": None,
        "segments": [],
        "reads": [],
        "step_range": [0, 0],
        "parent": None,
        "code_version": code_version(),
        "packages": {},
        "layout": {"ranks": 0, "threads": 0},
        "config": told,
        "metrics": {},
        "loader": None,
        "tokenizer": tokenizer,
        "published": {
            "dtype": common,
            "others": {tensor: kind for tensor, kind in sorted(kinds.items()) if kind != common},
            "files": {path.name: sha256_of(path) for path in files},
        },
        "weights": weights,
        "digest": digest(weights, told, None, [], 0),
    }


def publish_weights(
    store: Store,
    key: str,
    weights: Weights | Mapping[str, Tensor],
    record: Mapping,
    *,
    part_bytes: int = PART_BYTES,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Write weights and, last, the record with their SHA-256: a checkpoint to start from, not to resume.

    Args:
        store: the lake.
        key: of the checkpoint.
        weights: by our names; read a run of elements at a time.
        record: all but the files.
        part_bytes: most bytes of an object, and of the memory that is taken.
        progress: called after each object with bytes done, bytes of all, and its name.
    """
    weights = Held(weights) if isinstance(weights, Mapping) else weights
    sums = {}
    for name, data, done, total in npz_parts(weights, part_bytes):
        store.put(f"{key}/{name}", data)
        sums[name] = hashlib.sha256(data).hexdigest()
        progress(done, total, name)
    store.put_new(f"{key}/{RECORD}", json.dumps({**record, "files": sums}, indent=1).encode())


def main() -> int:
    """Import one folder as the command line says; 0, or 2 with one line of error."""
    parser = argparse.ArgumentParser(prog="python -m trainers.interchange.importing", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--tokenizer")
    options = parser.parse_args()
    try:
        with progress_bar("import") as progress:
            key = import_checkpoint(
                open_store(options.store), options.folder, tokenizer=options.tokenizer, progress=progress
            )
    except (K25Error, ValueError) as error:
        sys.stderr.write(f"k25 import: {' '.join(str(error).split())}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"k25 import: {error.filename or options.folder}: {error.strerror or error}; check the path\n")
        return 2
    sys.stdout.write(f"{key}\n")
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
