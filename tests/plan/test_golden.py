"""Orders that past runs saw. A golden that changes needs a new PLAN_VERSION, and its old value kept beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

from k25_pipelines.keys import digest, random_bits, random_key
from k25_pipelines.plan.balance import rank_packs
from k25_pipelines.plan.blend import source_order
from k25_pipelines.plan.draws import AUGMENTATIONS, DrawRule, draw
from k25_pipelines.plan.fill import fill
from k25_pipelines.plan.pack import pack
from k25_pipelines.plan.permutation import permute
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.segment import PLAN_VERSION, plan_id
from k25_pipelines.plan.shuffle import Order, lane_samples
from k25_pipelines.plan.size import profile
from tests.plan.tables import recipe, skewed, tables, text

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / f"{PLAN_VERSION}.json").read_text())


def keys():
    key = random_key("window", 7, "wiki", 0)
    return [key, random_key("window", 7, "wiki", 1), *random_bits(key, np.arange(3)).tolist()]


def small_permutation():
    return permute(np.arange(12), 12, 5).tolist()


def large_permutation():
    return permute(np.arange(8), 10**6, 5).tolist()


def permutation_digests():
    return {str(n): digest(permute(np.arange(n), n, 5)) for n in (65_535, 65_536, 65_537, 100_003, 262_145)}


def shuffle():
    order = Order(dataset="wiki", seed=7, num_lines=103, chunk_lines=4, lanes=2)
    return [column[::7].tolist() for column in lane_samples(order, 1, np.arange(160))]


def blend():
    return source_order((1, 2, 7)).tolist()


def draws():
    rule = DrawRule(seed=7, dataset="captions", augment=AUGMENTATIONS)
    size = {"width": np.array([640, 333]), "height": np.array([480, 900])}
    columns = draw(rule, np.array([0, 1]), np.array([0, 2]), **size, max_tokens=256, profile=profile("kimi_k25"))
    return {name: column.tolist() for name, column in columns.items()}


def packs():
    lengths = skewed("golden", 2000, 1, 4096)
    return [digest(pack(lengths, 4096)[0]), pack(lengths[:12], 4096)[0].tolist()]


def filled():
    lengths = skewed("golden", 1000, 1, 2500)
    needs, most = np.empty((1000, 0), dtype=np.int64), np.empty(0, dtype=np.int64)
    return [digest(fill(lengths, 4096, needs, most)[0]), fill(lengths[:12], 4096, needs[:12], most)[0].tolist()]


def ranks():
    costs = skewed("golden costs", 32, 100, 10_000)
    return [rank_packs(costs, rank, 4, 4).tolist() for rank in range(4)]


def small_plan():
    segments = list(plan_segments(tables(), recipe(), segment_steps=10, tokenizer="a tokenizer"))
    return [plan_id(segments[0].header), *(segment.digest for segment in segments)]


def changed_plan():
    changes = [{"from_step": 9, "packs_per_step": 16, "sources": {"maths": {"weight": 1}}, "reason": "golden"}]
    segments = list(plan_segments([*tables(), text("maths", 300)], recipe(changes=changes, licences=["MIT"])))
    return [segment.digest for segment in segments]


CASES = [
    keys, small_permutation, large_permutation, permutation_digests, shuffle, blend, draws, packs, filled, ranks,
    small_plan, changed_plan,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_order_is_the_one_that_past_runs_saw(case):
    assert case() == GOLDEN[case.__name__]
