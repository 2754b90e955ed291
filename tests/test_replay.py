"""Any step of a run is rebuilt from the store and compared with what was logged when it was trained on."""

import io
import json

import pytest
from PIL import Image

from k25_pipelines.errors import RunError
from k25_pipelines.planning.exclusions import tombstones_digest
from k25_pipelines.replay import OVERWRITTEN, Difference, replay
from k25_pipelines.runs import amend, consumed
from tests.fed_run import HALF_BROKEN, config_of, feed_run, k25, new_lake, planned, rows_of

BROKEN = ("grounding", 3)
CHOSEN = ("grounding", 5)
STEPS = range(10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A lake, the plan of an amended run `r`, and the plan it was amended to; a sample of it was bad."""
    folder = tmp_path_factory.mktemp("lake")
    lake = new_lake(folder)
    plan = planned(lake)
    feed_run(lake, config_of(plan), "r", folder, until=4, save=(4,))
    amended = amend(lake, plan, from_step=6, changes={"packs_per_step": 3}, reason="a larger batch", author="the test")
    feed_run(lake, config_of(plan), "r", folder, save=(10,))
    return lake, plan, amended


@pytest.fixture
def lake(trained):
    """The lake, as it was before whatever a test does to its pictures."""
    lake = trained[0]
    before = {info.key: lake.get(info.key) for info in lake.list("raw/grounding/")}
    yield lake
    for key, data in before.items():
        lake.put(key, data)


def places(trained, sample) -> list[tuple[int, int]]:
    """Step and pack of each time that the run consumed a sample."""
    _, _, amended = trained
    rows = rows_of(trained[0], amended, STEPS)
    return [(row["step"], row["pack"]) for row in rows if (row["dataset"], row["line"]) == sample]


def replayed(lake, **options):
    return list(replay(lake, "r", STEPS, threads=1, **options))


def test_every_step_of_an_amended_run_with_a_bad_sample_agrees_and_the_lake_stays_as_it_was(lake, trained):
    _, plan, amended = trained
    before = {info.key: info.etag for info in lake.list("k25/")}
    steps = replayed(lake)
    assert [(step.step, step.plan, step.num_packs) for step in steps] == [
        (number, plan if number < 6 else amended, 2 if number < 6 else 3) for number in STEPS
    ]
    assert [step for step in steps if not step.agrees] == []
    assert places(trained, BROKEN)
    masked = {step.step: step.num_masked for step in steps if step.num_masked}
    assert masked == {
        step: len([s for s, _ in places(trained, BROKEN) if s == step]) for step, _ in places(trained, BROKEN)
    }
    assert {info.key: info.etag for info in lake.list("k25/")} == before


def test_a_sample_that_was_bad_is_masked_again_though_its_object_healed(lake, trained):
    lake.put(HALF_BROKEN, lake.get("kept.png"))
    assert [step for step in replayed(lake) if not step.agrees] == []
    journaled = [info.key for info in lake.list("k25/runs/r/bad_samples/")]
    kept = {key: lake.get(key) for key in journaled}
    for key in journaled:
        lake.delete(key)
    assert [step for step in replayed(lake) if not step.agrees] == []  # by the log alone
    for key, data in kept.items():
        lake.put(key, data)


def test_an_object_that_was_overwritten_differs_by_name_and_all_else_is_compared(lake, trained):
    lake.put("raw/grounding/0005.png", lake.get("raw/grounding/0006.png"))
    found = [(step.step, step.differences) for step in replayed(lake) if not step.agrees]
    assert [(step, each) for step, differences in found for each in differences] == [
        (step, Difference(pack=pack, sample="grounding:5", why=OVERWRITTEN)) for step, pack in places(trained, CHOSEN)
    ]


def test_other_bytes_under_the_same_etag_differ_by_pack_and_sample(lake, trained, monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (112, 112), "red").save(buffer, "PNG")
    lake.put("raw/grounding/0005.png", buffer.getvalue().ljust(len(lake.get("raw/grounding/0005.png")), b"\0"))
    monkeypatch.setattr("k25_pipelines.storage.local.checked_etag", lambda *_, **__: None)
    found = [(step.step, each) for step in replayed(lake) for each in step.differences]
    assert found == [
        (step, Difference(pack=pack, sample="grounding:5", why="it has other bytes now"))
        for step, pack in places(trained, CHOSEN)
    ]


def test_a_sample_that_is_withheld_is_reported_and_the_rest_of_its_pack_is_still_compared(lake, trained):
    lake.delete("raw/grounding/0005.png")
    gone = [(step.step, each.sample) for step in replayed(lake) for each in step.differences]
    assert gone == [(step, "grounding:5") for step, _ in places(trained, CHOSEN)]
    name = tombstones_digest(["grounding:5"])
    lake.put(f"k25/tombstones/{name}.json", b'["grounding:5"]')
    lake.put("k25/tombstones/current.json", json.dumps({"digest": name}).encode())
    steps = replayed(lake)
    lake.delete("k25/tombstones/current.json")
    assert [step for step in steps if not step.agrees] == []
    assert [(step.step, name) for step in steps for name in step.withheld] == [
        (step, "grounding:5") for step, _ in places(trained, CHOSEN)
    ]
    lake.put("raw/grounding/0006.png", lake.get("raw/grounding/0007.png"))
    other = {step for step, _ in places(trained, ("grounding", 6))}
    assert {step.step for step in replayed(lake, withheld={CHOSEN}) if not step.agrees} == other


def test_a_step_that_was_never_trained_on_is_not_replayed(lake):
    with pytest.raises(RunError, match="run r has no step 10 in its log; it holds steps 0 to 9"):
        list(replay(lake, "r", range(8, 12)))
    with pytest.raises(RunError, match=r"no run 'rr' in .*; did you mean r\?"):
        list(replay(lake, "rr", range(1)))


def test_the_command_prints_a_line_a_step_and_ends_with_1_where_one_differs(lake, trained, monkeypatch, capsys):
    monkeypatch.setenv("K25_LAKE", lake.url)
    step, pack = places(trained, CHOSEN)[0]
    steps = f"{step}:{step + 1}"
    assert k25("replay", "r", "--steps", steps, "--threads", 1, "--verify") == 0
    samples = len(consumed(lake, "r", steps=range(step, step + 1)).to_pylist()[0]["samples"])
    said = capsys.readouterr()
    assert said.out.startswith(f"step {step}: ok (2 packs, {samples} samples")
    assert "r: 1 steps agree with what the run logged" in said.err
    lake.put("raw/grounding/0005.png", b"no picture")
    assert k25("replay", "r", "--steps", steps, "--threads", 1, "--verify", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["differences"] == [{"pack": pack, "sample": "grounding:5", "why": OVERWRITTEN}]
    assert k25("replay", "r", "--steps", steps, "--threads", 1, "--verify") == 1
    assert f"step {step}: differs: pack {pack} grounding:5 ({OVERWRITTEN})" in capsys.readouterr().out
