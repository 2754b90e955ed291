"""Plain data with arrays in it <-> one compact byte string: JSON, then the arrays' little-endian columns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ARRAY = "array"
_WHOLE = ("<i1", "<i2", "<i4", "<i8")


def compact(value: Any) -> bytes:
    """Return the one byte string of plain data (None, bool, int, float, str, lists, mappings) and numpy arrays.

    Whole numbers are stored in the fewest of 1, 2, 4 or 8 bytes that hold their column, and come back as int64.

    Raises:
        TypeError: the value holds something else.
    """
    columns: list[bytes] = []
    plain = _without_arrays(value, columns)
    words = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join([len(words).to_bytes(8, "little"), words, *columns])


def expanded(data: bytes) -> Any:
    """Return what `compact` was given, tuples as lists. Arrays of it cannot be written to."""
    end = 8 + int.from_bytes(data[:8], "little")
    return _with_arrays(json.loads(data[8:end]), memoryview(data)[end:], [0])


def _without_arrays(value: Any, columns: list[bytes]) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 2:  # a column for each, so that each is as narrow as it can be
        return {_ARRAY: [_without_arrays(value[:, place], columns)[_ARRAY] for place in range(value.shape[1])]}
    if isinstance(value, np.ndarray) and value.dtype.names:
        fields = {name: _without_arrays(value[name], columns)[_ARRAY] for name in value.dtype.names}
        return {_ARRAY: {"names": list(value.dtype.names), "fields": fields}}
    if isinstance(value, np.ndarray):
        narrow = _narrowest(value)
        columns.append(np.ascontiguousarray(value, dtype=narrow).tobytes())
        return {_ARRAY: [narrow, len(value)]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if _ARRAY in value:
            raise TypeError(f"a mapping here has no key {_ARRAY!r}")
        return {name: _without_arrays(value[name], columns) for name in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_without_arrays(item, columns) for item in value]
    return value


def _with_arrays(value: Any, columns: memoryview, at: list[int]) -> Any:
    """Return a value with its arrays; `at` is where the next column begins."""
    if isinstance(value, list):
        return [_with_arrays(item, columns, at) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY not in value:
        return {name: _with_arrays(value[name], columns, at) for name in sorted(value)}
    kind = value[_ARRAY]
    if isinstance(kind, dict):
        found = {name: _column(kind["fields"][name], columns, at) for name in kind["names"]}
        array = np.empty(
            len(next(iter(found.values()))), dtype=[(name, column.dtype) for name, column in found.items()]
        )
        for name, column in found.items():
            array[name] = column
        return array
    if kind and isinstance(kind[0], list):
        return np.stack([_column(entry, columns, at) for entry in kind], axis=1)
    return _column(kind, columns, at)


def _column(entry: list[Any], columns: memoryview, at: list[int]) -> np.ndarray:
    dtype, length = np.dtype(entry[0]), entry[1]
    array = np.frombuffer(columns, dtype, length, at[0])
    at[0] += length * dtype.itemsize
    return array.astype(np.int64) if dtype.kind == "i" else array


def _narrowest(array: np.ndarray) -> str:
    """Return the dtype that a column is stored in."""
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        return array.dtype.newbyteorder("<").str
    if not array.size:
        return _WHOLE[0]
    low, high = int(array.min()), int(array.max())
    return next(kind for kind in _WHOLE if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
