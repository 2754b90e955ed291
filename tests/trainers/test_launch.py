"""What `k25 train` makes of its options, before anything is trained: config and run file; and its ranks, for real."""

import json
import os
import sys
from dataclasses import replace
from operator import attrgetter

import pytest

from k25_pipelines.errors import CheckpointError, LineageError, PlanError
from k25_pipelines.planning import open_plan
from tests.trainers.interchange import checkpoint, grown, tiny
from trainers import launch
from trainers.changes import Changes, changed_config, read_record, with_fields
from trainers.config import LoraConfig, Run, TrainConfig, load_run, plain, run_name
from trainers.interchange.export import export_checkpoint
from trainers.interchange.importing import import_checkpoint
from trainers.models import model_config
from trainers.ranks import is_lost, note_lost, run_ranks
from trainers.recipes import PROBE_STEPS
from trainers.run_lock import locked

VOCAB = 4096
TINY = tiny(vocab=VOCAB)
"""A model of other sizes than any stage's."""


def changed(lake, stage: str = "warmup", **changes) -> TrainConfig:
    return changed_config(lake, stage, scale="toy", changes=Changes(**changes))


def run_of(lake, monkeypatch, capsys, *words: object, code: int = 0) -> Run | str:
    """Return the run that the launcher writes for a command line, or what it says when it refuses."""
    path = lake.url + "/run.json"
    monkeypatch.setattr(sys, "argv", ["launch", *map(str, words), "--store", lake.url, "--write", path])
    assert launch.main() == code
    said = capsys.readouterr()
    if code:
        assert len(said.err.splitlines()) == 1
        return said.err
    assert said.out == f"{path}\n"
    return load_run(path)


@pytest.fixture(scope="module")
def imported(lake, tmp_path_factory) -> str:
    """A checkpoint that came from a folder, of another size than the stages' models."""
    folder = tmp_path_factory.mktemp("imported") / "out"
    export_checkpoint(lake, checkpoint(lake, grown(TINY).state_dict(), TINY, run="tiny-1"), folder)
    return import_checkpoint(lake, folder)


def test_without_options_a_stage_is_its_recipe(lake):
    assert changed(lake) == launch.launch_config(lake, "warmup", scale="toy")


def test_each_option_changes_its_field_and_the_runs_name(lake):
    plain_run = changed(lake)
    told = changed(lake, steps=3, learning_rate=0.25, optimizer="adamw", fields={"weight_decay": "0.125"})
    expected = {"steps": 3, "checkpoint_every": 1, "learning_rate": 0.25, "optimizer": "adamw", "weight_decay": 0.125}
    assert told == replace(plain_run, **expected)
    assert run_name(told) != run_name(plain_run)


def test_more_steps_extend_the_same_plan(lake):
    short, long = changed(lake), changed(lake, steps=9)
    assert (long.plan, long.steps) == (short.plan, 9)
    assert open_plan(lake, long.plan).num_steps == 9 + PROBE_STEPS


def test_adapters_are_trained_by_adamw_with_twice_their_rank_as_alpha(lake):
    config = changed(lake, lora_rank=4, fields={"lora.targets": "attention,mlp"})
    assert (config.lora, config.optimizer) == (LoraConfig(rank=4, alpha=8.0, targets=("attention", "mlp")), "adamw")
    with pytest.raises(ValueError, match=r"config\.optimizer is muonclip; it must be adamw where config\.lora is set"):
        changed(lake, lora_rank=4, optimizer="muonclip")


@pytest.mark.parametrize(
    ("field", "words", "value"),
    [
        ("seed", "12", 12),
        ("betas", "0.5,0.75", (0.5, 0.75)),
        ("trainable", "language", ("language",)),
        ("model.name", "123456789012", "123456789012"),
        ("config.warmup_steps", "0", 0),
    ],
)
def test_a_field_is_set_from_words(lake, field, words, value):
    config = with_fields(changed(lake), {field: words})
    assert attrgetter(field.removeprefix("config."))(config) == value


def test_a_field_of_the_model_is_set_by_its_path(lake):
    config = with_fields(changed(lake), {"model.language.layers": "3", "model.language.q_rank": "null"})
    assert config.model.language == replace(changed(lake).model.language, layers=3, q_rank=None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rte": "1"}, "unknown key learning_rte: did you mean learning_rate"),
        ({"model.language.layer": "1"}, r"unknown key model\.language\.layer: did you mean layers"),
        ({"weight_decay": "fast"}, "weight_decay is 'fast'; expected float"),
        ({"lora.alpha": "1"}, r"--set lora\.alpha: the config has no lora with fields; give --lora RANK first"),
        ({"steps.more": "1"}, r"--set steps\.more: the config has no steps with fields"),
        ({"gradient_clip": "-1"}, r"config\.gradient_clip is -1\.0; it must be a number above 0"),
        ({"weight_decay": "NaN"}, "^weight_decay is nan; expected a finite number"),
        ({"betas": "0.5,Infinity"}, r"^betas\[1\] is inf; expected a finite number"),
        ({"model.language.routed_scale": "NaN"}, r"^model\.language\.routed_scale is nan; expected a finite"),
        ({"model.language.rope_theta": "1e999"}, r"^model\.language\.rope_theta is inf; expected a finite"),
        ({"seed": "1", "config.seed": "2"}, "--set names seed twice"),
        ({"steps": "4"}, "--set steps: this is said by --steps N"),
        ({"config.stage": "joint"}, r"--set config\.stage: this is said by the stage itself: k25 train STAGE"),
        ({"learning_rate": "1"}, "this is said by --learning-rate RATE"),
        ({"optimizer": "adamw"}, "this is said by --optimizer NAME"),
        ({"plan": "0"}, "this is said by --plan PLAN"),
        ({"continues": "a/1"}, "this is said by --continue RUN/STEP"),
        ({"initial.language": "a/1"}, r"--set initial\.language: this is said by --initial MODULE=RUN/STEP"),
        ({"initial": "{}"}, "this is said by --initial MODULE=RUN/STEP"),
        ({"lora.rank": "3"}, "this is said by --lora RANK"),
        ({"model.language.experts_per_token": "9"}, r"experts_per_token is 9; it must be at most experts"),
    ],
)
def test_a_field_that_cannot_be_set_is_named(lake, fields, said):
    with pytest.raises(ValueError, match=said):
        changed(lake, fields=fields)


def test_a_plan_of_ones_own_is_taken_and_an_unknown_one_refused(lake):
    other = changed(lake, "vit").plan
    assert changed(lake, plan=other).plan == other
    with pytest.raises(PlanError, match="0000"):
        changed(lake, plan="0000")


def test_a_stage_starts_from_an_imported_checkpoint_of_any_size(lake, imported):
    """No other stage has been trained in this lake: all that the recipe starts from is in the one checkpoint."""
    config = changed(lake, "projector", initial={"all": imported.removeprefix("k25/checkpoints/")})
    assert config.initial == dict.fromkeys(("vision", "projector", "language"), imported)
    stage = model_config("toy")
    assert config.model.vision == TINY.vision
    assert config.model.language == replace(TINY.language, balance_rate=stage.language.balance_rate)
    assert open_plan(lake, config.plan).tokenizer == read_record(lake, imported)["tokenizer"]


def test_one_module_starts_from_a_checkpoint_and_the_others_at_random(lake, imported):
    config = changed(lake, "joint", initial={"all": "random", "language": imported})
    assert config.initial == {"language": imported}
    assert config.model.vision == model_config("toy").vision
    assert config.model.language.width == TINY.language.width


def test_positions_are_stretched_as_far_as_the_stage_reaches(lake, imported):
    language = changed(lake, "longest_context", initial={"all": imported}).model.language
    stage = model_config("toy").language.context * 4
    assert (language.context, language.context * language.yarn_factor) == (TINY.language.context, stage)


def test_what_a_stage_cannot_start_from_is_refused(lake, imported):
    adapted = checkpoint(lake, grown(TINY).state_dict(), TINY, run="adapted-1", lora=plain(LoraConfig()))
    with pytest.raises(
        CheckpointError, match=r"adapted-1/00000070 holds adapters.*k25 export adapted-1/00000070 --merge"
    ):
        changed(lake, "joint", initial={"all": adapted})
    with pytest.raises(LineageError, match="no checkpoint 'import-1/00000000'; did you mean"):
        changed(lake, "joint", initial={"vision": "import-1/00000000"})
    with pytest.raises(ValueError, match=r"--initial vision=\.\.: stage warmup has the modules language"):
        changed(lake, initial={"vision": imported})
    with pytest.raises(
        CheckpointError, match=r"starts its vision from the end of vit, .*; run k25 train vit --scale toy"
    ):
        changed(lake, "joint", initial={"vision": imported, "language": imported})


def test_ranks_and_switches_stand_in_the_run_file_and_leave_the_runs_name(lake, monkeypatch, capsys):
    words = ("--ranks=4", "--threads=1", "--expert-ranks=2", "--recompute=norm,swiglu", "--offload", "--coupled-vision")
    run = run_of(lake, monkeypatch, capsys, "warmup", "--scale", "toy", *words)
    assert run.run == run_name(changed(lake)) == run_name(run.config)
    assert (run.threads, run.recompute, run.offload) == (1, ("norm", "swiglu"), True)
    assert plain(run.parallel) == {
        "decoupled_vision": False, "expert_ranks": 2, "pipeline_stages": 1, "virtual_stages": 2,
    }  # fmt: skip


def test_a_run_file_is_taken_as_it_is_but_for_ranks_and_switches(lake, monkeypatch, capsys, tmp_path):
    first = run_of(lake, monkeypatch, capsys, "warmup", "--scale", "toy", "--lora", 2, "--set", "seed=9")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(plain(first)))
    again = run_of(lake, monkeypatch, capsys, "warmup", "--config", path, "--threads", 3, "--recompute", "norm")
    assert again == replace(first, threads=3, recompute=("norm",))
    for words, said in (
        (["--lora", 4], f"--lora changes what is learnt, and --config names a run as it is; change {path}"),
        (["--set", "seed=1"], "--set changes what is learnt"),
    ):
        assert said in run_of(lake, monkeypatch, capsys, "warmup", "--config", path, *words, code=2)
    assert "is a run of stage warmup, not joint" in run_of(lake, monkeypatch, capsys, "joint", "--config", path, code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--expert-ranks 3 --ranks 3", "parallel.expert_ranks is 3; it must divide language.experts (4)"),
        ("--ranks 3 --expert-ranks 2", "3 ranks cannot share out"),
        (
            "--ranks 8 --pipeline-stages 4",
            "parallel.pipeline_stages (4) x parallel.virtual_stages (2) are more stages than language.layers (2)",
        ),
        ("--recompute norms", "recompute is norms; it must be some of norm, swiglu, mla_up"),
        ("--initial warmup", "no checkpoint 'warmup'"),
        ("--continue nowhere/00000001", "no checkpoint 'nowhere/00000001'"),
        ("--continue a/1 --restart", "--restart begins at step 0, and --continue goes on; leave one out"),
        ("--plan 0000", "no plan '0000'"),
        ("--set seed", "--set seed: write NAME=VALUE, such as --set weight_decay=0.1"),
        ("--set seed=1 --set seed=2", "--set names seed twice"),
        ("--config nowhere.json", "run file nowhere.json: No such file"),
        ("--ranks 0", "--ranks is 0; it must be at least 1"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_starts(lake, monkeypatch, capsys, words, said):
    assert said in run_of(lake, monkeypatch, capsys, "warmup", "--scale", "toy", *words.split(), code=2)


RANK = """
import os, sys, time
import torch.distributed as group
group.init_process_group("gloo")
rank = group.get_rank()
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
open(f"{sys.argv[1]}/{rank}", "w").write(" ".join(os.environ[name] for name in names))
if sys.argv[2] == str(rank):
    print("error: bad input", file=sys.stderr)
    sys.exit(2)
if sys.argv[2] != "none":
    time.sleep(60)
group.barrier()
group.destroy_process_group()
"""


@pytest.fixture
def ranks(tmp_path):
    """Start two ranks, one of which may fail while the other would wait for it."""
    (tmp_path / "told_rank.py").write_text(RANK)

    def run(failing: str) -> int:
        words = ["told_rank", str(tmp_path), failing]
        environment = {**dict(launch.os.environ), "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return run_ranks(2, words, logs=tmp_path / "logs", environment=environment)

    return run


def test_ranks_find_each_other_by_the_variables_of_torchrun(ranks, tmp_path):
    assert ranks("none") == 0
    assert [(tmp_path / name).read_text() for name in "01"] == ["0 0 2 2", "1 1 2 2"]


def test_when_a_rank_fails_the_others_are_stopped_and_its_own_error_is_shown(ranks, capsys, monkeypatch):
    monkeypatch.setattr("trainers.ranks.PATIENCE_SECONDS", 0.5)
    assert ranks("1") == 2
    assert capsys.readouterr().err == "rank 1 of 2 ended with code 2; its last lines:\nerror: bad input\n"


@pytest.mark.parametrize("ending", ["signal.SIGKILL", "3"])
def test_a_rank_that_was_killed_is_named_in_one_line_before_those_that_lost_it(tmp_path, capsys, monkeypatch, ending):
    """Rank 1 is killed by a signal, or rank 0 by it and rank 1 loses it."""
    monkeypatch.setattr("trainers.ranks.PATIENCE_SECONDS", 1.0)
    kill, lose = "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"
    body = (lose, kill) if ending == "signal.SIGKILL" else (kill, lose)
    told = f"import os, signal, sys\nif os.environ['RANK'] == '0':\n    {body[0]}\nelse:\n    {body[1]}\n"
    (tmp_path / "dying_rank.py").write_text(told)
    environment = {**dict(launch.os.environ), "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    assert run_ranks(2, ["dying_rank"], logs=tmp_path / "logs", environment=environment) == 137
    killed = 1 if ending == "signal.SIGKILL" else 0
    assert capsys.readouterr().err == (
        f"rank {killed} of 2 was killed (SIGKILL); the same command goes on from the newest checkpoint\n"
    )


def test_what_gloo_says_of_a_lost_rank_is_kept_in_the_log_alone(tmp_path):
    error = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
    assert is_lost(error)
    assert not is_lost(RuntimeError("size mismatch"))
    log = tmp_path / "rank-0.log"
    assert note_lost(error, log, rank=0) == f"rank 0 lost another rank, and ends; its traceback: {log}"
    assert "pair.cc:534" in log.read_text()


@pytest.mark.parametrize("path", ["/proc/x.json", "{folder}"])
def test_a_run_file_that_cannot_be_written_is_one_line(lake, monkeypatch, capsys, tmp_path, path):
    path = path.format(folder=tmp_path)
    words = ["launch", "warmup", "--scale", "toy", "--store", lake.url, "--write", path]
    monkeypatch.setattr(sys, "argv", words)
    assert launch.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"k25 train: --write {path}: ")
    assert said.endswith("; name a file that can be written\n")


def test_a_run_that_is_trained_already_is_refused_before_its_files_are_written(lake, monkeypatch, capsys, tmp_path):
    run = run_of(lake, monkeypatch, capsys, "warmup", "--scale", "toy")
    assert isinstance(run, Run)
    work = tmp_path / "work"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(plain(replace(run, work=str(work)))))
    words = ["launch", "warmup", "--store", lake.url, "--config", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    with locked(work, run=run.run):
        assert launch.main() == 2
    said = f"k25 train: run {run.run} is being trained already, by process {os.getpid()}, which holds {work}/run.lock"
    assert capsys.readouterr().err.startswith(said)
    assert [each.name for each in work.iterdir()] == ["run.lock"]


def test_more_threads_than_cores_can_run_are_refused(lake, monkeypatch, capsys):
    words = ["launch", "warmup", "--scale", "toy", "--store", lake.url, "--threads", "100000"]
    monkeypatch.setattr(sys, "argv", words)
    assert launch.main() == 2
    assert capsys.readouterr().err.startswith("k25 train: threads is 100000; it must be at most ")
