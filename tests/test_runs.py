"""What a run takes of a plan, what it logs, and how a plan changes under it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines import planning, runs
from k25_pipelines.errors import ObjectExistsError, PlanError, RunError
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import Change, recipe_at
from k25_pipelines.replay import replay
from k25_pipelines.run_log import WITHHELD
from k25_pipelines.runs import Pointer, Stretch, amend, consumed, consumed_ranges, log_steps, sample_digests
from tests import fed_run
from tests.fed_run import Threaded, config_of, feed_run, new_lake, newest, planned, rows_of
from trainers.config import plain
from trainers.feed import reads_until, stretches_of

AUTHOR = {"reason": "more text", "author": "the test"}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    return new_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def lake(indexed):
    """The tiny lake without any plan or run."""
    for prefix in ("k25/plans/", "k25/runs/", "k25/checkpoints/"):
        for info in list(indexed.list(prefix)):
            indexed.delete(info.key)
    return indexed


def row(step: int, *packs: str, plan: str = "p") -> dict:
    digests = {"digest": "-".join(packs), "packs": list(packs), "samples": [], "masked": []}
    return {"step": step, "plan": plan, "segment": "s", **digests}


def test_a_run_takes_its_plan_segment_by_segment_and_logs_what_it_takes_before_it_reads(lake):
    plan = planned(lake)
    runs.start_run(lake, "r", plan)
    taken = [runs.take_stretch(lake, "r", step) for step in (0, 3, 6)]
    infos = planning.open_plan(lake, plan).segments
    assert taken == [
        Stretch(plan=plan, segment=info.digest, first_step=info.first_step, num_steps=3) for info in infos[:3]
    ]
    assert runs.next_free_step(lake, "r") == 9
    assert [runs.take_stretch(lake, "r", step) for step in (1, 5, 8)] == taken


def test_a_long_segment_is_taken_in_parts_so_that_an_amend_need_not_wait_for_its_end(lake, monkeypatch):
    monkeypatch.setattr(runs, "STRETCH_STEPS", 5)
    plan = planned(lake, segment_steps=12)
    runs.start_run(lake, "r", plan)
    assert [runs.take_stretch(lake, "r", step).num_steps for step in (0, 5, 10)] == [5, 5, 2]


def test_a_run_is_not_started_on_another_plan_and_an_unknown_one_is_named_with_the_nearest(lake):
    runs.start_run(lake, "joint-1", "p")
    assert runs.start_run(lake, "joint-1", "p") == Pointer(plan="p", started_on="p")
    with pytest.raises(RunError, match="run joint-1 was started on plan p, not q; give the new run another name"):
        runs.start_run(lake, "joint-1", "q")
    with pytest.raises(RunError, match=r"no run 'joint-2' in .*; did you mean joint-1\?"):
        runs.read_pointer(lake, "joint-2")


def test_two_processes_cannot_take_the_same_steps_of_different_plans(lake):
    taken = Stretch(plan="p", segment="s", first_step=0, num_steps=4)
    runs.note_segment(lake, "r", taken)
    runs.note_segment(lake, "r", taken)
    with pytest.raises(ObjectExistsError):
        runs.note_segment(lake, "r", replace(taken, plan="q"))


def test_a_pointer_that_came_too_late_is_not_followed_and_one_that_did_not_is(lake):
    runs.start_run(lake, "r", "p")
    runs.note_segment(lake, "r", Stretch(plan="p", segment="s", first_step=0, num_steps=4))
    for from_step, followed in ((3, "p"), (4, "q"), (9, "q")):
        pointer = Pointer(plan="q", from_step=from_step, started_on="p")
        lake.put(
            "k25/runs/r/plan.json", json.dumps({name: getattr(pointer, name) for name in pointer.__slots__}).encode()
        )
        assert [runs.follow(lake, "r", step) for step in (2, 4)] == ["p", followed]


def test_steps_are_logged_once_and_steps_done_again_must_be_what_they_were(lake):
    log_steps(lake, "r", [row(0, "a", "b"), row(1, "c", "d")])
    log_steps(lake, "r", [row(1, "c", "d"), row(2, "e", "f"), row(3, "g", "h", plan="q")])
    assert consumed(lake, "r").to_pylist() == [
        row(0, "a", "b"),
        row(1, "c", "d"),
        row(2, "e", "f"),
        row(3, "g", "h", plan="q"),
    ]
    assert [tuple(each.values()) for each in consumed_ranges(lake)] == [
        ("r", "p", 0, 2),
        ("r", "p", 2, 3),
        ("r", "q", 3, 4),
    ]
    with pytest.raises(RunError, match="run r: step 2 was done again and pack 1 is not what the log says"):
        log_steps(lake, "r", [row(2, "e", "other"), row(4, "i", "j")])
    assert len(consumed(lake, "r")) == 4
    with pytest.raises(RunError, match="run r has no step 4 in its log; it holds steps 0 to 3"):
        consumed(lake, "r", steps=range(2, 6))


def test_a_step_done_again_without_a_sample_that_was_forgotten_since_is_not_another_step(lake):
    log_steps(lake, "r", [{**row(0, "a"), "samples": ["1", "2"]}])
    log_steps(lake, "r", [{**row(0, "other"), "samples": ["1", WITHHELD]}])
    with pytest.raises(RunError, match="run r: step 0 was done again and pack 0 is not"):
        log_steps(lake, "r", [{**row(0, "other"), "samples": ["7", WITHHELD]}])


@settings(max_examples=50, deadline=None)
@given(cuts=st.sets(st.integers(1, 11)), step=st.integers(1, 12))
def test_a_record_does_not_show_where_the_boundaries_lay(cuts, step):
    segments = [("p", "a", 0, 4), ("p", "b", 4, 7), ("q", "b", 7, 9), ("q", "c", 9, 12)]
    whole = [Stretch(plan=p, segment=s, first_step=first, num_steps=end - first) for p, s, first, end in segments]
    torn = []
    for plan, segment, first, end in segments:
        edges = [first, *sorted(cut for cut in cuts if first < cut < end), end]
        torn += [Stretch(plan=plan, segment=segment, first_step=a, num_steps=b - a) for a, b in pairwise(edges)]
    told = reads_until(torn, step)
    assert told == reads_until(whole, step)
    ahead = [taken for taken in whole if taken.end_step > step]  # as a resumed run finds them in its log
    assert reads_until([*stretches_of(told), *ahead], 12) == reads_until(whole, 12)


def test_samples_have_the_same_digests_wherever_they_stand(lake):
    plan = planned(lake)
    found = []
    for num_ranks in (1, 2):
        seen = {}
        for rank in range(num_ranks):
            with PlanLoader(plan, lake, rank=rank, num_ranks=num_ranks, threads=1) as loader:
                batch = loader.batch(0)
                for place, digest in zip(batch.provenance, sample_digests(batch), strict=True):
                    seen[place.pack, place.slot] = digest
        found.append(seen)
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(planning.open_plan(lake, plan).rows(0))


def test_what_a_run_logs_is_what_its_plan_holds_and_its_loader_gives(lake, tmp_path):
    plan = planned(lake)
    history = feed_run(lake, config_of(plan, steps=5), "r", tmp_path, save=(5,))
    log = consumed(lake, "r").to_pylist()
    assert [(each["step"], each["plan"], each["digest"]) for each in log] == [
        (step, plan, line["digest"]) for step, line in enumerate(history)
    ]
    assert [len(each["samples"]) for each in log] == [len(rows_of(lake, plan, range(s, s + 1))) for s in range(5)]
    segments = [info.digest for info in planning.open_plan(lake, plan).segments]
    record = newest(lake, "r")
    assert record["segments"] == segments[:2]
    assert record["reads"] == [
        {
            "plan": plan,
            "steps": [0, 5],
            "segments": [{"digest": segments[0], "steps": [0, 3]}, {"digest": segments[1], "steps": [3, 5]}],
        }
    ]


def test_two_ranks_log_what_one_logs(lake, tmp_path):
    config = config_of(planned(lake), steps=4)
    feed_run(lake, config, "alone", tmp_path)
    values, barrier = [None, None], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        ranks = [Threaded(rank, values, barrier) for rank in range(2)]
        both = list(pool.map(lambda each: feed_run(lake, config, "pair", tmp_path / str(each.rank), ranks=each), ranks))
    assert both[0] == both[1]
    assert consumed(lake, "pair") == consumed(lake, "alone")


@pytest.mark.parametrize("is_log_written", [False, True])
def test_a_run_that_died_after_its_checkpoint_does_its_last_steps_again_and_logs_none_of_them_twice(
    lake, tmp_path, is_log_written
):
    config = config_of(planned(lake))

    class Dying(fed_run.Feed):
        """Dies at step 4, the checkpoint of step 2 behind."""

        def trained(self, step, batch):
            if step == 4 and is_log_written:
                self.write_log()
            if step == 4:
                raise KeyboardInterrupt
            return super().trained(step, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fed_run, "Feed", Dying)
        with pytest.raises(KeyboardInterrupt):
            feed_run(lake, config, "r", tmp_path, save=(2,))
    logged = [(0, 2), (2, 4)] if is_log_written else [(0, 2)]
    assert [(each["first_step"], each["end_step"]) for each in consumed_ranges(lake)] == logged
    feed_run(lake, config, "r", tmp_path, save=(10,))
    assert consumed(lake, "r")["step"].to_pylist() == list(range(10))


def test_an_amend_changes_ratios_and_batch_size_of_a_running_run_exactly_at_its_step(lake, tmp_path):
    plan = planned(lake)
    config = config_of(plan, steps=10)
    feed_run(lake, config, "r", tmp_path, until=4, save=(2, 4))
    changes = {"sources.captions.weight": 0, "sources.wiki.weight": 9, "packs_per_step": 3}
    amended = amend(lake, plan, from_step=7, changes=changes, **AUTHOR)
    feed_run(lake, config, "r", tmp_path, save=(10,))
    log = consumed(lake, "r").to_pylist()
    assert [len(each["packs"]) for each in log] == [2] * 7 + [3] * 3
    assert rows_of(lake, amended, range(7)) == rows_of(lake, plan, range(7))
    seen = {each["dataset"] for each in rows_of(lake, amended, range(7, 10))}
    assert seen <= {"grounding", "wiki"}
    assert [(read["plan"], read["steps"]) for read in newest(lake, "r")["reads"]] == [
        (plan, [0, 6]),
        (amended, [6, 10]),
    ]
    assert all(step.agrees for step in replay(lake, "r", range(10), threads=1))
    in_force = recipe_at(planning.open_plan(lake, amended).recipe, 9)
    assert (in_force.packs_per_step, in_force.sources["wiki"].weight) == (3, 9)


def test_an_amend_of_a_step_that_was_read_is_refused_and_the_first_step_allowed_is_named(lake, tmp_path):
    plan = planned(lake)
    feed_run(lake, config_of(plan), "r", tmp_path, until=4)
    before = objects(lake)
    with pytest.raises(RunError, match="run r has read its plan up to step 6 already; the first step allowed is 6"):
        amend(lake, plan, from_step=5, changes={"packs_per_step": 3}, **AUTHOR)
    assert objects(lake) == before
    amended = amend(lake, plan, from_step=6, changes={"packs_per_step": 3}, **AUTHOR)
    with pytest.raises(RunError, match=f"run r follows plan {amended} now, not {plan}; amend that one"):
        amend(lake, plan, from_step=8, changes={"packs_per_step": 1}, **AUTHOR)


def test_a_run_that_has_ended_stops_no_amend_of_the_others(lake, tmp_path):
    plan = planned(lake)
    feed_run(lake, config_of(plan, steps=8), "ended", tmp_path)
    feed_run(lake, config_of(plan), "going-on", tmp_path, until=2)
    amended = amend(lake, plan, from_step=4, changes={"packs_per_step": 3}, **AUTHOR)
    assert {name: runs.read_pointer(lake, name).plan for name in runs.run_names(lake)} == {
        "ended": plan,
        "going-on": amended,
    }


def test_while_a_plan_is_forked_a_run_takes_nothing_from_the_step_on_and_a_run_that_did_stops_the_amend(
    lake, monkeypatch
):
    plan = planned(lake, segment_steps=12)
    runs.start_run(lake, "r", plan)
    fork, meanwhile = planning.fork_plan, []

    def slow_fork(*words, **options):
        meanwhile.append(runs.take_stretch(lake, "r", 0))
        return fork(*words, **options)

    monkeypatch.setattr(planning, "fork_plan", slow_fork)
    amended = amend(lake, plan, from_step=5, changes={"packs_per_step": 3}, **AUTHOR)
    assert (meanwhile[0].plan, meanwhile[0].end_step) == (plan, 5)
    assert runs.take_stretch(lake, "r", 5).plan == amended
    assert runs.read_pointer(lake, "r").hold is None

    def late_fork(*words, **options):
        runs.note_segment(lake, "r", Stretch(plan=amended, segment="s", first_step=12, num_steps=9))
        return "late"

    monkeypatch.setattr(planning, "fork_plan", late_fork)
    with pytest.raises(RunError, match="the first step allowed is 21"):
        amend(lake, amended, from_step=12, changes={"packs_per_step": 4}, **AUTHOR)
    assert runs.read_pointer(lake, "r") == Pointer(plan=amended, from_step=5, started_on=plan)


def test_two_amends_at_once_do_not_undo_each_other(lake, monkeypatch):
    plan = planned(lake)
    runs.start_run(lake, "r", plan)
    fork = planning.fork_plan

    def overtaken(*words, **options):
        monkeypatch.setattr(planning, "fork_plan", fork)
        amend(lake, plan, from_step=6, changes={"packs_per_step": 3}, **AUTHOR)
        return fork(*words, **options)

    monkeypatch.setattr(planning, "fork_plan", overtaken)
    with pytest.raises(RunError, match="run r was amended by somebody else just now"):
        amend(lake, plan, from_step=4, changes={"packs_per_step": 4}, **AUTHOR)
    pointer = runs.read_pointer(lake, "r")
    assert (pointer.from_step, pointer.hold) == (6, None)


def test_a_second_amend_before_the_first_took_effect_keeps_where_the_run_first_meets_other_steps(lake):
    plan = planned(lake)
    runs.start_run(lake, "r", plan)
    runs.take_stretch(lake, "r", 0)
    first = amend(lake, plan, from_step=5, changes={"packs_per_step": 3}, **AUTHOR)
    second = amend(lake, first, from_step=8, changes={"packs_per_step": 4}, **AUTHOR)
    assert runs.read_pointer(lake, "r") == Pointer(plan=second, from_step=5, started_on=plan)
    assert [max(row["pack"] for row in rows_of(lake, second, range(s, s + 1))) for s in (4, 5, 8)] == [1, 2, 3]
    runs.take_stretch(lake, "r", 3)
    runs.take_stretch(lake, "r", 5)
    third = amend(lake, second, from_step=8, changes={"packs_per_step": 5}, **AUTHOR)
    assert runs.read_pointer(lake, "r") == Pointer(plan=third, from_step=8, started_on=plan)


def test_fields_are_changed_in_the_recipe_that_is_in_force_and_later_changes_stay(lake):
    later = {"from_step": 9, "packs_per_step": 5}
    plan = planning.open_plan(
        lake, planned(lake, changes=[{"from_step": 2, "sources": {"wiki": {"weight": 7}}}, later])
    )
    told = runs.changed_recipe(plan, {"sources.captions.weight": 4}, from_step=6)
    assert {name: source.weight for name, source in told.sources.items()} == {"grounding": 3, "captions": 4, "wiki": 7}
    assert told.changes == (Change(from_step=9, packs_per_step=5),)


def test_an_amend_that_changes_nothing_or_says_no_reason_leaves_the_run_on_its_plan(lake):
    plan = planned(lake)
    runs.start_run(lake, "r", plan)
    before = objects(lake)
    with pytest.raises(PlanError, match="differs in nothing"):
        amend(lake, plan, from_step=4, **AUTHOR)
    with pytest.raises(PlanError, match="give a reason and an author"):
        amend(lake, plan, from_step=4, changes={"packs_per_step": 3}, reason=" ", author="the test")
    assert objects(lake) == before


def test_an_amend_leaves_samples_out_of_a_running_run_from_its_step_on(lake, tmp_path):
    plan = planned(lake)
    feed_run(lake, config_of(plan), "r", tmp_path, until=2, save=(2,))
    amended = amend(lake, plan, from_step=3, without=["wiki", "grounding:7"], **AUTHOR)
    feed_run(lake, config_of(plan), "r", tmp_path, save=(10,))
    rows = rows_of(lake, amended, range(3, 10))
    assert {row["plan"] for row in consumed(lake, "r", steps=range(3, 10)).to_pylist()} == {amended}
    assert {row["dataset"] for row in rows} == {"captions", "grounding"}
    assert ("grounding", 7) not in {(row["dataset"], row["line"]) for row in rows}


def test_a_trainer_killed_with_its_log_half_written_and_amended_in_between_consumes_each_step_once(lake, tmp_path):
    plan = planned(lake, segment_steps=2)
    config = replace(config_of(plan, steps=6), checkpoint_every=2)
    told = {"config": plain(config), "store": lake.url, "run": "torn", "work": str(tmp_path / "torn"), "threads": 1}
    (tmp_path / "run.json").write_text(json.dumps(told))
    trainer = start_trainer(tmp_path)
    while not newest(lake, "torn"):
        assert trainer.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    at = runs.next_free_step(lake, "torn")
    assert at < 6
    amended = amend(lake, plan, from_step=at, changes={"packs_per_step": 1}, **AUTHOR)
    assert start_trainer(tmp_path).wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
    log = consumed(lake, "torn").to_pylist()
    assert [each["step"] for each in log] == list(range(6))
    assert [each["plan"] for each in log] == [plan] * at + [amended] * (6 - at)
    assert [len(each["packs"]) for each in log] == [2] * at + [1] * (6 - at)
    assert newest(lake, "torn")["step"] == 6
    assert all(step.agrees for step in replay(lake, "torn", range(6), threads=1))


def start_trainer(folder: Path) -> subprocess.Popen:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainers.pretrain", str(folder / "run.json")],
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def objects(lake) -> dict[str, bytes]:
    return {info.key: lake.get(info.key) for info in lake.list("k25/runs/")}
