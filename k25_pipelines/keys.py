"""Hashed keys and digests: the only source of randomness and of names. Values in, 64-bit keys or hex digests out."""

import hashlib
import struct
from collections.abc import Mapping, Sequence

import numpy as np

DIGEST_BYTES = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def canonical_bytes(value: object) -> bytes:
    """Return the one byte string that stands for `value`, on any machine and any Python.

    Every value is written as a type letter, its length and its bytes, so that no two
    values share a string: ("ab", "c") differs from ("a", "bc"), 1 from True and from "1".

    Args:
        value: None, bool, int, float, str, bytes, numpy array, or a list, tuple or mapping with
            str keys of these. A mapping is written in the order of its keys.

    Raises:
        ValueError: the value has no stable bytes (a set, an object, NaN).
    """
    if value is None:
        return _framed(b"n", b"")
    if isinstance(value, bool | np.bool_):
        return _framed(b"t", b"1" if value else b"0")
    if isinstance(value, int | np.integer):
        return _framed(b"i", str(int(value)).encode())
    if isinstance(value, float | np.floating):
        if value != value:
            raise ValueError("NaN has no stable bytes: it equals nothing, itself included")
        return _framed(b"f", struct.pack("<d", float(value) + 0.0))
    if isinstance(value, str):
        return _framed(b"s", value.encode("utf-8"))
    if isinstance(value, bytes):
        return _framed(b"b", value)
    if isinstance(value, np.ndarray):
        return _framed(b"a", array_bytes(value))
    if isinstance(value, Mapping):
        return _framed(b"m", b"".join(_mapping_items(value)))
    if isinstance(value, Sequence):
        return _framed(b"l", b"".join(canonical_bytes(item) for item in value))
    raise ValueError(f"a {type(value).__name__} has no stable bytes; pass plain data")


def array_bytes(array: np.ndarray) -> bytes:
    """Return dtype, shape and little-endian row-major bytes of an array, framed."""
    if array.dtype.hasobject:
        raise ValueError("an array of objects has no stable bytes; pass numbers")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    shape = ",".join(str(length) for length in array.shape).encode()
    return _framed(b"d", array.dtype.str[1:].encode()) + _framed(b"h", shape) + little.tobytes()


def digest(*values: object) -> str:
    """Return the name of `values`: 32 hexadecimal characters of their SHA-256."""
    return hashlib.sha256(canonical_bytes(values)).hexdigest()[: 2 * DIGEST_BYTES]


def random_key(*names: object) -> int:
    """Return the 64-bit key named by `names`, such as ("window", seed, dataset, epoch).

    Keys are hashed and never added up, so neighbouring seeds and epochs share nothing.
    """
    hashed = hashlib.sha256(canonical_bytes(("random_key", *names))).digest()
    return int.from_bytes(hashed[:8], "little")


def random_bits(key: int, *counters: np.ndarray | int) -> np.ndarray:
    """Return 64 random bits for each place of the counters, named by `key`.

    A keyed counter stream: the same key and counters give the same bits for ever, in any
    order and on any machine, since only integer arithmetic modulo 2^64 is used.

    Args:
        key: 64 bits from `random_key`.
        counters: integers or int64 arrays that broadcast together.

    Returns:
        uint64 of the counters' broadcast shape.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), one absorption a counter.
    """
    state = np.asarray(key, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for counter in counters:
            word = np.asarray(counter).astype(np.uint64)
            state = mix64(state ^ mix64(word * _GOLDEN + _GOLDEN))
    return mix64(state ^ _GOLDEN)


def random_unit(key: int, *counters: np.ndarray | int) -> np.ndarray:
    """Return float64 in [0, 1) for each place of the counters: the top 53 of `random_bits`."""
    return (random_bits(key, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix64(word: np.ndarray) -> np.ndarray:
    """Return a bijection of uint64 words in which every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + str(len(body)).encode() + b":" + body


def _mapping_items(mapping: Mapping) -> list[bytes]:
    if not all(isinstance(key, str) for key in mapping):
        raise ValueError("a mapping with keys that are not strings has no stable order")
    return [canonical_bytes(key) + canonical_bytes(mapping[key]) for key in sorted(mapping)]
