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

from k25_pipelines.errors import CheckpointError, ObjectExistsError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store
from trainers.config import checkpoint_key
from trainers.engine import ENGINE_TAG, Engine, rank_of_file
from trainers.interchange.npz import npz_parts
from trainers.interchange.weights import Held, open_weights, tensor_of
from trainers.optim.files import MODEL, PARTITION
from trainers.resuming import RECORD, WAY_OUT, read_record

WEIGHTS = "weights.npz"
METRICS = "metrics.jsonl"
LINES = {"history": METRICS, "timings": "timings.jsonl", "spikes": "spikes.jsonl"}
"""What is kept of the steps so far. Wall times stand apart, so that all else can be compared bit for bit."""
OWN_FILES = ("*.npz", "*.jsonl", "engine/*")
"""What is uploaded of a saved folder; DeepSpeed also leaves scripts there."""
TWICE = "another process seems to train this run, perhaps on another machine: let one alone do it, then start it again"


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
        CheckpointError: this step of the run is published already; or another process writes it, too: a file is
            missing, or is no longer what this one uploaded.
    """
    key = checkpoint_key(record["run"], record["step"])
    folder, ranks = work / "saving", range(engine.num_ranks)
    if engine.rank == 0:
        _clear_half_upload(store, key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    engine.barrier()
    engine.save(folder)
    weights = engine.weights()
    expected = {*LINES.values(), *(f"{ENGINE_TAG}/{name}" for name in (MODEL, *map(PARTITION.format, ranks)))}
    if engine.rank == 0:
        for name, data, _, _ in npz_parts(Held(weights)):
            (folder / name).write_bytes(data)
            expected.add(name)
        for name, file in LINES.items():
            words = (json.dumps(line, allow_nan=False) for line in lines[name])
            (folder / file).write_text("".join(f"{line}\n" for line in words))
    own = _upload(store, key, folder, rank=engine.rank)
    uploaded = {name: told for part in engine.gather(own) for name, told in part.items()}
    if engine.rank == 0:
        _check_upload(store, key, uploaded, expected=expected)
        files = {name: sha256 for name, (sha256, _) in sorted(uploaded.items())}
        _publish(store, key, {**record, "files": files, "digest": checkpoint_digest(weights, record)})
        shutil.rmtree(folder)
    engine.barrier()
    return key


def restore(engine: Engine, store: Store, key: str, *, record: Mapping, work: Path) -> dict:
    """Load a published checkpoint into the engine, and return its record with the lines of its steps.

    Collective. The record is one that `resuming.check_source` has let pass. Every file is compared with its SHA-256:
    what the engine takes up by each rank, the weights for other stages, which are read in pieces, by the first.

    Raises:
        CheckpointError: a file is not what the record says.
    """
    folder = work / f"restoring-{engine.rank}"
    if engine.rank == 0:
        _check_weights(store, key, record["files"])
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


def _upload(store: Store, key: str, folder: Path, *, rank: int) -> dict[str, tuple[str, str]]:
    """Upload this rank's files and return SHA-256 and the store's etag of each by its name."""
    told = {}
    for path in sorted(path for pattern in OWN_FILES for path in folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        if rank_of_file(name) == rank:
            data = path.read_bytes()
            store.put(f"{key}/{name}", data)
            told[name] = (hashlib.sha256(data).hexdigest(), _etag(store, f"{key}/{name}"))
    return told


def _etag(store: Store, key: str) -> str:
    try:
        return store.head(key).etag
    except ObjectNotFoundError:
        raise CheckpointError(f"{key} is gone again; {TWICE}") from None


def _check_upload(store: Store, key: str, uploaded: Mapping[str, tuple[str, str]], *, expected: set[str]) -> None:
    """Raise CheckpointError where the files that a record would name are not all there, as they were uploaded."""
    if missing := sorted(expected - set(uploaded)):
        raise CheckpointError(f"{key} is not published: {missing[0]} was not saved; {TWICE}")
    etags = {info.key.removeprefix(f"{key}/"): info.etag for info in store.list(f"{key}/")}
    for name, (_, etag) in sorted(uploaded.items()):
        if etags.get(name) != etag:
            what = "is gone again" if name not in etags else "was overwritten"
            raise CheckpointError(f"{key} is not published: {name} {what} since it was uploaded; {TWICE}")


def _publish(store: Store, key: str, record: Mapping) -> None:
    """Write the record, which is only written where there is none."""
    try:
        store.put_new(f"{key}/{RECORD}", json.dumps(record, indent=1, allow_nan=False).encode())
    except ObjectExistsError:
        raise CheckpointError(f"{key} was published by another process while this one saved it; {TWICE}") from None


def _download(store: Store, key: str, files: Mapping[str, str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, expected in files.items():
        if not name.endswith(".npz"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_verified(store, key, name, expected))


def _check_weights(store: Store, key: str, files: Mapping[str, str]) -> None:
    try:
        open_weights(store, key, files)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {WAY_OUT}") from error


def _verified(store: Store, key: str, name: str, expected: str) -> bytes:
    try:
        data = store.get(f"{key}/{name}")
    except ObjectNotFoundError:
        raise CheckpointError(f"{key}/{name} is gone, and its record names it; {WAY_OUT}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise CheckpointError(f"{key}/{name} has SHA-256 {found[:12]}.., its record says {expected[:12]}..; {WAY_OUT}")
    return data
