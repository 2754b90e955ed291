"""From a trained checkpoint to a folder and on: the plan's tokenizer goes along, and another stage starts from it."""

import json

import pytest
import torch

from k25_pipelines.planning import open_plan
from tests.trainers.conftest import toy_config, train
from tests.trainers.interchange import public_model
from trainers.checkpoint import load_weights, read_record
from trainers.config import ModelConfig, checkpoint_key, parse
from trainers.interchange.export import export_checkpoint
from trainers.interchange.importing import import_checkpoint
from trainers.interchange.weights import weights_digest
from trainers.model.attention import causal_groups
from trainers.model.kimi_k25 import KimiK25

WORDS = torch.tensor([101, 102, 103, 104, 105, 106, 107])


def test_a_trained_checkpoint_is_exported_loaded_by_others_and_trained_on(lake, one_rank, tmp_path):
    pytest.importorskip("transformers")
    config = toy_config(lake, "vit", steps=2)
    record = train(lake, config, "first", tmp_path)
    key = checkpoint_key("first", 2)
    lineage = export_checkpoint(lake, "first/00000002", tmp_path / "out")
    told = ("checkpoint", "digest", "plan", "segments", "code_version", "left_out", "tokenizer")
    assert {name: lineage[name] for name in told} == {
        "checkpoint": key,
        **{name: record[name] for name in ("digest", "plan", "segments", "code_version")},
        "left_out": ["contrastive"],
        "tokenizer": open_plan(lake, config.plan).tokenizer,
    }
    model = KimiK25(parse(ModelConfig, record["config"]["model"]))
    model.load_state_dict(load_weights(lake, key))
    with torch.no_grad():
        groups = causal_groups(torch.tensor([len(WORDS)]).numpy())
        hidden = model.eval().language(model.language.embed_tokens(WORDS), torch.arange(len(WORDS)), groups)
        theirs = public_model(tmp_path / "out")(input_ids=WORDS[None], use_cache=False).logits[0]
        torch.testing.assert_close(theirs, model.language.logits(hidden), rtol=1e-5, atol=1e-5)

    imported = import_checkpoint(lake, tmp_path / "out")
    assert weights_digest(load_weights(lake, imported)) == lineage["weights"]
    assert read_record(lake, imported)["parent"] == key
    parts = dict.fromkeys(("vision", "language"), imported)
    onward = train(lake, toy_config(lake, "projector", steps=2, initial=parts), "second", tmp_path)
    weights, before = load_weights(lake, checkpoint_key("second", 2)), load_weights(lake, key)
    frozen = [name for name in weights if name.startswith(tuple(parts)) and "correction_bias" not in name]
    assert all(torch.equal(weights[name], before[name]) for name in frozen)
    assert (onward["parent"], json.loads((tmp_path / "out/lineage.json").read_text())["weights"]) == (
        imported,
        lineage["weights"],
    )
