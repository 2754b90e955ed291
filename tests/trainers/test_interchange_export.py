"""Export and import: the public classes say the same as ours, and what goes out comes back bit for bit."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from k25_pipelines.errors import CheckpointError, LineageError
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.local import LocalStore
from tests.trainers.batches import Media, batch_of
from tests.trainers.interchange import checkpoint, grown, public_model, tiny
from trainers.checkpoint import load_modules, load_weights, read_record
from trainers.inputs import inputs_of
from trainers.interchange.export import export_checkpoint, export_model
from trainers.interchange.importing import import_checkpoint, import_model
from trainers.interchange.shards import INDEX, sha256_of
from trainers.interchange.weights import weights_digest
from trainers.model.kimi_k25 import KimiK25

pytest.importorskip("transformers")

TOKENIZER = load_tokenizer("default")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WORDS = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
PICTURES = [21, Media(thw=(1, 4, 6), seed=1), 22, 23, Media(thw=(1, 8, 8), seed=2), 24, 25, Media(thw=(1, 2, 10)), 26]


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model, exported in shards of 16 KiB."""
    place = tmp_path_factory.mktemp("whole")
    store, config = LocalStore(str(place / "lake")), tiny(contrastive=True)
    model = grown(config)
    key = checkpoint(store, model.state_dict(), config)
    export_checkpoint(store, key, place / "out", shard_bytes=2**14)
    return place / "out"


def our_logits(model: KimiK25, document: list) -> torch.Tensor:
    """Logits at every place but the last, of one document of words and pictures."""
    length = sum(item.tokens if isinstance(item, Media) else 1 for item in document)
    inputs = inputs_of(batch_of([[document]], length=length))
    merged = model.see(inputs) if len(inputs.slots) else None
    with torch.no_grad():
        return model.logits(inputs, merged)


def their_logits(model, document: list) -> torch.Tensor:
    """The same of a public model, at the places before words."""
    pad = TOKENIZER.special["media_pad"]
    ids = [token for item in document for token in ([pad] * item.tokens if isinstance(item, Media) else [item])]
    media = [item for item in document if isinstance(item, Media)]
    seen = {}
    if media:
        seen["pixel_values"] = torch.from_numpy(np.concatenate([item.patches for item in media]))
        seen["image_grid_thw"] = torch.tensor([item.thw for item in media])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False, **seen).logits[0]
    before_words = [place - 1 for place, token in enumerate(ids) if token != pad and place > 0]
    return logits[before_words]


def test_the_public_classes_load_it_whole_and_give_the_same_logits(folder):
    model, public = grown(tiny(contrastive=True)), public_model(folder)
    for document in (WORDS, PICTURES):
        found = our_logits(model, document)
        assert found.std() > 0.1
        torch.testing.assert_close(their_logits(public, document), found, **CLOSE)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"tied": True, "q_rank": None, "yarn_factor": 1.0, "shared_experts": 2}, "Kimi_K25ForConditionalGeneration"),
        ({"vision": False}, "DeepseekV3ForCausalLM"),
        ({"vision": False, "experts": 0, "tied": True}, "AutoModelForCausalLM"),
    ],
    ids=["tied, plain queries and positions", "text", "dense text"],
)
def test_other_structures_give_the_same_logits_too(tmp_path, changes, kind):
    config = tiny(**changes)
    model = grown(config)
    export_model(model, config, TOKENIZER, tmp_path / "out")
    torch.testing.assert_close(
        their_logits(public_model(tmp_path / "out", kind), WORDS), our_logits(model, WORDS), **CLOSE
    )


def test_the_folder_holds_what_the_release_holds_and_says_where_it_comes_from(folder):
    index, lineage = (json.loads((folder / name).read_text()) for name in (INDEX, "lineage.json"))
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    assert len(shards) > 3
    beside = {
        "README.md", "config.json", "generation_config.json", "lineage.json", INDEX, "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json",
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {*shards, *beside}
    assert lineage["files"] == {
        name: sha256_of(folder / name) for name in {*shards, *beside} - {"README.md", "lineage.json"}
    }
    assert {key: lineage[key] for key in ("checkpoint", "digest", "step", "segments", "left_out")} == {
        "checkpoint": "k25/checkpoints/joint-1/00000070",
        "digest": "d" * 32,
        "step": 70,
        "segments": ["5" * 32],
        "left_out": ["contrastive"],
    }
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("joint-1/00000070", lineage["weights"], "`" + "d" * 32 + "`", *shards))
    whole = {name: value for shard in shards for name, value in load_file(folder / shard).items()}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    assert index["weight_map"].keys() == whole.keys()


def test_a_stage_starts_from_what_was_imported_and_its_weights_have_the_same_digest(folder, store):
    key = import_checkpoint(store, folder)
    model, trained = KimiK25(tiny(), seed=99), grown(tiny(contrastive=True))
    load_modules(model, store, dict.fromkeys(("vision", "projector", "language"), key))
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    record = read_record(store, key)
    assert record["weights"] == weights_digest(trained.state_dict()) == weights_digest(load_weights(store, key))
    assert record["weights"] == json.loads((folder / "lineage.json").read_text())["weights"]
    assert (record["run"], record["step"], record["tokenizer"]) == (key.split("/")[2], 0, TOKENIZER.digest)
    assert load_tokenizer(record["tokenizer"], store).file == TOKENIZER.file


def test_the_same_folder_is_the_same_checkpoint(folder, store):
    assert import_checkpoint(store, folder) == import_checkpoint(store, folder)
    assert len([i for i in store.list("k25/checkpoints/") if i.key.endswith("record.json")]) == 1


def test_exporting_what_was_imported_gives_the_same_files(folder, store, tmp_path):
    export_checkpoint(store, import_checkpoint(store, folder), tmp_path / "again", shard_bytes=2**14)
    for path in folder.iterdir():
        if path.name not in ("README.md", "lineage.json"):  # they tell of the import
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_narrow_weights_come_back_in_their_own_types(store, tmp_path):
    config = tiny()
    key = checkpoint(store, grown(config).state_dict(), config)
    export_checkpoint(store, key, tmp_path / "narrow", dtype="bfloat16")
    export_checkpoint(store, import_checkpoint(store, tmp_path / "narrow"), tmp_path / "again")
    first, again = (load_file(tmp_path / name / "model-00001-of-00001.safetensors") for name in ("narrow", "again"))
    assert {name for name, value in first.items() if value.dtype != torch.bfloat16} == {
        f"language_model.model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2)
    }
    assert first.keys() == again.keys()
    assert all(again[name].dtype == value.dtype and torch.equal(again[name], value) for name, value in first.items())
    assert json.loads((tmp_path / "again/config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_appears_whole_or_not_at_all(store, tmp_path):
    config = tiny()
    key = checkpoint(store, grown(config).state_dict(), config)
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished/half").write_text("of an attempt that was killed")

    def stop(done: int, total: int, what: str) -> None:
        if what.endswith(".safetensors"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(store, key, tmp_path / "out", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["lake"]
    export_checkpoint(store, key, tmp_path / "out")
    with pytest.raises(CheckpointError, match="out is there already; name a new folder"):
        export_checkpoint(store, key, tmp_path / "out")
    assert not (tmp_path / "out/half").exists()


def test_what_cannot_be_exported_is_told_before_a_folder_is_made(store, tmp_path):
    config = tiny()
    state = grown(config).state_dict()
    checkpoint(store, state, config)
    small = tiny(vocab=100)
    checkpoint(store, grown(small).state_dict(), small, run="small-1")
    with pytest.raises(LineageError, match=r"no checkpoint 'joint-2/00000070'; did you mean .*joint-1/00000070"):
        export_checkpoint(store, "joint-2/00000070", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the model's vocab is 100"):
        export_checkpoint(store, "small-1/00000070", tmp_path / "out")
    with pytest.raises(CheckpointError, match="has no adapters to merge; leave out --merge"):
        export_checkpoint(store, "joint-1/00000070", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def changed(folder, change: Callable[[dict], None]) -> None:
    """Rewrite the lone shard of a folder."""
    path = folder / "model-00001-of-00001.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(weights, path.name)
    (folder / INDEX).write_text(json.dumps(index))


BLOCK = "language_model.model.layers.1.mlp"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(f"{BLOCK}.experts.3.up_proj.weight"), r"missing: .*experts\.3\.up_proj\.weight$"),
        (lambda w: w.update({"mtp.weight": torch.zeros(2)}), r"disagree; not of this model: mtp\.weight$"),
        (
            lambda w: w.update({"mm_projector.proj.2.bias": torch.zeros(5)}),
            r"of another shape: mm_projector\.proj\.2\.bias \[5\], by config\.json \[32\]$",
        ),
        (
            lambda w: w.update({f"{BLOCK}.experts.0.up_proj.weight_packed": torch.zeros(20, 4, dtype=torch.int32)}),
            r"experts\.0\.up_proj: packed, and without \.weight_scale, \.weight_shape; complete the folder",
        ),
        (
            lambda w: w.update({f"{BLOCK}.gate.weight": torch.zeros(6, 32, dtype=torch.float64)}),
            r"gate\.weight is of type F64; weights are F32, BF16, F16",
        ),
    ],
    ids=["missing", "unexpected", "shape", "packed", "type"],
)
def test_a_folder_that_does_not_fit_its_config_is_refused_by_name(store, tmp_path, change, said):
    config = tiny()
    export_model(grown(config), config, TOKENIZER, tmp_path / "out")
    changed(tmp_path / "out", change)
    with pytest.raises(CheckpointError, match=said):
        import_checkpoint(store, tmp_path / "out")
    assert list(store.list("k25/")) == []


def test_a_folder_that_is_not_whole_is_refused(folder, store, tmp_path):
    for name, data in {path.name: path.read_bytes() for path in folder.iterdir()}.items():
        (tmp_path / name).write_bytes(data)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"00002-of.*: not whole safetensors"):
        import_model(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-\d+\.safetensors is missing"):
        import_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        import_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json is missing; give a folder"):
        import_model(tmp_path / "nowhere")
