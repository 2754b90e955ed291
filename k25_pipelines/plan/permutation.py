"""A keyed shuffle of [0, n): positions in, items out; nothing is stored and any position may be asked for."""

from functools import lru_cache

import numpy as np

from k25_pipelines.keys import random_bits

FISHER_YATES_BELOW = 65_536
ROUNDS = 8


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
        return _small_shuffle(n, key)[position]
    num_bits = (n - 1).bit_length()
    item = _feistel(np.atleast_1d(position).astype(np.uint64), num_bits, key)
    while (outside := item >= n).any():
        item[outside] = _feistel(item[outside], num_bits, key)
    return item.astype(np.int64).reshape(position.shape)


@lru_cache(maxsize=128)
def _small_shuffle(n: int, key: int) -> np.ndarray:
    """Return the whole shuffle of [0, n): one bounded draw a place, from the last place down."""
    last = np.arange(n - 1, 0, -1)
    items = list(range(n))
    for i, j in zip(last.tolist(), _draws_below(last + 1, key).tolist(), strict=True):
        items[i], items[j] = items[j], items[i]
    shuffle = np.array(items, dtype=np.int64)
    shuffle.setflags(write=False)
    return shuffle


def _draws_below(bound: np.ndarray, key: int) -> np.ndarray:
    """Return an unbiased integer in [0, bound) for each bound, drawn again where 2^64 would wrap unevenly."""
    bound = bound.astype(np.uint64)
    with np.errstate(over="ignore"):
        uneven = (np.uint64(0) - bound) % bound  # 2^64 mod bound
    bits = random_bits(key, bound, 0)
    attempt = 0
    while (biased := bits < uneven).any():
        attempt += 1
        bits[biased] = random_bits(key, bound[biased], attempt)
    return bits % bound


def _feistel(word: np.ndarray, num_bits: int, key: int) -> np.ndarray:
    """Return a bijection of the words below 2^num_bits: in turn, each half absorbs a hash of the other."""
    left_bits = num_bits // 2
    right_bits = num_bits - left_bits
    left, right = word >> np.uint64(right_bits), word & np.uint64((1 << right_bits) - 1)
    for number, round_key in enumerate(random_bits(key, np.arange(ROUNDS))):
        if number % 2 == 0:
            left = left ^ (random_bits(round_key, right) >> np.uint64(64 - left_bits))
        else:
            right = right ^ (random_bits(round_key, left) >> np.uint64(64 - right_bits))
    return (left << np.uint64(right_bits)) | right
