"""Rows of a plan and the sizes of chunks -> what nodes and caches would fetch; by arithmetic, without any I/O."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from k25_pipelines.keys import random_bits, random_key
from k25_pipelines.plan.balance import contiguous_packs


def chunk_uses(rows: pa.Table, chunk_lines: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the uses of chunks by packs, in the order of the plan, each chunk once a pack.

    Args:
        rows: step, pack, dataset and line of whole steps, sorted by step and pack.
        chunk_lines: lines of a chunk of each dataset.

    Returns:
        int64 columns `step`, `pack`, `chunk` (numbered from 0 over all datasets, as they sort) and
        `visit` (the same of chunk and epoch together).
    """
    names = (
        rows["dataset"].combine_chunks().dictionary_decode() if _is_coded(rows) else rows["dataset"].combine_chunks()
    )
    known = sorted(chunk_lines)
    code = np.searchsorted(known, names.to_numpy(zero_copy_only=False).astype(str))
    chunk = rows["line"].to_numpy() // np.array([chunk_lines[name] for name in known])[code]
    _, chunk = np.unique(code * (1 << 40) + chunk, return_inverse=True)
    epoch = rows["epoch"].to_numpy().astype(np.int64)
    _, visit = np.unique(epoch * (int(chunk.max()) + 1) + chunk, return_inverse=True)
    uses = np.stack([rows["step"].to_numpy(), rows["pack"].to_numpy(), chunk, visit], axis=1)
    step, pack, chunk, visit = np.unique(uses, axis=0).T
    return {"step": step, "pack": pack, "chunk": chunk, "visit": visit}


def node_bytes_ratio(
    uses: Mapping[str, np.ndarray], num_bytes: np.ndarray | int = 1, *, num_nodes: int, free: bool = False
) -> float:
    """Return the bytes that all nodes together fetch, over those that one node would: each chunk once a node and epoch.

    Args:
        uses: of `chunk_uses`.
        num_bytes: of a chunk, int64 [chunks], or one size for all.
        num_nodes: nodes, which take contiguous runs of a step's packs.
        free: deal each step's packs to the nodes in a keyed order instead, as if there were no lanes.
    """
    step, pack, chunk, visit = (np.asarray(uses[name]) for name in ("step", "pack", "chunk", "visit"))
    size = np.broadcast_to(np.asarray(num_bytes, dtype=np.int64), (int(chunk.max()) + 1,))
    packs = int(pack.max()) + 1
    if free:
        dealt = random_bits(random_key("free deal"), step, pack) % np.uint64(num_nodes)
        node = dealt.astype(np.int64)
    else:
        node_of_pack = np.empty(packs, dtype=np.int64)
        for number in range(num_nodes):
            run = contiguous_packs(packs, number, num_nodes)
            node_of_pack[run.start : run.stop] = number
        node = node_of_pack[pack]
    _, by_nodes = np.unique(node * (int(visit.max()) + 1) + visit, return_index=True)
    _, by_one = np.unique(visit, return_index=True)
    return float(size[chunk[by_nodes]].sum() / size[chunk[by_one]].sum())


def fetched_bytes(chunk: np.ndarray, num_bytes: np.ndarray, capacity: int, *, next_use: bool) -> int:
    """Return the bytes fetched for uses of chunks in order by a cache of so many bytes.

    Args:
        chunk: int64 [uses], numbers of chunks.
        num_bytes: int64 [chunks].
        capacity: of the cache [bytes]; a chunk that is larger passes through.
        next_use: evict what is used again last (Belady 1966); else what was used longest ago.
    """
    chunk = np.ascontiguousarray(chunk, dtype=np.int64)
    following = np.full(chunk.size, chunk.size, dtype=np.int64)
    last = np.full(len(num_bytes), chunk.size, dtype=np.int64)
    for use in range(chunk.size - 1, -1, -1):
        following[use] = last[chunk[use]]
        last[chunk[use]] = use
    return int(_fetched(chunk, np.asarray(num_bytes, dtype=np.int64), following, capacity, next_use))


@njit(cache=True, nogil=True)
def _fetched(chunk: np.ndarray, num_bytes: np.ndarray, following: np.ndarray, capacity: int, next_use: bool) -> Any:
    """Return the bytes fetched; `rank` of a chunk in the cache says when it goes: the largest first; -1: not there."""
    rank = np.full(num_bytes.size, -1, dtype=np.int64)
    used, fetched = 0, 0
    for use in range(chunk.size):
        this = chunk[use]
        if rank[this] < 0:
            fetched += num_bytes[this]
            if num_bytes[this] > capacity:
                continue
            used += num_bytes[this]
        rank[this] = following[use] if next_use else chunk.size - use
        while used > capacity:
            out = -1
            for other in range(rank.size):
                if rank[other] >= 0 and other != this and (out < 0 or rank[other] > rank[out]):
                    out = other
            if next_use and rank[this] > rank[out]:
                out = this  # read once, kept by nobody
            used -= num_bytes[out]
            rank[out] = -1
    return fetched


def _is_coded(rows: pa.Table) -> bool:
    return pa.types.is_dictionary(rows.schema.field("dataset").type)
