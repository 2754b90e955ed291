"""A checkpoint of the lake in, a folder of the released layout out: what transformers and servers load.

Run: python -m trainers.interchange.export joint-1234/00000070 --to folder --store s3://lake
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from k25_pipelines.commands.parts import progress_bar
from k25_pipelines.errors import CheckpointError, K25Error
from k25_pipelines.plan.size import PROFILES, Profile
from k25_pipelines.sample.tokens import Tokenizer
from k25_pipelines.storage.store import Store, open_store
from trainers.config import ModelConfig
from trainers.interchange import lora
from trainers.interchange.card import LINEAGE, left_out, lineage_of, model_card
from trainers.interchange.folder import new_folder
from trainers.interchange.lora_config import LoraConfig
from trainers.interchange.opening import Told, check_fit, find, open_found, types_of
from trainers.interchange.processor_files import processor_files
from trainers.interchange.published_config import published_config
from trainers.interchange.shards import (
    SHARD_BYTES,
    Progress,
    check_shards,
    index_of,
    plan_shards,
    sha256_of,
    write_shards,
)
from trainers.interchange.weights import Held, Weights, weights_digest
from trainers.lifetime import end_with_parent
from trainers.model.kimi_k25 import KimiK25
from trainers.models import MODELS

DTYPES = ("float32", "bfloat16", "float16")


def export_checkpoint(
    store: Store,
    checkpoint: str,
    folder: Path,
    *,
    dtype: str | None = None,
    tokenizer: str | None = None,
    merge: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write a published checkpoint as a new folder, and return its lineage.

    Weights are read and written a run of elements at a time: a model of any size takes the same memory.
    A checkpoint with adapters gives a folder of adapters, or with `merge` a whole model.

    Args:
        store: the lake.
        checkpoint: its key; `k25/checkpoints/` may be left out.
        folder: is made; appears whole or not at all.
        dtype: one of DTYPES; None is that of the files it was imported from, else float32.
        tokenizer: name, digest or URI; None is that of the plan it was trained on.
        merge: add adapters to the weights they stand beside.
        shard_bytes: most bytes of a file of weights.
        progress: called with bytes done, bytes of all, and what is at hand.

    Raises:
        K25Error: no such checkpoint or tokenizer, the folder is there, or the layout has no place for the model.
    """
    told = find(store, checkpoint, dtype=dtype, tokenizer=tokenizer)
    with new_folder(folder) as aside:
        progress(0, 1, "reading")
        weights, adapters = open_found(store, told, merge=merge)
        if adapters:
            return _write_adapters(aside, lora.read_state(weights), adapters=adapters, told=told)
        known = {"tokenizer": told.tokenizer, "profile": told.profile, "dtype": told.dtype, "dtype_of": told.dtype_of}
        known |= {"lineage": lineage_of(told.record, told.key), "shard_bytes": shard_bytes, "progress": progress}
        return write_model(aside, weights, told.config, **known)


def dry_run(
    store: Store,
    named: str,
    *,
    dtype: str | None = None,
    tokenizer: str | None = None,
    merge: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Return the index of the weights that an export would write.

    Of a checkpoint all is done but the writing, so that what an export refuses is refused. Of a model that is only
    named there are no weights, and the shapes tell.

    Args:
        named: a checkpoint's key, or a model's name.
        store, dtype, tokenizer, merge, shard_bytes, progress: as `export_checkpoint` takes them.

    Raises:
        K25Error: as `export_checkpoint`.
    """
    if named in MODELS:
        if merge:
            raise CheckpointError(f"{named} is a model's name, and has no adapters to merge; leave out --merge")
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in sorted(KimiK25(MODELS[named]).state_dict().items())}
        types = types_of({}, dtype)
        return index_of(plan_shards(shapes, dtype_of=types, shard_bytes=shard_bytes), types)
    told = find(store, named, dtype=dtype, tokenizer=tokenizer)
    progress(0, 1, "reading")
    weights, adapters = open_found(store, told, merge=merge)
    if adapters:
        return lora.index_of_adapters(lora.read_state(weights))
    published_config(told.config, told.tokenizer.special, dtype=told.dtype)
    check_fit(told.config, told.tokenizer, told.profile)
    return check_shards(weights, dtype_of=told.dtype_of, shard_bytes=shard_bytes, progress=progress)


def export_model(model: nn.Module, config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write a model that is in memory as a new folder in float32, and return its lineage."""
    unknown = dict.fromkeys(("digest", "run", "plan", "parent", "code_version", "imported_files"))
    lineage = {"checkpoint": None, "stage": "in memory", "step": None, "segments": [], **unknown}
    with new_folder(folder) as aside:
        return write_model(aside, Held(model.state_dict()), config, tokenizer=tokenizer, lineage=lineage)


def write_model(
    folder: Path,
    weights: Weights,
    config: ModelConfig,
    *,
    tokenizer: Tokenizer,
    lineage: Mapping[str, Any],
    profile: Profile = PROFILES["kimi_k25"],
    dtype: str = "float32",
    dtype_of: Callable[[str], torch.dtype] = lambda name: torch.float32,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write all files of the released layout into a folder that exists, and return the lineage that stands there."""
    check_fit(config, tokenizer, profile)
    own = json.dumps(published_config(config, tokenizer.special, dtype=dtype), indent=2) + "\n"
    context = int(config.language.context * config.language.yarn_factor)
    files = processor_files(tokenizer, profile, context=context, has_vision=config.vision is not None)
    for name, data in {"config.json": own.encode(), **files}.items():
        (folder / name).write_bytes(data)
    sums = {name: sha256_of(folder / name) for name in ("config.json", *files)}
    sums |= write_shards(folder, weights, dtype_of=dtype_of, shard_bytes=shard_bytes, progress=progress)
    told = {
        **lineage,
        "weights": weights_digest(weights),
        "dtype": dtype,
        "tokenizer": tokenizer.digest,
        "left_out": left_out(list(weights.shapes)),
        "files": dict(sorted(sums.items())),
    }
    _write_lineage(folder, config, told)
    return told


def _write_adapters(folder: Path, state: Mapping[str, Tensor], *, adapters: LoraConfig, told: Told) -> dict[str, Any]:
    lineage = lineage_of(told.record, told.key) | {"tokenizer": told.tokenizer.digest}
    parent = lineage["parent"]
    base = parent if isinstance(parent, str) else ", ".join(parent or ())
    lora.write_adapters(folder, state, adapters, base=base)
    sums = {name: sha256_of(folder / name) for name in (lora.CONFIG, lora.WEIGHTS)}
    digest = weights_digest(lora.adapters_of(state))
    said = {**lineage, "weights": digest, "dtype": "float32", "left_out": ["the model's own weights"], "files": sums}
    _write_lineage(folder, told.config, said, is_adapter=True)
    return said


def _write_lineage(folder: Path, config: ModelConfig, lineage: Mapping[str, Any], *, is_adapter: bool = False) -> None:
    (folder / LINEAGE).write_text(json.dumps(lineage, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(config, lineage, is_adapter=is_adapter))


def main() -> int:
    """Export one checkpoint as the command line says; 0, or 2 with one line of error."""
    parser = argparse.ArgumentParser(prog="python -m trainers.interchange.export", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--tokenizer")
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="say which files it would write")
    options = parser.parse_args()
    if not (options.to or options.dry_run):
        parser.error("name the folder to write with --to, or say --dry-run")
    try:
        said = _say_plan(options) if options.dry_run else _export(options)
    except (K25Error, ValueError) as error:
        sys.stderr.write(f"k25 export: {' '.join(str(error).split())}\n")
        return 2
    except OSError as error:
        sys.stderr.write(
            f"k25 export: {error.filename or options.to}: {error.strerror or error}; check path and space\n"
        )
        return 2
    sys.stdout.write(f"{said}\n")
    return 0


def _export(options: argparse.Namespace) -> str:
    with progress_bar("export") as progress:
        lineage = export_checkpoint(
            open_store(options.store),
            options.checkpoint,
            options.to,
            dtype=options.dtype,
            tokenizer=options.tokenizer,
            merge=options.merge,
            progress=progress,
        )
    return f"{options.to}: {len(lineage['files']) + 2} files, weights {lineage['weights'][:12]}"


def _say_plan(options: argparse.Namespace) -> str:
    asked = {"dtype": options.dtype, "tokenizer": options.tokenizer, "merge": options.merge}
    if options.checkpoint in MODELS:
        index = dry_run(open_store(options.store), options.checkpoint, **asked)
    else:
        with progress_bar("export") as progress:
            index = dry_run(open_store(options.store), options.checkpoint, **asked, progress=progress)
    places, size = index["weight_map"], index["metadata"]["total_size"]
    return f"{options.checkpoint}: {len(places)} weights in {len(set(places.values()))} files, {size} bytes"


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
