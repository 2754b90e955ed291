"""The long matrices, run by `make exact`: ranks x threads x caches x processes, and kills at many moments."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import Store
from tests.assets import tiny_lake

pytestmark = pytest.mark.exact
ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
RECIPE = {
    "name": "exact",
    "seed": 11,
    "pack_tokens": 256,
    "packs_per_step": 8,
    "steps": STEPS,
    "vision_share": 0.10,
    "max_image_tokens": 64,
    "sources": {
        "captions": {"weight": 3, "augment": ["resize", "crop", "flip", "colour"]},
        "grounding": {"weight": 1, "augment": ["resize", "crop", "flip"]},
        "clips": {"weight": 1},
        "wiki": {"weight": 6},
        "code": {"weight": 3},
    },
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Store:
    return tiny_lake.index_all(tiny_lake.build(tmp_path_factory.mktemp("lake")))


@pytest.fixture(scope="module")
def plan(lake) -> str:
    return make_plan(lake, parse_recipe(RECIPE))


@pytest.fixture(scope="module")
def expected(lake, plan) -> list[tuple[int, int, str]]:
    with PlanLoader(plan, lake, threads=1) as loader:
        return [line for step in range(STEPS) for line in loader.pack_digests(step)]


@pytest.mark.parametrize(
    ("num_ranks", "threads", "cached"), list(itertools.product([1, 2, 3, 4, 8, 11], [1, 2, 8], [False, True]))
)
def test_ranks_threads_and_caches_change_no_byte(lake, plan, expected, tmp_path, num_ranks, threads, cached):
    found = []
    for rank in range(num_ranks):
        cache = tmp_path if cached else None
        with PlanLoader(plan, lake, rank=rank, num_ranks=num_ranks, threads=threads, cache=cache) as loader:
            found += [line for step in range(STEPS) for line in loader.pack_digests(step)]
    assert sorted(found) == expected


@pytest.mark.parametrize("order", ["backward", "every third", "one step twice"])
def test_steps_may_be_asked_for_in_any_order(lake, plan, expected, order):
    steps = {"backward": range(STEPS)[::-1], "every third": range(0, STEPS, 3), "one step twice": [5, 5]}[order]
    with PlanLoader(plan, lake) as loader:
        for step in steps:
            assert loader.pack_digests(step) == [line for line in expected if line[0] == step]


@pytest.mark.parametrize("stopped_at", range(STEPS))
def test_a_run_that_stops_anywhere_and_goes_on_with_other_ranks_sees_the_same(lake, plan, expected, stopped_at):
    with PlanLoader(plan, lake, run="stopped") as loader:
        found = [line for step in range(stopped_at) for line in loader.pack_digests(step)]
        state = loader.state_dict()
    for rank in range(2):
        with PlanLoader(plan, lake, run="stopped", rank=rank, num_ranks=2) as loader:
            loader.load_state_dict(state)
            found += [line for step in range(stopped_at, STEPS) for line in loader.pack_digests(step)]
    assert sorted(found) == expected


@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0])
def test_a_process_killed_at_any_moment_leaves_a_cache_that_serves_the_same_bytes(
    lake, plan, expected, tmp_path, seconds
):
    program = (
        "import sys; from pathlib import Path; from k25_pipelines.loader import PlanLoader\n"
        "from k25_pipelines.storage.store import open_store\n"
        "loader = PlanLoader(sys.argv[1], open_store(sys.argv[2]), cache=Path(sys.argv[3]))\n"
        f"[loader.batch(step) for step in range({STEPS})]"
    )
    child = subprocess.Popen([sys.executable, "-c", program, plan, lake.url, str(tmp_path)], cwd=ROOT)
    time.sleep(seconds)
    child.kill()
    child.wait()
    with PlanLoader(plan, lake, cache=tmp_path) as loader:
        assert [line for step in range(STEPS) for line in loader.pack_digests(step)] == expected
