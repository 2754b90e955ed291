"""What `k25 doctor` promises: it loads what a run would, says where the time went, and what to do about it."""

import json
import threading
import time

import pytest

from k25_pipelines.cli import main
from k25_pipelines.commands.doctor import REMEDIES, told
from k25_pipelines.loader import PlanLoader
from k25_pipelines.loader.timing import STAGE_OF_FILE, STAGES, StageClock
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from tests.sample.small_lake import hand_plan, new_lake

RECIPE = {
    "name": "examined",
    "seed": 7,
    "pack_tokens": 512,
    "packs_per_step": 4,
    "steps": 3,
    "max_image_tokens": 64,
    "sources": {"captions": {"weight": 1}, "wiki": {"weight": 2}},
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    lake = new_lake(str(tmp_path / "lake"))
    monkeypatch.setenv("K25_LAKE", lake.url)
    return make_plan(lake, parse_recipe(RECIPE))


def test_it_says_what_was_loaded_at_what_speed_and_names_a_remedy(plan, capsys):
    assert main(["doctor", plan, "--steps", "0:3", "--json", "--threads", "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["plan"], facts["steps"], facts["threads"], facts["masked"]) == (plan, [0, 3], 1, 0)
    assert set(facts["stages_s"]) == set(STAGES)
    assert set(facts["sources_s"]) <= {"captions", "wiki"}
    assert 0.9 * 3 * 4 * 512 < facts["tokens"] <= 3 * 4 * 512
    assert facts["images_per_core_s"] == pytest.approx(facts["images"] / facts["cpu_s"], rel=0.1)
    assert facts["cores_per_gpu"] == pytest.approx(14 / facts["images_per_core_s"], rel=0.3)
    assert facts["remedy"] == REMEDIES[facts["slow_stage"]]


def test_its_table_names_every_stage_and_the_cores_that_a_gpu_needs(plan, capsys):
    assert main(["doctor", plan]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[3 : 3 + len(STAGES)]} == set(STAGES)
    assert any("cores a GPU at 14 images/s" in line for line in lines)
    assert lines[-1].startswith("remedy: ")


def test_steps_beyond_the_plan_are_refused_in_one_line(plan, capsys):
    assert main(["doctor", plan, "--steps", "0:9"]) == 2
    assert "has steps 0 to 2, not 8" in capsys.readouterr().err


def test_every_stage_has_a_remedy_but_waiting():
    assert set(STAGE_OF_FILE.values()) == set(REMEDIES) == set(STAGES) - {"queue"}


def test_a_source_that_was_not_seen_at_work_is_no_reason_to_stop():
    facts = {
        "plan": "f" * 32,
        "steps": [0, 1],
        **dict.fromkeys(("samples", "images", "tokens", "masked", "tokens_per_core_s", "threads"), 0),
        **dict.fromkeys(("first_batch_s", "wall_s", "cpu_s", "images_per_core_s"), 0.0),
        "stages_s": dict.fromkeys(STAGES, 0.0),
        "sources_s": {},
        "slow_source": None,
        "cores_per_gpu": None,
        "remedy": "none",
    }
    assert told(facts)[-2:] == ["slowest source for its tokens: none was seen at work", "remedy: none"]


def test_a_clock_counts_the_stage_of_the_innermost_frame_and_not_what_is_idle():
    names, release = {}, threading.Event()
    worker = threading.Thread(target=_decoding, args=(release,), name="watched-1")
    stranger = threading.Thread(target=_decoding, args=(release,), name="another")
    worker.start()
    stranger.start()
    names[worker.ident] = "clips"
    clock = StageClock(prefix="watched-", source_of_thread=names)
    time.sleep(0.2)
    clock.close()
    release.set()
    worker.join()
    stranger.join()
    assert [name for name, seconds in clock.totals().items() if seconds] == ["decode"]
    assert clock.by_source() == {"clips": {"decode": clock.totals()["decode"]}}


def _decoding(release: threading.Event) -> None:
    """Wait inside of the package's decoder."""
    from k25_pipelines.sample import decode

    code = compile("release.wait()", decode.__file__, "exec")
    exec(code, {"release": release})


def test_a_loader_that_does_not_count_its_time_says_how_to_have_it_counted():
    lake = new_lake()
    with PlanLoader(hand_plan(lake), lake, threads=1) as loader, pytest.raises(ValueError, match="timed=True"):
        loader.timings()
