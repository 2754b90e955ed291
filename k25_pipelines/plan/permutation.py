"""A keyed shuffle of [0, n): positions in, items out; nothing is stored and any position may be asked for."""

from functools import lru_cache

import numpy as np
from numba import njit

from k25_pipelines.keys import random_bits

FISHER_YATES_BELOW = 65_536
ROUNDS = 8
_BATCH = 1024

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S64 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(64)


def permute(position: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return which item stands at each position of the shuffle of [0, n) named by `key`.

    A bijection: every item stands at one position. The answer depends on the arguments
    alone, so a run resumes from a number and any rank may ask for any position.

    Args:
        position: integers, any shape, values in [0, n) [items].
        n: length of what is shuffled [items].
        key: 64 bits from `random_key`; another key, another shuffle.

    Returns:
        int64 of position's shape, values in [0, n).

    Raises:
        ValueError: a position lies outside [0, n), or is not a whole number.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains": a Feistel network,
        walked until it lands inside the domain. Unequal halves on (n - 1).bit_length() bits
        keep the walk under two steps on average. Small domains: Fisher and Yates 1938.
    """
    position = np.asarray(position)
    if position.dtype.kind not in "iu":
        raise ValueError(f"positions are whole numbers, not {position.dtype}")
    if position.size and (position.min() < 0 or position.max() >= n):
        raise ValueError(f"position spans [{position.min()}, {position.max()}], outside [0, {n})")
    if n < FISHER_YATES_BELOW:
        return small_shuffle(n, key)[position].astype(np.int64)
    flat = np.ascontiguousarray(position, dtype=np.int64).reshape(-1)
    return _walk(flat, n, (n - 1).bit_length(), _round_keys(key)).reshape(position.shape)


@njit(cache=True, nogil=True)
def mix(word: np.uint64) -> np.uint64:
    """Return `keys.mix64` of one word."""
    word = (word ^ (word >> _S30)) * _FIRST
    word = (word ^ (word >> _S27)) * _SECOND
    return word ^ (word >> _S31)


@njit(cache=True, nogil=True)
def absorb(state: np.uint64, counter: np.uint64) -> np.uint64:
    """Return the state of `keys.random_bits` after one more counter."""
    return mix(state ^ mix(counter * _GOLDEN + _GOLDEN))


@njit(cache=True, nogil=True)
def bits_of(key: np.uint64, first: int, second: int) -> np.uint64:
    """Return `keys.random_bits(key, first, second)` of one place."""
    return mix(absorb(absorb(key, np.uint64(first)), np.uint64(second)) ^ _GOLDEN)


@lru_cache(maxsize=1024)
def small_shuffle(n: int, key: int) -> np.ndarray:
    """Return the whole shuffle of [0, n), uint16: one bounded draw a place, from the last place down."""
    shuffle = _fisher_yates(n, np.uint64(key))
    shuffle.setflags(write=False)
    return shuffle


@lru_cache(maxsize=1024)
def _round_keys(key: int) -> np.ndarray:
    """Return the keys of the network's rounds, uint64 [ROUNDS]."""
    return random_bits(key, np.arange(ROUNDS))


@njit(cache=True, nogil=True)
def _fisher_yates(n: int, key: np.uint64) -> np.ndarray:
    """Return the shuffle; a draw that 2^64 would wrap unevenly is drawn again."""
    items = np.arange(n).astype(np.uint16)
    for last in range(n - 1, 0, -1):
        bound = np.uint64(last + 1)
        uneven = (np.uint64(0) - bound) % bound  # 2^64 mod bound
        attempt = 0
        bits = bits_of(key, last + 1, attempt)
        while bits < uneven:
            attempt += 1
            bits = bits_of(key, last + 1, attempt)
        other = np.int64(bits % bound)
        items[last], items[other] = items[other], items[last]
    return items


@njit(cache=True, nogil=True)
def _feistel(words: np.ndarray, num_bits: int, round_keys: np.ndarray) -> None:
    """Replace words below 2^num_bits by others, one to one: in turn, each half absorbs a hash of the other.

    Rounds stand outside, words inside: neighbours depend on nothing of each other and overlap.
    """
    left_bits = np.uint64(num_bits // 2)
    right_bits = np.uint64(num_bits) - left_bits
    right_mask = (np.uint64(1) << right_bits) - np.uint64(1)
    for number in range(0, ROUNDS, 2):
        for i in range(words.size):
            bits = mix(absorb(round_keys[number], words[i] & right_mask) ^ _GOLDEN) >> (_S64 - left_bits)
            words[i] ^= bits << right_bits
        for i in range(words.size):
            words[i] ^= mix(absorb(round_keys[number + 1], words[i] >> right_bits) ^ _GOLDEN) >> (_S64 - right_bits)


@njit(cache=True, nogil=True)
def _walk(position: np.ndarray, n: int, num_bits: int, round_keys: np.ndarray) -> np.ndarray:
    """Return the items at the positions: the network again and again, until the word lies below n."""
    item = np.empty(position.size, dtype=np.int64)
    words = np.empty(_BATCH, dtype=np.uint64)
    place = np.empty(_BATCH, dtype=np.int64)
    for first in range(0, position.size, _BATCH):
        outside = min(_BATCH, position.size - first)
        for i in range(outside):
            words[i], place[i] = np.uint64(position[first + i]), first + i
        while outside:
            _feistel(words[:outside], num_bits, round_keys)
            walking, outside = outside, 0
            for i in range(walking):
                if words[i] < np.uint64(n):
                    item[place[i]] = np.int64(words[i])
                else:
                    words[outside], place[outside] = words[i], place[i]
                    outside += 1
    return item
