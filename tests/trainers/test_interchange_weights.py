"""Weights a run at a time: the same bytes as numpy and safetensors write, and never much of them in memory."""

import io
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from k25_pipelines.errors import CheckpointError
from k25_pipelines.storage.local import LocalStore
from k25_pipelines.storage.memory import MemoryStore
from tests.trainers.interchange import checkpoint, grown, tiny
from trainers.checkpoint import read_record
from trainers.interchange import weights
from trainers.interchange.export import dry_run, export_checkpoint
from trainers.interchange.importing import import_checkpoint, publish_weights
from trainers.interchange.names import published
from trainers.interchange.npz import npz_parts
from trainers.interchange.shards import INDEX, index_of, plan_shards, write_shards
from trainers.interchange.weights import Held, NpzWeights, open_weights, tensor_of, weights_digest
from trainers.model.kimi_k25 import KimiK25
from trainers.models import model_config

CONFIG = tiny(contrastive=True)


class Watched:
    """A store that remembers how many bytes were asked of it or given to it at once."""

    def __init__(self, store) -> None:
        self.store, self.most = store, Counter()

    def __getattr__(self, name: str):
        return getattr(self.store, name)

    def get(self, key: str) -> bytes:
        data = self.store.get(key)
        self.most["get"] = max(self.most["get"], len(data) if key.endswith(".npz") else 0)
        return data

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        self.most["get_range"] = max(self.most["get_range"], num_bytes)
        return self.store.get_range(key, offset, num_bytes, etag=etag)

    def put(self, key: str, data: bytes) -> None:
        self.most["put"] = max(self.most["put"], len(data))
        self.store.put(key, data)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return grown(CONFIG).state_dict()


@pytest.fixture
def short_runs(monkeypatch) -> None:
    """Read 1,000 elements, or 4,096 bytes to hash, at once."""
    monkeypatch.setattr(weights, "RUN_ELEMENTS", 1000)
    monkeypatch.setattr(weights, "HASHED_BYTES", 4096)


def test_a_small_models_file_has_the_bytes_that_numpy_writes(state, short_runs):
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in sorted(state.items())})
    assert [(name, data) for name, data, _, _ in npz_parts(Held(state))] == [("weights.npz", buffer.getvalue())]


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 23), st.integers(1, 24))
def test_parts_of_any_size_hold_the_same_weights(part_bytes, start, count):
    state = {"a": torch.randn(7, 5), "b": torch.tensor(3.0), "c": torch.randn(3, 4, 2), "d": torch.randn(11)}
    store, done = MemoryStore(url="memory://parts"), []
    for name, data, so_far, total in npz_parts(Held(state), part_bytes):
        store.put(name, data)
        done.append((so_far, total))
        with np.load(io.BytesIO(data)) as arrays:
            rows = [arrays[each] for each in arrays.files]
        is_one_row = len(rows) == 1 and rows[0].shape[:1] in ((), (1,))
        assert is_one_row or sum(each.nbytes for each in rows) <= part_bytes
    assert done[-1] == (4 * 71, 4 * 71)
    back = NpzWeights(store, sorted(info.key for info in store.list()))
    assert back.shapes == {name: tuple(value.shape) for name, value in state.items()}
    assert all(torch.equal(tensor_of(back, name), value) for name, value in state.items())
    count = min(count, 24 - start)
    assert torch.equal(back.read("c", start, count), state["c"].flatten()[start : start + count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_shard_has_the_bytes_that_safetensors_writes(state, short_runs, tmp_path, dtype):
    def type_of(name: str) -> torch.dtype:
        return torch.float32 if name.endswith(("bias", "norm.weight")) else dtype

    sums = write_shards(tmp_path, Held(state), dtype_of=type_of, shard_bytes=2**17, progress=lambda *said: None)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert [*files, INDEX] == list(sums)
    assert len(files) > 3
    for file in files:
        own = {n: v.to(type_of(n)).contiguous() for n, v in published(state) if index["weight_map"][n] == file}
        save_file(own, tmp_path / "theirs", metadata={"format": "pt"})
        assert (tmp_path / file).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_is_read_and_written_at_once_does_not_grow_with_the_model(state, short_runs, tmp_path):
    store = Watched(LocalStore(str(tmp_path / "lake")))
    key = checkpoint(store, state, CONFIG)
    assert store.most.pop("put") > 500_000  # the checkpoint, in one piece
    export_checkpoint(store, key, tmp_path / "out")
    assert store.most == {"get_range": 8192, "get": 0}  # what zipfile's buffer takes
    publish_weights(store, "k25/checkpoints/parts/00000000", state, {}, part_bytes=2**14)
    assert store.most["put"] < 2**14 + 4096


def test_a_checkpoint_in_parts_is_exported_like_one_in_a_piece(state, tmp_path):
    store, record = LocalStore(str(tmp_path / "lake")), None
    whole = checkpoint(store, state, CONFIG)
    record = {**read_record(store, whole), "run": "parts-1"}
    parts = whole.replace("joint-1", "parts-1")
    publish_weights(store, parts, state, record, part_bytes=2**16)
    files = read_record(store, parts)["files"]
    assert len(files) > 8
    assert weights_digest(open_weights(store, parts, files)) == weights_digest(state)
    one, other = (export_checkpoint(store, key, tmp_path / key.split("/")[2]) for key in (whole, parts))
    assert (one["weights"], one["files"]) == (other["weights"], other["files"])


def test_an_import_of_many_parts_is_the_import_of_one(state, tmp_path):
    store = LocalStore(str(tmp_path / "lake"))
    export_checkpoint(store, checkpoint(store, state, CONFIG), tmp_path / "out", shard_bytes=2**16)
    keys = [import_checkpoint(LocalStore(str(tmp_path / "one")), tmp_path / "out")]
    keys += [import_checkpoint(store, tmp_path / "out", part_bytes=2**16)]
    assert keys[0] == keys[1]
    record = read_record(store, keys[1])
    assert len(record["files"]) > 8
    held = open_weights(store, keys[1], record["files"])
    assert all(torch.equal(tensor_of(held, name), state[name]) for name in held.shapes)
    assert record["weights"] == weights_digest(held)


def test_broken_weights_are_refused_by_name(state, tmp_path):
    store = LocalStore(str(tmp_path / "lake"))
    key = checkpoint(store, state, CONFIG)
    files = read_record(store, key)["files"]
    path = tmp_path / "lake" / key / "weights.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"00000070/weights\.npz has SHA-256 [0-9a-f]{12}\.\., its record says"):
        open_weights(store, key, files)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.npz is gone, and its record names it"):
        open_weights(store, key, files)
    with pytest.raises(CheckpointError, match="its record names no file of weights"):
        open_weights(store, key, {})
    np.savez_compressed(path, zeros=np.zeros(9, np.float32))
    with pytest.raises(CheckpointError, match="zeros is compressed"):
        NpzWeights(store, [f"{key}/weights.npz"])
    path.write_bytes(b"words")
    with pytest.raises(CheckpointError, match="is no npz file"):
        NpzWeights(store, [f"{key}/weights.npz"])


def test_a_dry_run_says_what_an_export_then_writes(state, tmp_path):
    store = LocalStore(str(tmp_path / "lake"))
    key = checkpoint(store, state, CONFIG)
    export_checkpoint(store, key, tmp_path / "out", dtype="bfloat16", shard_bytes=2**17)
    said = dry_run(store, key, dtype="bfloat16", shard_bytes=2**17)
    assert json.loads((tmp_path / "out" / INDEX).read_text()) == said


def test_the_published_sizes_are_planned_without_weights():
    """A trillion weights in bfloat16: every expert's matrices by name, in files of at most 4 GiB."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in KimiK25(model_config("k2_5")).state_dict().items()}
    shards = plan_shards(shapes, dtype_of=lambda name: torch.bfloat16)
    index = index_of(shards, lambda name: torch.bfloat16)
    assert index["metadata"]["total_size"] == 2 * sum(math.prod(shape) for shape in shapes.values())
    assert index["metadata"]["total_size"] == pytest.approx(2 * 1.03e12, rel=5e-3)
    sizes = [2 * sum(place.size for place in shard.places) for shard in shards]
    assert max(sizes) <= 4 * 2**30
    names = list(index["weight_map"])
    assert len([name for name in names if ".mlp.experts." in name]) == 60 * 384 * 3
    assert "language_model.model.layers.60.mlp.experts.383.down_proj.weight" in names
    assert {"vision_tower.patch_embed.proj.weight", "mm_projector.proj.2.bias", "language_model.lm_head.weight"} <= {
        *names
    }
