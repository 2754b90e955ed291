"""A model's weights without a model's worth of memory: any run of elements of any weight, by our names.

They lie in memory, in a checkpoint's npz files, or in a folder of the released layout; who reads them (a digest,
shards, npz files again) asks for a run at a time and cannot tell which.
"""

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from k25_pipelines.errors import CheckpointError, ObjectNotFoundError
from k25_pipelines.storage.store import Store
from trainers.interchange.names import Place, is_published

RUN_ELEMENTS = 2**24
"""Elements that are read at once."""
HASHED_BYTES = 2**26
"""Bytes of an object that are read at once to compare it with its SHA-256."""
HEAD_BYTES = 2**12
"""Enough for what stands before an array in an npz file: a zip header and an npy header."""
_ZIP_HEADER = struct.Struct("<26xHH")


class Weights(Protocol):
    """Weights by our names."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each weight."""
        ...

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Return `count` elements of a weight laid flat, from element `start`; all of the rest if not given."""
        ...


def runs(start: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield (start, count) of pieces that are small enough to be held."""
    for first in range(start, start + count, RUN_ELEMENTS):
        yield first, min(RUN_ELEMENTS, start + count - first)


def tensor_of(weights: Weights, name: str) -> Tensor:
    """Return a whole weight in its shape."""
    return weights.read(name).view(weights.shapes[name])


def refuse_no_numbers(run: Tensor, name: str, hint: str) -> None:
    """Raise CheckpointError naming a weight whose run of elements has a NaN or an infinity."""
    if not (finite := torch.isfinite(run)).all():
        bad = run.flatten()[~finite.flatten()][0].item()
        raise CheckpointError(f"{name} has a value that is no finite number: {bad}; {hint}")


def weights_digest(weights: Weights | Mapping[str, Tensor]) -> str:
    """Return 64 hexadecimal characters that name the weights which the released layout has a place for."""
    weights = Held(weights) if isinstance(weights, Mapping) else weights
    sums = hashlib.sha256()
    for name, shape in sorted(weights.shapes.items()):
        if is_published(name):
            for start, count in runs(0, math.prod(shape)):
                run = weights.read(name, start, count)
                if start == 0:
                    sums.update(f"{name} {run.dtype} {shape}".encode())
                sums.update(run.contiguous().numpy().data)
    return sums.hexdigest()


class Held:
    """Weights that are in memory."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Take a state dict; its tensors are not copied."""
        self._state = state
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Return a view of a run of elements."""
        flat = self._state[name].detach().contiguous().view(-1)
        return flat[start:] if count is None else flat[start : start + count]


class FolderWeights:
    """Weights of the released layout, in float32."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], places: Iterator[Place], read: Callable[[str], Tensor]
    ) -> None:
        """Take shapes of ours, where the released ones lie in them, and a reader of released tensors by name."""
        self.shapes = shapes
        self._read = read
        self._pieces: dict[str, list[Place]] = {}
        for place in places:
            self._pieces.setdefault(place.own, []).append(place)

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Return a run of elements, read from the released tensors that hold it and no other.

        Raises:
            CheckpointError: one of them is no finite number.
        """
        end = math.prod(self.shapes[name]) if count is None else start + count
        found = []
        for piece in self._pieces[name]:
            first, last = max(start, piece.start), min(end, piece.start + piece.size)
            if first < last:
                run = self._read(piece.name).reshape(-1)[first - piece.start : last - piece.start].to(torch.float32)
                refuse_no_numbers(run, piece.name, "give a folder of whole weights")
                found.append(run)
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extent:
    """Neighbouring elements of a weight in a file."""

    key: str
    etag: str
    offset: int
    """Of the first one [bytes]."""
    first: int
    """Its number in the weight laid flat."""
    count: int
    dtype: np.dtype


class NpzWeights:
    """Weights in npz objects of a store, of which only what is asked for is read.

    A weight may go on in the next object under the same name: its rows are those of all, one after the other.
    """

    def __init__(self, store: Store, keys: list[str]) -> None:
        """Read the tables of contents. Raises CheckpointError: an object is no npz of plain, unpacked arrays."""
        self._store = store
        self._extents: dict[str, list[_Extent]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for key in keys:
            for name, shape, extent in _contents(store, key):
                rows = shapes[name][0] if name in shapes else 0
                first = rows * math.prod(shape[1:])
                known = self._extents.setdefault(name, [])
                known.append(replace(extent, first=first))
                shapes[name] = (rows + shape[0], *shape[1:]) if shape else ()
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Return a run of elements: a ranged read for each object that holds some of it."""
        end = math.prod(self.shapes[name]) if count is None else start + count
        found = []
        for extent in self._extents[name]:
            first, last = max(start, extent.first), min(end, extent.first + extent.count)
            if first < last:
                found.append(self._run(extent, first - extent.first, last - first))
        return torch.cat(found) if len(found) != 1 else found[0]

    def _run(self, extent: _Extent, start: int, count: int) -> Tensor:
        size = extent.dtype.itemsize
        data = self._store.get_range(extent.key, extent.offset + start * size, count * size, etag=extent.etag)
        return torch.from_numpy(np.frombuffer(bytearray(data), extent.dtype))


def weight_files(files: Mapping[str, str]) -> list[str]:
    """Return which of a checkpoint's files hold its weights, in the order of the parts."""
    return sorted(name for name in files if name.startswith("weights") and name.endswith(".npz"))


def open_weights(store: Store, key: str, files: Mapping[str, str]) -> NpzWeights:
    """Return a checkpoint's weights, after each of its files was compared with the SHA-256 of its record.

    Args:
        store: the lake.
        key: of the checkpoint.
        files: name -> SHA-256, as its record has them.

    Raises:
        CheckpointError: a file is gone, broken, or there is none.
    """
    names = weight_files(files)
    if not names:
        raise CheckpointError(f"{key}: its record names no file of weights; import or train it anew")
    for name in names:
        _compare(store, f"{key}/{name}", files[name])
    return NpzWeights(store, [f"{key}/{name}" for name in names])


def _compare(store: Store, key: str, expected: str) -> None:
    sums = hashlib.sha256()
    try:
        info = store.head(key)
    except ObjectNotFoundError:
        raise CheckpointError(f"{key} is gone, and its record names it; choose another checkpoint") from None
    for start in range(0, info.num_bytes, HASHED_BYTES):
        length = min(HASHED_BYTES, info.num_bytes - start)
        sums.update(store.get_range(key, start, length, etag=info.etag))
    if (found := sums.hexdigest()) != expected:
        way_out = "choose another checkpoint"
        raise CheckpointError(f"{key} has SHA-256 {found[:12]}.., its record says {expected[:12]}..; {way_out}")


def _contents(store: Store, key: str) -> Iterator[tuple[str, tuple[int, ...], _Extent]]:
    """Yield name, shape and place of each array of an npz object."""
    info = store.head(key)
    file = cast(io.RawIOBase, _Ranged(store, key, info.num_bytes))
    try:
        members = zipfile.ZipFile(io.BufferedReader(file)).infolist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{key} is no npz file: {error}; choose another checkpoint") from error
    for member in members:
        name = member.filename.removesuffix(".npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{key}: {name} is compressed, which no checkpoint of ours is; train or import anew")
        length = min(HEAD_BYTES, info.num_bytes - member.header_offset)
        head = store.get_range(key, member.header_offset, length, etag=info.etag)
        data = io.BytesIO(head)
        data.seek(_ZIP_HEADER.size + sum(_ZIP_HEADER.unpack_from(head)))
        shape, dtype = _array_header(data)
        at = {"offset": member.header_offset + data.tell(), "first": 0, "count": math.prod(shape)}
        yield name, shape, _Extent(key=key, etag=info.etag, dtype=dtype, **at)


def _array_header(data: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(data)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(data)
    if is_fortran and len(shape) > 1:
        raise CheckpointError("an array of a checkpoint is in Fortran's order; train or import it anew")
    return shape, dtype


class _Ranged(io.RawIOBase):
    """An object as a file that can be sought in; `zipfile` reads its end."""

    def __init__(self, store: Store, key: str, num_bytes: int) -> None:
        super().__init__()
        self._store, self._key, self._size, self._at = store, key, num_bytes, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            buffer[:length] = self._store.get_range(self._key, self._at, length)
        self._at += length
        return length
