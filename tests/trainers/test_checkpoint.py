"""A checkpoint is there when its record is, is what its record says, and is all that a run needs to go on."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from k25_pipelines.errors import CheckpointError, RunError
from k25_pipelines.storage.local import LocalStore
from k25_pipelines.storage.store import ObjectInfo, Store, open_store
from tests.trainers.conftest import as_one_rank, toy_config, train
from trainers import checkpoint
from trainers.checkpoint import load_modules, load_weights, restore, save_checkpoint
from trainers.config import Run, TrainConfig, checkpoint_key, plain
from trainers.engine import Engine, rank_of_file
from trainers.interchange.npz import npz_parts
from trainers.model.kimi_k25 import KimiK25
from trainers.pretrain import build_model, checked_plan
from trainers.ranks import ROOT
from trainers.resuming import check_resumable, newest_record, read_record
from trainers.run_lock import check_unlocked, locked

FILES = [
    "engine/mp_rank_00_model_states.pt",
    "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "metrics.jsonl",
    "spikes.jsonl",
    "timings.jsonl",
    "weights.npz",
]


class PowerCut(Exception):
    """The machine is gone."""


class FailingStore(LocalStore):
    """A store whose writer dies after so many objects."""

    writes_left = 0

    def put(self, key: str, data: bytes) -> None:
        """Write, or die."""
        self._count()
        super().put(key, data)

    def put_new(self, key: str, data: bytes) -> None:
        """Write, or die."""
        self._count()
        super().put_new(key, data)

    def _count(self) -> None:
        if self.writes_left == 0:
            raise PowerCut
        self.writes_left -= 1


@pytest.fixture(scope="module")
def config(lake) -> TrainConfig:
    return toy_config(lake, "warmup", steps=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(lake, config, one_rank, tmp_path_factory) -> dict:
    """The record of a run that nobody disturbed."""
    return train(lake, config, "whole", tmp_path_factory.mktemp("whole"))


@pytest.fixture
def engine(lake, config, one_rank) -> Iterator[Engine]:
    """An engine that has taken no step."""
    with as_one_rank():
        yield Engine(build_model(config, lake), config)


def objects(lake: Store, run: str, step: int) -> list[str]:
    key = f"{checkpoint_key(run, step)}/"
    return [info.key.removeprefix(key) for info in lake.list(key)]


def copied(lake: Store, record: dict, run: str) -> str:
    """Publish a run's last checkpoint as that of another run, and return its key."""
    source, key = checkpoint_key(record["run"], record["step"]), checkpoint_key(run, record["step"])
    for info in lake.list(f"{source}/"):
        lake.put(f"{key}/{info.key.removeprefix(f'{source}/')}", lake.get(info.key))
    return key


def changed_record(lake: Store, key: str, **changes: Any) -> None:
    record = json.loads(lake.get(f"{key}/record.json"))
    lake.put(f"{key}/record.json", json.dumps({**record, **changes}).encode())


def small_record(config: TrainConfig, run: str) -> dict:
    """As much of a record as saving and restoring read."""
    layout = {"ranks": 1, "threads": 1}
    facts = {"run": run, "stage": "warmup", "step": 1, "plan": config.plan, "segments": [], "layout": layout}
    facts |= {"step_range": [0, 1], "reads": [], "parent": None}  # lineage reads these of every record
    return {**facts, "config": plain(config)}


def restored(engine: Engine, lake: Store, config: TrainConfig, run: str, work: Path) -> dict | None:
    """Go on from a run's newest checkpoint on one rank, if it has one and may."""
    if (record := newest_record(lake, run)) is None:
        return None
    check_resumable(record, config=plain(config), num_ranks=1)
    return restore(engine, lake, checkpoint_key(run, record["step"]), record=record, work=work)


def lines(history: list[dict]) -> dict[str, list[dict]]:
    return {"history": history, "timings": [], "spikes": []}


def test_a_run_that_was_left_and_goes_on_ends_as_one_that_was_not(lake, config, whole, tmp_path):
    left = train(lake, config, "left", tmp_path, stop_at=3)
    assert left["loader"] == {"run": "left", "plan": config.plan, "segment": whole["segments"][-1], "step": 3}
    assert left["metrics"]["losses"] == whole["metrics"]["losses"][:3]
    ended = train(lake, config, "left", tmp_path / "elsewhere")
    differing = {name for name in ended if ended[name] != whole[name]}
    assert differing == {"run", "loader", "files"}
    others = {name for name in FILES if ended["files"][name] != whole["files"][name]}
    assert others <= {*FILES[:2], "timings.jsonl"}  # pickles, and wall times
    assert ended["loader"] == {**whole["loader"], "run": "left"}


def test_two_runs_of_a_config_have_one_digest_and_another_seed_has_another(lake, config, whole, tmp_path):
    again = train(lake, config, "again", tmp_path)
    other = train(lake, replace(config, seed=8), "other-seed", tmp_path)
    assert again["digest"] == whole["digest"] != other["digest"]
    assert again["files"]["weights.npz"] == whole["files"]["weights.npz"]


def test_a_checkpoint_holds_its_files_and_their_sums_and_nothing_else(lake, whole):
    assert list(whole["files"]) == FILES
    assert objects(lake, "whole", 4) == sorted([*FILES, "record.json"])
    assert sorted({info.key.split("/")[3] for info in lake.list("k25/checkpoints/whole/")}) == ["00000002", "00000004"]


@pytest.mark.parametrize("num_written", range(len(FILES) + 1))
def test_a_save_killed_after_any_object_leaves_no_checkpoint_and_the_next_one_sweeps_up(
    lake, config, engine, num_written, tmp_path
):
    record = small_record(config, f"killed-{num_written}")
    dying = FailingStore(lake.url)
    dying.writes_left = num_written
    with pytest.raises(PowerCut):
        save_checkpoint(engine, dying, record, lines=lines([]), work=tmp_path)
    left = objects(lake, record["run"], 1)
    assert left == FILES[:num_written]
    assert newest_record(lake, record["run"]) is None
    assert restored(engine, lake, config, record["run"], tmp_path) is None
    lake.put(f"{checkpoint_key(record['run'], 1)}/engine/of_an_older_layout.pt", b"stray")
    save_checkpoint(engine, lake, record, lines=lines([]), work=tmp_path)
    assert objects(lake, record["run"], 1) == sorted([*FILES, "record.json"])
    assert restored(engine, lake, config, record["run"], tmp_path) is not None


def test_a_published_step_is_not_saved_again(lake, config, engine, tmp_path):
    record = small_record(config, "published")
    key = save_checkpoint(engine, lake, record, lines=lines([]), work=tmp_path)
    before = {info.key: info for info in lake.list(key)}
    with pytest.raises(CheckpointError, match=f"{key} is published already"):
        save_checkpoint(engine, lake, record, lines=lines([]), work=tmp_path)
    assert {info.key: info for info in lake.list(key)} == before


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_the_record_says_stops_the_resume_by_name(lake, config, whole, tmp_path, name):
    key = copied(lake, whole, "harmed")
    data, expected = lake.get(f"{key}/{name}"), whole["files"][name][:12]
    lake.put(f"{key}/{name}", data[:-1] + bytes([data[-1] ^ 1]) if data else b"\n")
    with pytest.raises(CheckpointError, match=rf"{key}/{name} has SHA-256 \w+\.\., its record says {expected}"):
        train(lake, config, "harmed", tmp_path)
    lake.delete(f"{key}/{name}")
    with pytest.raises(CheckpointError, match=f"{key}/{name} is gone, and its record names it"):
        train(lake, config, "harmed", tmp_path)


def test_a_record_that_names_other_weights_stops_whoever_starts_from_them(lake, whole):
    key = copied(lake, whole, "other-weights")
    changed_record(lake, key, files={**whole["files"], "weights.npz": "0" * 64})
    with pytest.raises(CheckpointError, match=f"{key}/weights.npz has SHA-256 .* its record says 000000000000"):
        load_weights(lake, key)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 1.0}, "config.learning_rate was 0.003 and is 1.0"),
        ({"plan": "another"}, "config.plan was '{plan}' and is 'another'"),
        (
            {"seed": 1, "betas": (0.5, 0.5)},
            "config.betas was [0.9, 0.95] and is [0.5, 0.5]; config.seed was 7 and is 1",
        ),
    ],
)
def test_a_run_is_not_resumed_under_another_config_or_plan(config, whole, change, told):
    said = re.escape(told.format(plan=config.plan))
    changed = plain(replace(config, **{"learning_rate": 0.003, **change}))
    record = {**whole, "config": plain(replace(config, learning_rate=0.003))}
    with pytest.raises(CheckpointError, match=f"whole/00000004 was made by another config: {said}; resume with"):
        check_resumable(record, config=changed, num_ranks=1)


def test_a_field_inside_the_model_is_named_by_its_whole_path(config, whole):
    wide = replace(config.model, language=replace(config.model.language, width=64))
    with pytest.raises(CheckpointError, match=r"config\.model\.language\.width was 32 and is 64"):
        check_resumable(whole, config=plain(replace(config, model=wide)), num_ranks=1)


def test_a_run_is_not_resumed_with_another_tokenizer(config, whole):
    with pytest.raises(CheckpointError, match=f"was trained with tokenizer {whole['tokenizer']}, the plan has ab12"):
        check_resumable(whole, config=plain(config), num_ranks=1, tokenizer="ab12")


def test_a_module_does_not_start_from_a_checkpoint_of_another_tokenizer(lake, config, whole, tmp_path):
    changed_record(lake, copied(lake, whole, "other-words"), tokenizer="ab12")
    key = checkpoint_key("other-words", 4)
    with pytest.raises(CheckpointError, match=rf"config\.initial\.language: {key} was trained with tokenizer ab12"):
        train(lake, replace(config, initial={"language": key}), "from-other-words", tmp_path)


def test_a_run_under_adamw_is_not_resumed_on_another_number_of_ranks(config, whole):
    record = {**whole, "config": plain(replace(config, optimizer="adamw")), "layout": {"ranks": 3, "threads": 1}}
    with pytest.raises(CheckpointError, match="saved on 3 ranks, this is a group of 1"):
        check_resumable(record, config=record["config"], num_ranks=1)
    muonclip = plain(replace(config, optimizer="muonclip"))
    check_resumable({**record, "config": muonclip}, config=muonclip, num_ranks=1)


def test_a_resumed_run_draws_the_random_numbers_it_would_have_drawn(lake, config, engine, tmp_path):
    torch.manual_seed(11)
    torch.rand(3)
    record = small_record(config, "random")
    save_checkpoint(engine, lake, record, lines=lines([{"step": 0}]), work=tmp_path)
    expected = torch.rand(5)
    torch.manual_seed(12)
    again = restored(engine, lake, config, "random", tmp_path)
    assert torch.equal(torch.rand(5), expected)
    assert again is not None
    assert again["history"] == [{"step": 0}]


def test_modules_start_from_the_checkpoint_that_is_named_for_them(lake, config, whole):
    key, joint = checkpoint_key("whole", 4), toy_config(lake, "joint")
    model = build_model(replace(joint, initial={"language": key}, trainable=("projector",)), lake)
    fresh, parent = KimiK25(joint.model, seed=joint.seed).state_dict(), load_weights(lake, key)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, parent[name] if name.startswith("language.") else fresh[name]), name
    assert not torch.equal(parent["language.norm.weight"], fresh["language.norm.weight"])
    trained = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"projector"}


def test_a_parent_of_another_size_or_without_the_module_is_named(lake, config, whole):
    key = checkpoint_key("whole", 4)
    wide = replace(config.model, language=replace(config.model.language, mlp=32))
    with pytest.raises(CheckpointError, match=rf"{key} does not fit module language: .* size mismatch"):
        load_modules(KimiK25(wide), lake, {"language": key})
    with pytest.raises(CheckpointError, match=f"{key} does not fit module vision: .* Missing key"):
        load_modules(KimiK25(toy_config(lake, "joint").model), lake, {"vision": key})


def test_no_checkpoint_no_parent(lake, config):
    with pytest.raises(CheckpointError, match="k25/checkpoints/nobody/00000004 is no published checkpoint"):
        build_model(replace(config, initial={"language": checkpoint_key("nobody", 4)}), lake)


def test_the_weights_file_holds_every_weight_by_its_name_in_fp32(lake, config, whole):
    weights, model = load_weights(lake, checkpoint_key("whole", 4)), build_model(config, lake)
    shapes = {name: (value.shape, torch.float32) for name, value in model.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in weights.items()} == shapes
    assert all(value.isfinite().all() for value in weights.values())


def test_large_weights_are_saved_as_several_files_and_are_the_same(lake, config, engine, tmp_path, monkeypatch):
    record = small_record(config, "in-one")
    one = save_checkpoint(engine, lake, record, lines=lines([]), work=tmp_path)
    monkeypatch.setattr(checkpoint, "npz_parts", lambda weights: npz_parts(weights, 200_000))
    parts = save_checkpoint(engine, lake, {**record, "run": "in-parts"}, lines=lines([]), work=tmp_path)
    records = [read_record(lake, key) for key in (one, parts)]
    files = [[name for name in each["files"] if name.startswith("weights")] for each in records]
    assert files[0] == ["weights.npz"]
    assert len(files[1]) > 2
    assert records[0]["digest"] == records[1]["digest"]
    weights = [load_weights(lake, key) for key in (one, parts)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert restored(engine, lake, config, "in-parts", tmp_path) is not None


def test_each_file_of_the_engine_is_uploaded_by_the_rank_that_wrote_it():
    partitions = [f"engine/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1, 12)]
    assert [rank_of_file(name) for name in [*FILES, *partitions]] == [0] * len(FILES) + [0, 1, 12]


class Beside(LocalStore):
    """A store in which another process saves the same step meanwhile."""

    meanwhile = staticmethod(lambda store, key: None)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List, after what the other did, once there is something to list."""
        if (self.root / prefix / "weights.npz").exists():
            self.meanwhile(self, prefix)
        return super().list(prefix)

    def put_new(self, key: str, data: bytes) -> None:
        """Write, after what the other did."""
        if self.meanwhile is Beside.meanwhile:
            super().put_new(key, b"{}")
        super().put_new(key, data)


def gone(store: LocalStore, prefix: str) -> None:
    store.delete(f"{prefix}weights.npz")


def other(store: LocalStore, prefix: str) -> None:
    store.put(f"{prefix}timings.jsonl", b"of another")


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        (gone, "is not published: weights.npz is gone again since it was uploaded"),
        (other, "is not published: timings.jsonl was overwritten since it was uploaded"),
        (None, "was published by another process while this one saved it"),
    ],
)
def test_two_that_save_one_step_publish_no_record_of_files_that_are_not_theirs(
    lake, config, engine, tmp_path, meanwhile, said
):
    store, run = Beside(lake.url), f"beside-{getattr(meanwhile, '__name__', 'published')}"
    if meanwhile:
        store.meanwhile = meanwhile
    with pytest.raises(CheckpointError, match=f"{said}; another process seems to train this run"):
        save_checkpoint(engine, store, small_record(config, run), lines=lines([]), work=tmp_path)
    record = f"{checkpoint_key(run, 1)}/record.json"
    assert (lake.root / record).exists() == (meanwhile is None)
    lake.delete(record)


@pytest.mark.parametrize("lost", FILES)
def test_a_record_is_not_published_without_each_file_that_should_be_there(
    lake, config, engine, tmp_path, monkeypatch, lost
):
    upload = checkpoint._upload
    monkeypatch.setattr(
        checkpoint, "_upload", lambda *a, **k: {name: told for name, told in upload(*a, **k).items() if name != lost}
    )
    with pytest.raises(CheckpointError, match=f"is not published: {lost} was not saved"):
        save_checkpoint(engine, lake, small_record(config, "hollow"), lines=lines([]), work=tmp_path)
    assert newest_record(lake, "hollow") is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{}", "does not tell 'run'"),
        (b'{"run": "x", "ste', r"no JSON \(Unterminated string"),
        (b'{"run": "x", "step": "4"}', "tells step as '4'"),
        (b'{"run": "x", "step": 4, "config": {"a": 1}, "files": {}}', "tells files as {}"),
    ],
)
def test_a_broken_record_is_named_with_the_way_out(lake, config, one_rank, tmp_path, data, said):
    key = checkpoint_key("broken-record", 4)
    lake.put(f"{key}/record.json", data)
    try:
        with pytest.raises(CheckpointError, match=f"{key}/record.json is broken.*{said}.*delete that checkpoint's rec"):
            train(lake, config, "broken-record", tmp_path)
    finally:
        lake.delete(f"{key}/record.json")


@pytest.mark.parametrize("name", ["layout", "reads", "loader"])
def test_a_record_that_lacks_what_a_run_needs_to_go_on_is_named(lake, config, whole, tmp_path, name):
    key = copied(lake, whole, "lacking")
    changed_record(lake, key, **{name: None})
    with pytest.raises(CheckpointError, match=f"{key}/record.json is broken: it does not tell '{name}'; delete"):
        train(lake, config, "lacking", tmp_path)


def test_pictures_may_start_from_a_checkpoint_of_another_tokenizer(lake, config, one_rank, tmp_path):
    joint = toy_config(lake, "joint")
    first = train(lake, replace(joint, steps=1), "pictures", tmp_path)
    key = copied(lake, first, "pictures-in-other-words")
    changed_record(lake, key, tokenizer="ab12")
    store, other = open_store(lake.url), replace(joint, initial={"vision": key, "projector": key})
    run = Run(config=other, store=lake.url, run="seeing", work=str(tmp_path))
    assert checked_plan(run, store, num_ranks=1).id == joint.plan


def test_a_second_process_on_a_run_is_refused_by_the_number_of_the_first(lake, config, one_rank, tmp_path):
    with (
        locked(tmp_path / "held", run="held"),
        pytest.raises(RunError, match=f"run held is being trained already, by process {os.getpid()}, which holds"),
    ):
        train(lake, config, "held", tmp_path)
    train(lake, replace(config, steps=1), "held", tmp_path)


def test_a_lock_is_free_once_its_process_is_killed(tmp_path):
    words = "import sys, time; from pathlib import Path; from trainers.run_lock import locked\n"
    words += f"with locked(Path({str(tmp_path)!r}), run='r'):\n    print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"by process {holder.pid}, which holds {tmp_path}/run.lock"):
            check_unlocked(tmp_path, run="r")
        holder.kill()
        holder.wait()
    check_unlocked(tmp_path, run="r")
