"""Two ranks for real: torchrun, gloo and ZeRO-1, against one rank and against themselves. One spawn, many questions."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.conftest import as_one_rank, toy_config, train
from trainers.checkpoint import load_weights
from trainers.config import plain
from trainers.engine import Engine
from trainers.pretrain import build_model
from trainers.recipes import PROBE_STEPS

ROOT = Path(__file__).resolve().parent.parent.parent
CLOSE = {"rel": 2e-5, "abs": 0}
LAYOUTS: dict[str, dict[str, Any]] = {
    "muon-experts": {"expert_ranks": 2},
    "muon-pipeline": {"pipeline_stages": 2, "virtual_stages": 1},
    "muon-coupled": {"decoupled_vision": False},
}
"""Other ways to share the same run, each left and resumed."""
STOP = 3
"""Where the torn run is left; between two checkpoints of the config."""


@pytest.fixture(scope="module")
def joint(lake):
    """Pictures and words on random weights; two ranks get one and two of the three packs."""
    recipe = {"name": "three-packs", "packs_per_step": 3, "steps": 6 + PROBE_STEPS}
    return toy_config(lake, "joint", recipe=recipe, steps=6, checkpoint_every=2, optimizer="adamw")


@pytest.fixture(scope="module")
def muon(joint):
    """The same under MuonClip, with a threshold that clips."""
    return replace(joint, optimizer="muonclip", qk_clip_threshold=0.5)


@pytest.fixture(scope="module")
def vit(lake):
    """Pictures with captions, compared; each rank has a pack."""
    return toy_config(lake, "vit")


@pytest.fixture(scope="module")
def one_pack(lake):
    """The same with one pack a step: a rank has nothing to see, and yet its part of each gradient."""
    recipe = {"name": "one-pack", "packs_per_step": 1, "steps": 4}
    return toy_config(lake, "vit", recipe=recipe, steps=4, warmup_steps=0)


@pytest.fixture(scope="module")
def alone(lake, joint, muon, vit, one_pack, one_rank, tmp_path_factory) -> None:
    """The runs on one rank: `joint-alone`, `muon-alone`, `vit-alone`, `one-pack-alone`."""
    work = tmp_path_factory.mktemp("alone")
    for name, config in (("joint", joint), ("muon", muon), ("vit", vit), ("one-pack", one_pack)):
        train(lake, config, f"{name}-alone", work)


@pytest.fixture(scope="module")
def ranks(lake, joint, muon, vit, one_pack, tmp_path_factory) -> list[dict]:
    """What both ranks saw of some steps, after joint and muon (whole; left and resumed), vit, one-pack."""
    out = tmp_path_factory.mktemp("two-ranks")

    def run(name: str, config, **more: Any) -> dict:
        return {"config": plain(config), "store": lake.url, "run": name, "work": str(out / name), "threads": 1, **more}

    runs = [run("vit", vit), run("one-pack", one_pack)]
    for name, config in (("joint", joint), ("muon", muon)):
        runs += [run(f"{name}-whole", config), run(f"{name}-torn", config, stop_at=STOP), run(f"{name}-torn", config)]
    for name, parallel in LAYOUTS.items():
        runs += [run(name, muon, parallel=parallel, stop_at=STOP), run(name, muon, parallel=parallel)]
    told = {
        "runs": runs,
        "look": run("look", joint),
        "out": str(out),
    }
    (out / "plan.json").write_text(json.dumps(told))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.trainers.two_ranks", str(out / "plan.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def history(lake, run: str, step: int = 6) -> list[dict]:
    return [json.loads(line) for line in lake.get(f"k25/checkpoints/{run}/{step:08d}/metrics.jsonl").splitlines()]


def record(lake, run: str, step: int = 6) -> dict:
    return json.loads(lake.get(f"k25/checkpoints/{run}/{step:08d}/record.json"))


def column(lines: list[dict], name: str) -> list:
    return [line[name] for line in lines]


def test_each_rank_keeps_the_optimizer_state_of_half_of_the_weights(ranks):
    trained = ranks[0]["trained_elements"]
    parts = column(ranks, "optimizer_elements")
    assert sum(parts) == pytest.approx(trained, rel=1e-3)  # what is over is alignment
    assert parts == pytest.approx([trained / 2] * 2, rel=1e-3)


@pytest.mark.parametrize("name", ["joint", "muon"])
def test_each_rank_writes_its_own_optimizer_partition_into_the_checkpoint(lake, ranks, name):
    assert sorted(record(lake, f"{name}-whole")["files"]) == [
        "engine/mp_rank_00_model_states.pt",
        "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "engine/zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "metrics.jsonl",
        "spikes.jsonl",
        "timings.jsonl",
        "weights.npz",
    ]


def test_three_packs_are_shared_by_two_ranks_and_both_know_the_same_step(lake, ranks):
    assert column(ranks, "packs") == [[1, 1, 2], [2, 2, 1]]  # by cost: pictures cost more than words
    assert ranks[0]["digests"] == ranks[1]["digests"] == column(history(lake, "joint-whole"), "digest")[:3]
    assert ranks[0]["losses"] == ranks[1]["losses"] == column(history(lake, "joint-whole"), "loss")[:3]
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_loads_of_experts_are_added_up_without_padding_and_the_largest_logit_is_that_of_both(joint, ranks):
    places = sum(column(ranks, "places")) * joint.model.language.experts_per_token
    assert [sum(load) for load in ranks[0]["expert_loads"]] == [places] * len(ranks[0]["expert_loads"])
    assert ranks[0]["expert_loads"] == ranks[1]["expert_loads"] != []
    assert ranks[0]["max_logit"] == ranks[1]["max_logit"]


@pytest.mark.parametrize("run", ["joint", "muon"])
def test_two_ranks_read_what_one_reads_and_learn_what_one_learns(lake, alone, ranks, run):
    one, two = history(lake, f"{run}-alone"), history(lake, f"{run}-whole")
    for name in ("digest", "tokens", "vision_tokens", "vision_share", "targets", "learning_rate"):
        assert column(two, name) == column(one, name)
    assert [[sum(patches)] for patches in column(two, "patches")] == column(one, "patches")
    assert column(two, "loss") == pytest.approx(column(one, "loss"), **CLOSE)
    assert column(two, "gradient_norm") == pytest.approx(column(one, "gradient_norm"), rel=1e-3)
    assert [two[0]["probe_before"], two[-1]["probe_after"]] == pytest.approx(
        [one[0]["probe_before"], one[-1]["probe_after"]], **CLOSE
    )
    assert sum(column(one, "vision_tokens")) > 0


def test_the_contrastive_stage_compares_the_pairs_of_all_ranks(lake, alone, ranks):
    one, two = history(lake, "vit-alone"), history(lake, "vit")
    assert column(two, "digest") == column(one, "digest")
    assert column(two, "pairs") == column(one, "pairs")
    for name in ("loss", "caption_loss", "contrastive_loss", "gradient_norm"):
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-3), name


def test_a_rank_that_has_nothing_to_see_changes_nothing(lake, alone, ranks):
    one, two = history(lake, "one-pack-alone", 4), history(lake, "one-pack", 4)
    assert column(two, "digest") == column(one, "digest")
    for name in ("loss", "caption_loss", "contrastive_loss"):
        assert column(two, name) == pytest.approx(column(one, name), **CLOSE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_however_two_ranks_share_a_run_they_learn_what_one_learns(lake, alone, ranks, name):
    one, two = history(lake, "muon-alone"), history(lake, name)
    for figure in ("digest", "tokens", "vision_tokens", "targets", "clipped_heads"):
        assert column(two, figure) == column(one, figure)
    assert [sum(line["patches"]) for line in two] == [sum(line["patches"]) for line in one]
    for figure in ("loss", "gradient_norm", "max_logit"):
        assert column(two, figure) == pytest.approx(column(one, figure), rel=1e-3)
    assert two[-1]["probe_after"] == pytest.approx(one[-1]["probe_after"], rel=1e-4)
    weights = [load_weights(lake, f"k25/checkpoints/{run}/00000006") for run in ("muon-alone", name)]
    assert {n: w.shape for n, w in weights[0].items()} == {n: w.shape for n, w in weights[1].items()}


@pytest.mark.parametrize("name", ["joint", "muon"])
def test_a_run_resumed_on_two_ranks_ends_in_the_same_bits(lake, ranks, name):
    assert [each["step"] for each in history(lake, f"{name}-torn", STOP)] == list(range(STOP))
    assert history(lake, f"{name}-torn") == history(lake, f"{name}-whole")
    torn, whole = record(lake, f"{name}-torn"), record(lake, f"{name}-whole")
    assert torn["digest"] == whole["digest"]
    assert torn["files"]["weights.npz"] == whole["files"]["weights.npz"]


def test_a_checkpoint_of_two_ranks_is_not_resumed_on_one(lake, joint, ranks, one_rank, tmp_path):
    from k25_pipelines.errors import CheckpointError

    with pytest.raises(CheckpointError, match="joint-whole/00000006 was saved on 2 ranks, this is a group of 1"):
        train(lake, joint, "joint-whole", tmp_path)


def test_the_states_of_two_ranks_under_muonclip_go_on_in_an_engine_of_one(lake, muon, ranks, one_rank, tmp_path):
    key = "k25/checkpoints/muon-whole/00000006"
    for name in record(lake, "muon-whole")["files"]:
        if name.startswith("engine/"):
            (tmp_path / "engine").mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(lake.get(f"{key}/{name}"))
    with as_one_rank():
        engine = Engine(build_model(muon, lake), muon)
        engine.load(tmp_path)
        engine.save(tmp_path / "again")
    weights = load_weights(lake, key)
    assert all(torch.equal(value, weights[name]) for name, value in engine.model.state_dict().items())
    folders = (tmp_path / "engine", tmp_path / "again" / "engine")
    two, one = ([torch.load(each, weights_only=True) for each in sorted(f.glob("zero*"))] for f in folders)
    assert [len(two), len(one), one[0]["steps"]] == [2, 1, 6]
    momentum = {name: each for part in two for name, each in part["momentum"].items()}
    assert one[0]["momentum"].keys() == momentum.keys()
    assert all(torch.equal(each, momentum[name]) for name, each in one[0]["momentum"].items())
    elements = sum(weight.numel() for weight in engine.model.parameters())
    moments = [len(mean) for part in two for _, _, mean, _ in part["moments"]]
    assert sum(moments) + sum(each.numel() for each in momentum.values()) == elements == engine.partition_elements()
