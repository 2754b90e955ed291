"""The long matrices, run by `make exact`: ranks x threads in fresh processes, caches in every state, kills at random.

Each runs on drawn data of several seeds over a real S3 server, with mixing, packing, augmentation, video and a change
of ratio and batch size in mid-run. What is compared is the set of (step, pack, digest) lines.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import Store, open_store
from tests import odd_lake
from tests.counting_proxy import CountingProxy

pytestmark = pytest.mark.exact
ROOT = Path(__file__).resolve().parent.parent
STEPS = 16
SEEDS = (1, 2, 3)
RANKS = (1, 2, 3, 4, 7, 8)
THREADS = (1, 4, 16)
NUM_KILLS = 30
RECIPE = {
    "name": "exact",
    "seed": 11,
    "pack_tokens": 512,
    "packs_per_step": 8,
    "steps": STEPS,
    "pack_window": 64,
    "vision_share": 0.10,
    "max_image_tokens": 64,
    "sources": {
        "pictures": {"weight": 3, "augment": list(AUGMENTATIONS)},
        "boxes": {"weight": 1, "augment": ["resize", "crop", "flip", "turn", "rotate", "words"]},
        "clips": {"weight": 1, "augment": ["crop", "colour", "noise"]},
        "tables": {"weight": 6},
    },
    "changes": [
        {"from_step": 9, "sources": {"tables": {"weight": 2}, "lines": {"weight": 5}}, "packs_per_step": 12},
    ],
}
PROGRAM = """
import json, sys
from pathlib import Path
from k25_pipelines.loader import PlanLoader
from k25_pipelines.storage.store import open_store
plan, lake, rank, num_ranks, threads, cache, state, steps = json.loads(sys.argv[1])
state = state and Path(state)
with PlanLoader(plan, open_store(lake), run="exact" if state else None, rank=rank, num_ranks=num_ranks, threads=threads,
                cache=cache and Path(cache)) as loader:
    if state and state.exists():
        loader.load_state_dict(json.loads(state.read_text()))
    for step in range(loader.state_dict()["step"], steps):
        for _, pack, sha256 in loader.pack_digests(step):
            print(f"step={step} pack={pack} sha256={sha256}")
        sys.stdout.flush()
        if state:
            new = state.with_suffix(".new")
            new.write_text(json.dumps(loader.state_dict()))
            new.replace(state)
"""


class Planned:
    """A lake in a bucket, a plan in it, and the lines that one thread in this process reads from it."""

    def __init__(self, lake: Store):
        self.lake = lake
        self.plan = make_plan(lake, parse_recipe(RECIPE))
        with PlanLoader(self.plan, lake, threads=1) as loader:
            told = [line for step in range(STEPS) for line in loader.pack_digests(step)]
        self.lines = sorted(f"step={step} pack={pack} sha256={sha256}" for step, pack, sha256 in told)

    def start(self, *, rank=0, num_ranks=1, threads=2, cache=None, state=None, steps=STEPS) -> subprocess.Popen:
        """Start a process that prints the lines of its rank."""
        told = [self.plan, self.lake.url, rank, num_ranks, threads, cache and str(cache), state and str(state), steps]
        words = [sys.executable, "-c", PROGRAM, json.dumps(told)]
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def lines_of(processes: list[subprocess.Popen]) -> list[str]:
    found = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return sorted(line for lines in found for line in lines)


@pytest.fixture(scope="module", params=SEEDS)
def planned(request, s3_server, tmp_path_factory) -> Iterator[Planned]:
    patch = pytest.MonkeyPatch()
    for name, value in s3_server.items():
        patch.setenv(name, value)
    folder = tmp_path_factory.mktemp("odd")
    raw = odd_lake.build(folder, request.param)
    lake = odd_lake.copy(raw, open_store(f"{s3_server['K25_LAKE']}/exact-{folder.name}"))
    yield Planned(odd_lake.index_all(lake))
    patch.undo()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("num_ranks", RANKS)
def test_ranks_and_threads_in_fresh_processes_change_no_byte(planned, num_ranks, threads):
    found = []
    for pair in range(0, num_ranks, 2):  # two at a time, as the cores of a small machine allow
        ranks = range(pair, min(pair + 2, num_ranks))
        found += lines_of([planned.start(rank=rank, num_ranks=num_ranks, threads=threads) for rank in ranks])
    assert sorted(found) == planned.lines


def test_a_cold_a_warm_and_a_full_cache_give_the_same(planned, tmp_path):
    for _ in ("cold", "warm"):
        assert lines_of([planned.start(cache=tmp_path)]) == planned.lines
    program = PROGRAM.replace("cache=cache and Path(cache)", "cache=Path(cache), ram_bytes=2**16, disk_bytes=2**18")
    told = [planned.plan, planned.lake.url, 0, 1, 4, str(tmp_path), None, STEPS]
    child = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(told)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert lines_of([child]) == planned.lines


def test_corrupted_and_shortened_cache_files_are_fetched_again(planned, tmp_path):
    assert lines_of([planned.start(cache=tmp_path)]) == planned.lines
    files = sorted(path for path in tmp_path.glob("[0-9a-f][0-9a-f]/*") if path.is_file())
    assert len(files) > 4
    chance = random.Random(5)
    for path in files:
        data = bytearray(path.read_bytes())
        match chance.randrange(3):
            case 0:
                data[chance.randrange(len(data))] ^= 0x40
            case 1:
                del data[chance.randrange(len(data)) :]
            case 2:
                data = bytearray()
        path.write_bytes(data)
    assert lines_of([planned.start(cache=tmp_path)]) == planned.lines


def test_a_second_process_on_the_same_cache_waits_for_the_firsts_fetches(planned, tmp_path, monkeypatch):
    with CountingProxy(os.environ["AWS_ENDPOINT_URL"], delay_seconds=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        alone = planned.start(cache=tmp_path / "alone")
        assert lines_of([alone]) == planned.lines
        of_one = proxy.ranged_gets("raw/")
        proxy.reset()
        both = [planned.start(cache=tmp_path / "shared") for _ in range(2)]
        assert lines_of(both) == sorted(planned.lines * 2)
        of_two = proxy.ranged_gets("raw/")
    chunks = {request for request, count in of_one.items() if count}
    assert all(of_two[request] == 1 for request in chunks & set(of_two)), "a chunk was fetched twice"


@pytest.mark.parametrize("ranks", [(1, 2), (4, 3), (2, 8), (7, 1)], ids=str)
@pytest.mark.parametrize("at_step", [1, 9, 12])
def test_a_change_of_rank_count_in_the_middle_of_a_run_changes_no_byte(planned, tmp_path, ranks, at_step):
    before, after = ranks
    states = [tmp_path / f"{rank}.json" for rank in range(before)]
    found = lines_of(
        [planned.start(rank=r, num_ranks=before, state=state, steps=at_step) for r, state in enumerate(states)]
    )
    assert len({state.read_text() for state in states}) == 1
    for rank in range(after):
        (tmp_path / f"new-{rank}.json").write_text(states[0].read_text())
    found += lines_of([planned.start(rank=r, num_ranks=after, state=tmp_path / f"new-{r}.json") for r in range(after)])
    assert sorted(found) == planned.lines


def test_kills_at_random_moments_lose_and_repeat_nothing(planned, tmp_path):
    """The lines that count are those printed before the state that a restart goes on from; the rest are repeated."""
    chance, kills, runs = random.Random(5), 0, 0
    started = time.monotonic()
    assert lines_of([planned.start(cache=tmp_path / "timing")]) == planned.lines
    whole_seconds = time.monotonic() - started
    while kills < NUM_KILLS // len(SEEDS):
        runs += 1
        state, found = tmp_path / f"state-{runs}.json", set()
        while not state.exists() or json.loads(state.read_text())["step"] < STEPS:
            child = planned.start(cache=tmp_path / "killed", state=state, threads=1 + runs % 4)
            if kills < NUM_KILLS // len(SEEDS):
                try:
                    out, _ = child.communicate(timeout=chance.uniform(0.2, 1.0) * whole_seconds)
                except subprocess.TimeoutExpired:
                    os.kill(child.pid, signal.SIGKILL)
                    out, _ = child.communicate()
                    kills += 1
            else:
                out, _ = child.communicate(timeout=300)
            whole_lines = out.splitlines() if out.endswith("\n") else out.splitlines()[:-1]
            found |= set(whole_lines)
        assert sorted(found) == planned.lines


def test_the_state_is_short(planned):
    with PlanLoader(planned.plan, planned.lake, run="a-run-with-a-name-of-usual-length-0001") as loader:
        loader.batch(0)
        assert len(json.dumps(loader.state_dict(), separators=(",", ":"))) < 200


@pytest.mark.parametrize("order", ["backward", "every third", "one step twice"])
def test_steps_may_be_asked_for_in_any_order(planned, order):
    steps = {"backward": range(STEPS)[::-1], "every third": range(0, STEPS, 3), "one step twice": [5, 5]}[order]
    with PlanLoader(planned.plan, planned.lake) as loader:
        for step in steps:
            told = [f"step={s} pack={pack} sha256={sha256}" for s, pack, sha256 in loader.pack_digests(step)]
            assert sorted(told) == [line for line in planned.lines if line.startswith(f"step={step} ")]
