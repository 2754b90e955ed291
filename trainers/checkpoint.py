"""Engine to store and back. A checkpoint is its files and, written last, its record; without a record it is not there.

k25/checkpoints/<run>/<step>/weights.npz      every weight by name: what other stages start from; several files above
                                              1 GiB, made and uploaded one at a time
k25/checkpoints/<run>/<step>/metrics.jsonl    a line for each step so far; beside it timings.jsonl, spikes.jsonl
k25/checkpoints/<run>/<step>/engine/...       DeepSpeed's files: optimizer partitions, random state
k25/checkpoints/<run>/<step>/record.json      what made it, and the SHA-256 of each file
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from k25_pipelines.errors import CheckpointError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store
from trainers.config import checkpoint_key
from trainers.engine import Engine, rank_of_file
from trainers.interchange.npz import npz_parts
from trainers.interchange.weights import Held, open_weights, tensor_of
from trainers.resuming import RECORD, read_record

WEIGHTS = "weights.npz"
METRICS = "metrics.jsonl"
LINES = {"history": METRICS, "timings": "timings.jsonl", "spikes": "spikes.jsonl"}
"""What is kept of the steps so far. Wall times stand apart, so that all else can be compared bit for bit."""
OWN_FILES = ("*.npz", "*.jsonl", "engine/*")
"""What is uploaded of a saved folder; DeepSpeed also leaves scripts there."""


def save_checkpoint(
    engine: Engine, store: Store, record: Mapping, *, lines: Mapping[str, list[dict]], work: Path
) -> str:
    """Publish the engine's state as the checkpoint of `record`'s run and step, and return its key.

    Collective. Killed at any moment it leaves the checkpoint published before untouched, and what it had
    uploaded is removed by the next attempt.

    Args:
        engine: after the step.
        store: the lake.
        record: all that `checkpoint_record` knows; files and digest are added here.
        lines: of the names in LINES, of every step so far.
        work: local folder through which the files go.

    Raises:
        CheckpointError: this step of the run is published already.
    """
    key = checkpoint_key(record["run"], record["step"])
    folder = work / "saving"
    if engine.rank == 0:
        _clear_half_upload(store, key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    engine.barrier()
    engine.save(folder)
    weights = engine.weights()
    if engine.rank == 0:
        for name, data, _, _ in npz_parts(Held(weights)):
            (folder / name).write_bytes(data)
        for name, file in LINES.items():
            (folder / file).write_text("".join(f"{json.dumps(line)}\n" for line in lines[name]))
    sums = _upload(store, key, folder, rank=engine.rank)
    files = {name: value for part in engine.gather(sums) for name, value in part.items()}
    if engine.rank == 0:
        named = {**record, "files": dict(sorted(files.items())), "digest": checkpoint_digest(weights, record)}
        store.put_new(f"{key}/{RECORD}", json.dumps(named, indent=1).encode())
        shutil.rmtree(folder)
    engine.barrier()
    return key


def restore(engine: Engine, store: Store, key: str, *, record: Mapping, work: Path) -> dict:
    """Load a published checkpoint into the engine, and return its record with the lines of its steps.

    Collective. The record is one that `resuming.check_source` has let pass.

    Raises:
        CheckpointError: a file is not what the record says.
    """
    folder = work / f"restoring-{engine.rank}"
    _download(store, key, record["files"], folder)
    engine.load(folder)
    lines = {name: _lines(folder / file) for name, file in LINES.items()}
    shutil.rmtree(folder)
    return {**record, **lines}


def load_modules(model: nn.Module, store: Store, initial: Mapping[str, str]) -> None:
    """Load the weights of whole modules from checkpoints of other runs.

    Args:
        model: with the modules as attributes.
        store: the lake.
        initial: module -> checkpoint key.

    Raises:
        CheckpointError: no such checkpoint, a broken file, or weights of other names or shapes.
    """
    for key in sorted(set(initial.values())):
        weights = load_weights(store, key)
        for module in sorted(name for name, source in initial.items() if source == key):
            own = {name.removeprefix(f"{module}."): w for name, w in weights.items() if name.startswith(f"{module}.")}
            try:
                getattr(model, module).load_state_dict(own)
            except RuntimeError as error:
                said = " ".join(str(error).split())
                raise CheckpointError(f"{key} does not fit module {module}: {said}") from error


def load_weights(store: Store, key: str) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights by their names; a large imported one has several files. Raises CheckpointError."""
    files = read_record(store, key)["files"]
    if WEIGHTS not in files:
        held = open_weights(store, key, files)
        return {name: tensor_of(held, name) for name in held.shapes}
    data = _verified(store, key, WEIGHTS, files[WEIGHTS])
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def checkpoint_digest(weights: Mapping[str, torch.Tensor], record: Mapping) -> str:
    """Return the name of what was learnt: of the weights, the config, the plan's segments and the step."""
    sums = hashlib.sha256()
    for name, value in sorted(weights.items()):
        sums.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sums.update(value.contiguous().numpy().data)
    return digest(sums.hexdigest(), record["config"], record["plan"], record["segments"], record["step"])


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _clear_half_upload(store: Store, key: str) -> None:
    found = [info.key for info in store.list(f"{key}/")]
    if f"{key}/{RECORD}" in found:
        raise CheckpointError(f"{key} is published already; resume from it or give the run another name")
    for each in found:
        store.delete(each)


def _upload(store: Store, key: str, folder: Path, *, rank: int) -> dict[str, str]:
    """Upload this rank's files and return their SHA-256 by name."""
    sums = {}
    for path in sorted(path for pattern in OWN_FILES for path in folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        if rank_of_file(name) == rank:
            data = path.read_bytes()
            store.put(f"{key}/{name}", data)
            sums[name] = hashlib.sha256(data).hexdigest()
    return sums


def _download(store: Store, key: str, files: Mapping[str, str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, expected in files.items():
        if not name.endswith(".npz"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_verified(store, key, name, expected))


def _verified(store: Store, key: str, name: str, expected: str) -> bytes:
    way_out = "delete that checkpoint's record to go on from the one before"
    try:
        data = store.get(f"{key}/{name}")
    except ObjectNotFoundError:
        raise CheckpointError(f"{key}/{name} is gone, and its record names it; {way_out}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise CheckpointError(f"{key}/{name} has SHA-256 {found[:12]}.., its record says {expected[:12]}..; {way_out}")
    return data
