from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.traffic import chunk_uses, fetched_bytes, node_bytes_ratio
from tests.plan.tables import images, recipe, rows, text

CHUNK_LINES = {"captions": 8, "code": 25, "wiki": 25}


@lru_cache(maxsize=1)
def uses():
    """A bit less than an epoch of every source, with a lane for each of eight nodes."""
    captions, code = images("captions", 6000, chunk_lines=8), text("code", 9000, chunk_lines=25)
    given = [captions, code, text("wiki", 20_000, chunk_lines=25)]
    plan = plan_segments(given, recipe(lanes=8, packs_per_step=64, pack_window=128, steps=35))
    return chunk_uses(rows(list(plan)), CHUNK_LINES)


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 8])
def test_nodes_up_to_the_lanes_fetch_what_one_would_and_free_dealing_multiplies_it(num_nodes):
    assert node_bytes_ratio(uses(), num_nodes=num_nodes) <= 1.1
    assert node_bytes_ratio(uses(), num_nodes=num_nodes, free=True) >= (0.6 * num_nodes if num_nodes > 1 else 1)


def test_a_use_is_a_chunk_of_a_pack_counted_once():
    found = np.stack([uses()[name] for name in ("step", "pack", "chunk", "visit")], axis=1)
    assert len(np.unique(found, axis=0)) == len(found)
    assert np.array_equal(np.unique(found[:, 2]), np.arange(found[:, 2].max() + 1))


def plain_cache(chunks, sizes, capacity, next_use):
    """A cache written out with a list, least worth keeping first."""
    kept, fetched = [], 0
    for place, chunk in enumerate(chunks):
        if chunk in kept:
            kept.remove(chunk)
        else:
            fetched += sizes[chunk]
            if sizes[chunk] > capacity:
                continue
        kept.append(chunk)
        if next_use:
            later = chunks[place + 1 :]
            order = {other: -(later.index(other) if other in later else len(chunks)) for other in kept}
            kept.sort(key=lambda other: (order[other], other == chunk, other))
        while sum(sizes[other] for other in kept) > capacity:
            kept.pop(0)
    return fetched


@settings(max_examples=80, deadline=None)
@given(chunks=st.lists(st.integers(0, 6), min_size=1, max_size=40), capacity=st.integers(1, 7))
def test_caches_fetch_what_the_plain_ones_do_and_the_next_use_never_fetches_more(chunks, capacity):
    sizes = np.ones(7, dtype=np.int64)
    by_next_use = fetched_bytes(np.array(chunks), sizes, capacity, next_use=True)
    by_last_use = fetched_bytes(np.array(chunks), sizes, capacity, next_use=False)
    assert by_last_use == plain_cache(chunks, sizes.tolist(), capacity, next_use=False)
    assert by_next_use == plain_cache(chunks, sizes.tolist(), capacity, next_use=True)
    assert by_next_use <= by_last_use


def test_a_chunk_larger_than_the_cache_passes_through():
    assert fetched_bytes(np.array([0, 1, 0, 1]), np.array([10, 2]), 5, next_use=True) == 22
