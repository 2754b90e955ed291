"""Samples that are there more than once: fingerprints of datasets in, groups of samples out, exact and near.

Pictures are near when their perceptual hashes differ in few bits and their colours little, words when their MinHashes
agree in most places. What is near is for a person to look at: plain pictures can be near by chance.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
from datasketch import LeanMinHash, MinHashLSH

from k25_pipelines.catalog.columns import one_array
from k25_pipelines.insight.fingerprints import SCHEMA
from k25_pipelines.insight.words import NUM_HASHES, SEED
from k25_pipelines.sample.perceptual import BITS

Sample = tuple[str, int]
"""Dataset and line."""

NEAR_BITS = 4
"""Bits in which perceptual hashes of pictures that are near differ, at most."""
NEAR_LEVELS = 12.0
"""Mean difference of their colours as 8x8 pixels, at most; plain pictures have hashes like others' [levels]."""
NEAR_SHARE = 0.8
"""Share of shingles that texts that are near have in common, at least, as estimated."""
MOST = 64
"""Pictures of one hash that are compared with those of another."""
BLOCK_PAIRS = 2**22
"""Pairs compared at once."""
WAYS = ("same media", "near pictures", "same words", "near words")


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Groups of samples that hold the same thing, found in one way."""

    way: str
    """One of WAYS."""
    groups: tuple[tuple[Sample, ...], ...]
    """Two samples or more each, the largest first, then by name."""

    @property
    def num_spare(self) -> int:
        """How many samples could go and leave one of each group."""
        return sum(len(group) - 1 for group in self.groups)

    def across(self) -> "Duplicates":
        """Return the groups of samples of several datasets: what a held-out set shares with a training set."""
        return Duplicates(way=self.way, groups=tuple(g for g in self.groups if len({name for name, _ in g}) > 1))


def find_duplicates(
    tables: Mapping[str, pa.Table], *, near_bits: int = NEAR_BITS, near_share: float = NEAR_SHARE
) -> list[Duplicates]:
    """Return what is there more than once, in each of WAYS; a near group holds what is not the same already.

    Args:
        tables: of each dataset its fingerprints, a row a line.
        near_bits: of pictures [bits].
        near_share: of words.
    """
    samples = [(name, line) for name, table in tables.items() for line in range(table.num_rows)]
    prints = pa.concat_tables([SCHEMA.empty_table(), *tables.values()])
    media = _same(samples, (tuple(each) for each in prints["contents"].to_pylist()))
    words = _same(samples, prints["words"].to_pylist())
    pictures = _near_pictures(samples, prints, near_bits)
    texts = _near_words(samples, prints, near_share)
    found = [media, _beyond(pictures, media), words, _beyond(texts, words)]
    return [Duplicates(way=way, groups=_ordered(groups)) for way, groups in zip(WAYS, found, strict=True)]


def near_pairs(hashes: np.ndarray, near_bits: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places whose hashes differ in at most so many bits.

    Hashes that differ in d bits agree in one of d + 1 pieces whole, so only those that agree in a piece are compared.

    Args:
        hashes: uint64 [n].
        near_bits: from 0 to 15.

    Source: Manku, Jain, Das Sarma 2007, "Detecting near-duplicates for web crawling".
    """
    edges = np.linspace(0, BITS, near_bits + 2).astype(np.int64).tolist()
    for first, end in pairwise(edges):
        mask = np.uint64((1 << (end - first)) - 1)
        pieces = (hashes >> np.uint64(first)) & mask
        order = np.argsort(pieces, kind="stable")
        starts = np.unique(pieces[order], return_index=True)[1].tolist()
        for begin, stop in pairwise([*starts, len(order)]):
            yield from _compared(hashes, np.sort(order[begin:stop]), near_bits)


def _compared(hashes: np.ndarray, places: np.ndarray, near_bits: int) -> Iterator[tuple[int, int]]:
    """Yield the near pairs among some places, ascending, a block of pairs at a time."""
    if len(places) < 2:
        return
    size = max(1, BLOCK_PAIRS // len(places))
    for at in range(0, len(places), size):
        apart = np.bitwise_count(hashes[places[at : at + size]][:, None] ^ hashes[places][None, :])
        near = apart <= near_bits
        for row, column in zip(*(index.tolist() for index in np.nonzero(near)), strict=True):
            if at + row < column:
                yield int(places[at + row]), int(places[column])


def _same(samples: Sequence[Sample], ids: Iterable[Any]) -> list[set[Sample]]:
    by_id = defaultdict[Any, set[Sample]](set)
    for sample, known in zip(samples, ids, strict=True):
        if known:
            by_id[known].add(sample)
    return [group for group in by_id.values() if len(group) > 1]


def _near_pictures(samples: Sequence[Sample], prints: pa.Table, near_bits: int) -> list[set[Sample]]:
    """Return groups of samples whose one picture is near another's; several pictures are compared by the first."""
    firsts = [each[0] if each else "" for each in prints["pictures"].to_pylist()]
    places = [place for place, known in enumerate(firsts) if known]
    hashes = np.array([int(firsts[place], 16) for place in places], dtype=np.uint64)
    whole, inverse = np.unique(hashes, return_inverse=True)  # what is alike to the bit is compared once
    alike = defaultdict[int, list[int]](list)
    for place, number in zip(places, inverse.tolist(), strict=True):
        alike[number].append(place)
    found = [(a, b) for x, y in near_pairs(whole, near_bits) for a in alike[x][:MOST] for b in alike[y][:MOST]]
    found += [pair for group in alike.values() for pair in pairwise(group)]
    small = prints["small"].to_pylist()

    def colours(place: int) -> np.ndarray:
        return np.frombuffer(small[place], np.uint8).astype(np.int16)

    return _joined(samples, ((a, b) for a, b in found if np.abs(colours(a) - colours(b)).mean() <= NEAR_LEVELS))


def _near_words(samples: Sequence[Sample], prints: pa.Table, near_share: float) -> list[set[Sample]]:
    column = one_array(prints["minhash"])
    places = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist()
    values = column.flatten().to_numpy().reshape(len(places), NUM_HASHES)
    search, first_of, pairs = MinHashLSH(threshold=near_share, num_perm=NUM_HASHES), dict[bytes, int](), []
    for row, place in enumerate(places):
        known = first_of.setdefault(values[row].tobytes(), row)
        if known != row:
            pairs.append((places[known], place))
            continue
        hashed = LeanMinHash(seed=SEED, hashvalues=values[row], scheme="affine32")
        asked = cast("list[int]", search.query(hashed))
        near = [other for other in asked if (values[other] == values[row]).mean() >= near_share]
        pairs += [(places[other], place) for other in sorted(near)]
        search.insert(row, hashed, check_duplication=False)
    return _joined(samples, pairs)


def _joined(samples: Sequence[Sample], pairs: Iterable[tuple[int, int]]) -> list[set[Sample]]:
    """Return the groups that pairs of places make together."""
    leader: dict[int, int] = {}

    def lead(place: int) -> int:
        while (above := leader.setdefault(place, place)) != place:
            leader[place] = leader[above]
            place = above
        return place

    for a, b in pairs:
        first, second = sorted((lead(a), lead(b)))
        leader[second] = first
    groups = defaultdict[int, set[Sample]](set)
    for place in list(leader):
        groups[lead(place)].add(samples[place])
    return list(groups.values())


def _beyond(near: list[set[Sample]], same: list[set[Sample]]) -> list[set[Sample]]:
    """Return near groups that say more than the groups of what is the same."""
    whole = {sample: frozenset(group) for group in same for sample in group}
    return [group for group in near if not group <= whole.get(min(group), frozenset())]


def _ordered(groups: list[set[Sample]]) -> tuple[tuple[Sample, ...], ...]:
    return tuple(sorted((tuple(sorted(group)) for group in groups), key=lambda group: (-len(group), group)))
