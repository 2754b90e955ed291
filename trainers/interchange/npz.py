"""Weights to npz files, as `numpy.savez` writes them, a part at a time; `weights.NpzWeights` reads them back."""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.interchange.weights import Weights, runs

PART_BYTES = 2**30
"""A part holds no more, unless one row of a weight does."""
ITEM_BYTES = 4
"""Of float32, which every weight of a checkpoint is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Some rows of a weight, all that go into one part; of a weight without axes, itself."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First element, of the weight laid flat."""


def npz_parts(weights: Weights, part_bytes: int = PART_BYTES) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield name and bytes of each file, then bytes of weights done and of all.

    The lone file of a small model is `weights.npz`; those of a large one are numbered, and a weight that does not fit
    goes on in the next. Weights are in the order of their names.

    Args:
        weights: float32, by our names.
        part_bytes: most bytes of weights in a file.
    """
    parts = plan_parts(weights, part_bytes)
    total, done = sum(math.prod(shape) for shape in weights.shapes.values()) * ITEM_BYTES, 0
    for number, part in enumerate(parts, 1):
        name = "weights.npz" if len(parts) == 1 else f"weights-{number:05d}-of-{len(parts):05d}.npz"
        done += sum(math.prod(rows.shape) for rows in part) * ITEM_BYTES
        yield name, _file(weights, part), done, total


def plan_parts(weights: Weights, part_bytes: int) -> list[list[Rows]]:
    """Return which rows go into which file, from shapes alone."""
    parts: list[list[Rows]] = [[]]
    room = part_bytes
    for name, shape in sorted(weights.shapes.items()):
        num_rows, row = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        first = 0
        while first < num_rows:
            fits = min(num_rows - first, max(0, room) // (row * ITEM_BYTES))
            if not fits and parts[-1]:
                parts.append([])
                room = part_bytes
                continue
            taken = max(1, fits)
            here = (taken, *shape[1:]) if shape else ()
            parts[-1].append(Rows(name=name, shape=here, start=first * row))
            room -= taken * row * ITEM_BYTES
            first += taken
    return parts


def _file(weights: Weights, part: Sequence[Rows]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for rows in part:
            with archive.open(f"{rows.name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start, count in runs(rows.start, math.prod(rows.shape)):
                    run = weights.read(rows.name, start, count)
                    file.write(run.contiguous().numpy().data)
    return buffer.getvalue()
