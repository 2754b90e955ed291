"""What cannot work is refused by the name of its field, before anything is computed or read."""

from dataclasses import replace
from typing import Any

import pytest

from k25_pipelines.planning import open_plan
from tests.trainers.conftest import as_one_rank, toy_config
from trainers import checks, pretrain
from trainers.config import ParallelConfig, Run, TrainConfig, check_config
from trainers.engine import OPTIMIZERS
from trainers.interchange.lora_config import LoraConfig
from trainers.model.recompute import PARTS
from trainers.recipes import stage_config

CONFIG = replace(stage_config("warmup", "toy", plan="p"), optimizer="muonclip")
RUN = Run(config=CONFIG, store="nowhere", run="r", work="w")


def with_language(**fields: Any) -> TrainConfig:
    return replace(CONFIG, model=replace(CONFIG.model, language=replace(CONFIG.model.language, **fields)))


def test_the_words_of_the_checks_are_those_of_the_modules_that_need_torch():
    assert checks.OPTIMIZERS == OPTIMIZERS
    assert checks.RECOMPUTE_PARTS == PARTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "sgd"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("qk_clip_threshold", 0.0),
        ("gradient_clip", -1.0),
        ("weight_decay", -0.1),
        ("caption_weight", -1.0),
        ("muon_momentum", 1.0),
        ("final_learning_rate", 1.5),
        ("warmup_steps", 7),
        ("checkpoint_every", -1),
    ],
)
def test_a_field_that_no_step_can_be_taken_with_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^config\.{field} is {value}; it must be "):
        check_config(replace(CONFIG, **{field: value}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"betas": (0.9, 1.0)}, r"config\.betas\[1\] is 1\.0"),
        ({"caption_weight": 0.0}, r"config\.caption_weight and config\.contrastive_weight are 0"),
        ({"lora": LoraConfig(), "optimizer": "muonclip"}, r"config\.optimizer is muonclip; it must be adamw where"),
        ({"lora": LoraConfig(rank=0), "optimizer": "adamw"}, r"lora\.rank is 0"),
    ],
)
def test_fields_that_contradict_each_other_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        check_config(replace(CONFIG, **change))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"heads": 0}, r"language\.heads is 0"),
        ({"head_rope": 7}, r"language\.head_rope is 7"),
        ({"experts_per_token": 9}, r"language\.experts_per_token is 9"),
        ({"expert_mlp": 0}, r"language\.expert_mlp is 0"),
        ({"dense_layers": 2}, r"language\.dense_layers is 2"),
        ({"yarn_factor": 0.5}, r"language\.yarn_factor is 0\.5"),
    ],
)
def test_a_model_that_cannot_work_is_named(fields, named):
    with pytest.raises(ValueError, match=named):
        check_config(with_language(**fields))


@pytest.mark.parametrize(
    ("change", "ranks", "named"),
    [
        ({"threads": 0}, 1, "threads is 0"),
        ({"stop_at": 7}, 1, "stop_at is 7"),
        ({"recompute": ("norm", "attention")}, 1, "recompute is attention; it must be some of norm, swiglu, mla_up"),
        ({"parallel": ParallelConfig(expert_ranks=0)}, 1, r"parallel\.expert_ranks is 0"),
        ({"parallel": ParallelConfig(expert_ranks=3)}, 3, r"parallel\.expert_ranks is 3"),
        ({"parallel": ParallelConfig(expert_ranks=2)}, 3, r"3 ranks .* parallel\.expert_ranks \(2\)"),
        ({"parallel": ParallelConfig(pipeline_stages=2)}, 2, r"parallel\.pipeline_stages .*language\.layers"),
        ({"parallel": ParallelConfig(pipeline_stages=2, virtual_stages=1)}, 3, r"parallel\.pipeline_stages"),
        (
            {"config": replace(CONFIG, optimizer="adamw"), "parallel": ParallelConfig(expert_ranks=2)},
            2,
            r"config\.optimizer is 'adamw'",
        ),
    ],
)
def test_a_run_that_so_many_ranks_cannot_share_is_named(change, ranks, named):
    with pytest.raises(ValueError, match=named):
        checks.check_run(replace(RUN, **change), ranks)


@pytest.mark.parametrize("change", [{"parallel": ParallelConfig(expert_ranks=2)}, {"threads": 0}])
def test_a_run_file_is_refused_before_the_store_is_opened(monkeypatch, change):
    monkeypatch.setattr(pretrain, "open_store", None)  # whoever opens it fails otherwise
    with as_one_rank(), pytest.raises(ValueError, match=r"parallel\.expert_ranks|threads"):
        pretrain.main(replace(RUN, **change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"language": {"context": 128}}, r"language\.context is 128 .* give a yarn_factor of 2"),
        ({"language": {"vocab": 100}}, r"config\.model\.language\.vocab is 100"),
        ({"vision": {"patch": 16}}, r"config\.model\.vision\.patch is 16; it must be 14"),
        ({"vision": {"max_frames": 2}}, r"config\.model\.vision\.max_frames is 2; it must be 4"),
        ({"steps": 1000}, r"config\.steps is 1000, and plan .* has 10"),
    ],
)
def test_a_config_that_does_not_fit_its_plan_is_refused_before_a_model_is_built(
    lake, monkeypatch, tmp_path, change, named
):
    config = toy_config(lake, "joint")
    assert open_plan(lake, config.plan).num_steps == 10
    parts = {name: replace(getattr(config.model, name), **told) for name, told in change.items() if name != "steps"}
    config = replace(config, model=replace(config.model, **parts), steps=change.get("steps", config.steps))
    monkeypatch.setattr(pretrain, "KimiK25", None)
    with as_one_rank(), pytest.raises(ValueError, match=named):
        pretrain.main(Run(config=config, store=lake.url, run="unfit", work=str(tmp_path)))


def test_ranks_that_never_have_a_pack_are_told(lake):
    config = toy_config(lake, "joint")
    run, plan = Run(config=config, store=lake.url, run="r", work="w"), open_plan(lake, config.plan)
    packs = plan.recipe.packs_per_step
    staged = replace(run, parallel=ParallelConfig(pipeline_stages=2))
    assert [checks.idle_ranks(run, plan, packs), checks.idle_ranks(staged, plan, 2 * packs)] == [None, None]
    said = f"3 of {packs + 3} ranks never have a pack: plan {plan.id} has packs_per_step {packs}; start at most {packs}"
    assert (checks.idle_ranks(run, plan, packs + 3) or "").startswith(said)


def test_far_more_threads_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    checks.check_machine(replace(RUN, threads=8))
    with pytest.raises(ValueError, match="threads is 9; it must be at most 8 on this machine's 2 cores"):
        checks.check_machine(replace(RUN, threads=9))
