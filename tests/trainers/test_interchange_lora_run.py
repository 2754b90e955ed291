"""Adapters from a command's options to a folder: trained on a checkpoint, resumed, merged, and the same model after."""

import pytest
import torch

from k25_pipelines.loader import PlanLoader
from k25_pipelines.planning import open_plan
from tests.trainers.conftest import toy_config, train
from trainers.changes import Changes, changed_config
from trainers.checkpoint import load_weights, read_record
from trainers.config import ModelConfig, TrainConfig, checkpoint_key, parse
from trainers.inputs import inputs_of
from trainers.interchange.export import export_checkpoint
from trainers.interchange.importing import import_checkpoint
from trainers.interchange.lora import SIDES, add_adapters
from trainers.interchange.weights import weights_digest
from trainers.model.kimi_k25 import KimiK25

STEPS = 4


@pytest.fixture(scope="module")
def base(lake, one_rank, tmp_path_factory) -> str:
    """A joint model that has taken two steps, exported and imported: all that someone with the folder has."""
    work = tmp_path_factory.mktemp("base")
    train(lake, toy_config(lake, "joint", steps=2), "base", work)
    export_checkpoint(lake, "base/00000002", work / "out")
    return import_checkpoint(lake, work / "out")


@pytest.fixture(scope="module")
def config(lake, base) -> TrainConfig:
    changes = Changes(steps=STEPS, lora_rank=4, learning_rate=0.02, initial={"all": base})
    return changed_config(lake, "joint", scale="toy", changes=changes)


@pytest.fixture(scope="module")
def adapted(lake, config, tmp_path_factory) -> str:
    """The base with adapters after some steps."""
    train(lake, config, "adapted", tmp_path_factory.mktemp("adapted"))
    return checkpoint_key("adapted", STEPS)


def losses(lake, config: TrainConfig, model: KimiK25) -> torch.Tensor:
    """Losses of each token of the plan's step 1."""
    with PlanLoader(open_plan(lake, config.plan), lake, threads=1) as loader, torch.no_grad():
        return model.eval()(inputs_of(loader.batch(1))).target_losses


def model_at(lake, key: str) -> KimiK25:
    """A checkpoint's model, with adapters where it has some."""
    record = read_record(lake, key)
    model = KimiK25(parse(ModelConfig, record["config"]["model"]))
    if record["config"].get("lora"):
        add_adapters(model, parse(TrainConfig, record["config"]).lora)
    model.load_state_dict(load_weights(lake, key))
    return model


def test_adapters_alone_are_trained(lake, base, adapted):
    before, after = load_weights(lake, base), load_weights(lake, adapted)
    assert {name for name in after if name not in before} == {name for name in after if name.endswith(SIDES)}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(after[name].abs().max() > 0 for name in after if name.endswith(SIDES))
    assert weights_digest(before) == read_record(lake, base)["weights"]


def test_the_run_says_that_it_learnt_and_where_it_started(lake, base, config, adapted):
    record = read_record(lake, adapted)
    assert record["parent"] == base
    assert record["config"]["lora"] == {"rank": 4, "alpha": 8.0, "targets": ["attention", "mlp", "projector"]}
    start, end = (losses(lake, config, model_at(lake, key)).mean() for key in (base, adapted))
    assert end < start - 0.02


def test_merged_and_imported_it_is_the_same_model_without_adapters(lake, config, adapted, tmp_path):
    export_checkpoint(lake, adapted, tmp_path / "merged", merge=True)
    key = import_checkpoint(lake, tmp_path / "merged")
    whole, with_adapters = (model_at(lake, each) for each in (key, adapted))
    assert not any(name.endswith(SIDES) for name in whole.state_dict())
    torch.testing.assert_close(losses(lake, config, whole), losses(lake, config, with_adapters), rtol=1e-5, atol=1e-5)


def test_a_run_of_adapters_that_was_left_ends_in_the_same_bits(lake, config, adapted, tmp_path):
    train(lake, config, "torn", tmp_path, stop_at=2)
    record = train(lake, config, "torn", tmp_path)
    assert record["digest"] == read_record(lake, adapted)["digest"]
