"""Folders and checkpoints that are broken or contradict themselves are refused by name, in and out."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from k25_pipelines.errors import CheckpointError
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.local import LocalStore
from tests.trainers.interchange import checkpoint, grown, tiny
from trainers.config import plain
from trainers.interchange import export, importing
from trainers.interchange.export import dry_run, export_checkpoint, export_model
from trainers.interchange.importing import import_checkpoint
from trainers.interchange.lora import WEIGHTS, add_adapters
from trainers.interchange.lora_config import LoraConfig
from trainers.interchange.shards import INDEX

CONFIG = tiny()
LORA = LoraConfig(rank=4, alpha=8.0)
OUT_OF_PLACE = "language.layers.1.mlp.experts.down"
RELEASED = "language_model.model.layers.1.mlp.experts.0.down_proj.weight"


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(str(tmp_path / "lake"))


@pytest.fixture
def folder(tmp_path) -> Path:
    export_model(grown(CONFIG), CONFIG, load_tokenizer("default"), tmp_path / "out")
    return tmp_path / "out"


def rewritten(path: Path, change: Callable[[dict], Any]) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def with_value(value: float, *, adapters: bool = False) -> dict[str, torch.Tensor]:
    """Weights of a model with one value of another kind, in an expert or in an adapter."""
    model = grown(CONFIG)
    if adapters:
        add_adapters(model, LORA)
    state = model.state_dict()
    state["projector.proj.0.lora_B" if adapters else OUT_OF_PLACE].view(-1)[3] = value
    return state


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("{}", "lacks weight_map"),
        ('{"weight_map": [1]}', "has a weight_map of [1]; it maps each tensor's name to its file"),
        ('{"weight_map": {}}', "has a weight_map of {}"),
        ('{"weight_map": {"a": 1}}', "weight_map.a is 1; it must be the name of a file beside it"),
        ('{"weight_map": {"a": "../out/config.json"}}', "weight_map.a is '../out/config.json'; it must be the name"),
        ('{"weight_map": {"a": "nowhere.safetensors"}}', "nowhere.safetensors is missing"),
        ("[]", "is no JSON mapping"),
    ],
)
def test_a_broken_index_is_refused_by_file_and_field(folder, store, monkeypatch, capsys, told, said):
    (folder / INDEX).write_text(told)
    monkeypatch.setattr("sys.argv", ["program", str(folder), "--store", store.url])
    assert importing.main() == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"k25 import: {folder}/")
    assert said in errors[0]
    assert re.search("; (copy the folder anew|complete the folder|and .* names it; complete the folder)$", errors[0])


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        (None, "vision_config", None, "vision_config is None; it must be a mapping"),
        (None, "text_config", None, "text_config is None; it must be a mapping"),
        (None, "k25", [1], "k25 is [1]; it must be a mapping"),
        (None, "k25", {"name": 3}, "k25.name is 3; it must be words"),
        (None, "quantization_config", "int4", "quantization_config is 'int4'; it must be a mapping"),
        (None, "tie_word_embeddings", "x", "tie_word_embeddings is 'x' and text_config.tie_word_embeddings is False"),
        ("text_config", "rope_theta", "x", "rope_theta is 'x'; it must be a finite number"),
        ("text_config", "rope_theta", math.nan, "rope_theta is nan; it must be a finite number"),
        ("text_config", "rope_theta", 10**400, "it must be a finite number"),
        ("text_config", "rope_theta", 1e20, "language.rope_theta is 1e+20; it must be above 1 and at most 1e+12"),
        ("text_config", "routed_scaling_factor", math.inf, "routed_scaling_factor is inf; it must be a finite number"),
        ("text_config", "rope_scaling", "yarn", "rope_scaling is 'yarn'; it must be a mapping"),
        ("text_config", "kv_lora_rank", None, "kv_lora_rank is None; it must be a whole number"),
        ("text_config", "num_hidden_layers", "2", "num_hidden_layers is '2'; it must be a whole number"),
        ("text_config", "hidden_size", True, "hidden_size is True; it must be a whole number"),
        ("vision_config", "merge_kernel_size", 2, "merge_kernel_size is 2; it must be a square"),
        ("vision_config", "vt_hidden_size", 33, "vision_config.hidden_size is 32 and vision_config.vt_hidden_size"),
        ("vision_config", "pos_emb_width", 9, "vision_config.pos_emb_height is 8 and vision_config.pos_emb_width is 9"),
        ("vision_config", "text_hidden_size", 33, "vision_config.text_hidden_size is 33 and hidden_size is 32"),
        ("text_config", "tie_word_embeddings", True, "tie_word_embeddings is False and text_config.tie_word_embedd"),
        (None, "media_placeholder_token_id", 9, "media_placeholder_token_id is 9, and the tokenizer's media_pad token"),
        (None, "image_token_id", None, "image_token_id is None, and the tokenizer's media_pad token"),
    ],
)  # fmt: skip
def test_a_config_that_is_broken_or_contradicts_itself_is_refused_by_key(folder, store, part, key, value, said):
    rewritten(folder / "config.json", lambda told: (told[part] if part else told).update({key: value}))
    with pytest.raises(CheckpointError, match=re.escape(said)) as refused:
        import_checkpoint(store, folder)
    assert "config.json: " in str(refused.value)
    assert list(store.list("k25/")) == []


def test_tied_embeddings_may_be_told_in_the_text_config_alone(tmp_path, store):
    config = tiny(tied=True)
    export_model(grown(config), config, load_tokenizer("default"), tmp_path / "out")
    rewritten(tmp_path / "out/config.json", lambda told: told.pop("tie_word_embeddings"))
    import_checkpoint(store, tmp_path / "out")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_import_names_a_weight_that_is_no_number(folder, store, value):
    from safetensors.torch import load_file, save_file

    path = folder / "model-00001-of-00001.safetensors"
    weights = load_file(path)
    weights[RELEASED][1, 2] = value
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(RELEASED)} has a value that is no finite number: {value}"):
        import_checkpoint(store, folder)
    assert list(store.list("k25/")) == []


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (math.nan, None, "has a value that is no finite number: nan; export a checkpoint from before"),
        (1e30, "float16", "has a value that is no finite number: inf; it does not fit F16"),
    ],
)
def test_an_export_and_its_dry_run_name_the_first_weight_that_is_no_number(tmp_path, store, value, dtype, said):
    key = checkpoint(store, with_value(value), CONFIG)
    for act in (
        lambda: export_checkpoint(store, key, tmp_path / "out", dtype=dtype),
        lambda: dry_run(store, key, dtype=dtype),
    ):
        with pytest.raises(CheckpointError, match=re.escape(f"{RELEASED} {said}")):
            act()
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_that_are_no_numbers_are_not_exported(tmp_path, store, merge):
    key = checkpoint(store, with_value(math.nan, adapters=True), CONFIG, lora=plain(LORA))
    for act in (
        lambda: export_checkpoint(store, key, tmp_path / "out", merge=merge),
        lambda: dry_run(store, key, merge=merge),
    ):
        with pytest.raises(
            CheckpointError, match=r"proj\.0\.(weight|lora_B) has a value that is no finite number: nan"
        ):
            act()


def test_a_dry_run_of_adapters_says_what_goes_out_alone_and_merged(tmp_path, store):
    from safetensors.torch import load_file

    key = checkpoint(store, with_value(0.5, adapters=True), CONFIG, lora=plain(LORA))
    export_checkpoint(store, key, tmp_path / "alone")
    export_checkpoint(store, key, tmp_path / "whole", merge=True)
    adapters = load_file(tmp_path / "alone" / WEIGHTS)
    said = dry_run(store, key)
    assert said["weight_map"] == dict.fromkeys(sorted(adapters), WEIGHTS)
    assert said["metadata"]["total_size"] == sum(value.nbytes for value in adapters.values())
    assert dry_run(store, key, merge=True) == json.loads((tmp_path / "whole" / INDEX).read_text())


def test_a_dry_run_refuses_what_an_export_refuses(tmp_path, store, monkeypatch, capsys):
    key = checkpoint(store, grown(CONFIG).state_dict(), CONFIG)
    small = checkpoint(store, grown(tiny(vocab=100)).state_dict(), tiny(vocab=100), run="small-1")
    monkeypatch.setattr("sys.argv", ["program", "joint-1/00000070", "--dry-run", "--merge", "--store", store.url])
    assert export.main() == 2
    assert "has no adapters to merge; leave out --merge" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"toy is a model's name, and has no adapters to merge"):
        dry_run(store, "toy", merge=True)
    with pytest.raises(CheckpointError, match=r"the model's vocab is 100"):
        dry_run(store, small)
    store.delete(f"{key}/weights.npz")
    with pytest.raises(CheckpointError, match=r"weights\.npz is gone, and its record names it"):
        dry_run(store, key)
