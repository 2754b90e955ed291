"""`k25 register`, `index` and `stats`, as a user runs them on every kind."""

import hashlib
import json
import re

import numpy as np
import pytest

from k25_pipelines.catalog.contents import content_ids
from k25_pipelines.catalog.registry import KINDS, load_manifest
from k25_pipelines.storage.store import open_store
from tests.catalog.conftest import json_bytes, json_lines, parquet, picture, tar

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LARGE = picture(64, 64) + bytes(300_000)
OBJECTS = {
    "webdataset": {"0.tar": tar({"a.jpg": LARGE, "a.json": json_bytes({"annotations": [{"bbox": [0, 0, 9, 9]}]})})},
    "images": {"a.jpg": picture()},
    "parquet": {"0.parquet": parquet({"text": ["words"]})},
    "jsonl": {"0.jsonl": json_lines({"text": "words"})},
    "text": {"a.txt": b"words"},
    "chat": {"0.jsonl": json_lines(TALK)},
    "interleaved": {"0.jsonl": json_lines({"content": [{"type": "text", "text": "words"}]})},
}


@pytest.fixture
def lake(tmp_path, monkeypatch):
    """A lake in a folder, with raw data of each kind, which `k25` finds by its environment."""
    monkeypatch.setenv("K25_LAKE", str(tmp_path / "lake"))
    made = open_store(str(tmp_path / "lake"))
    for kind, objects in OBJECTS.items():
        for key, data in objects.items():
            made.put(f"raw/{kind}/{key}", data)
    return made


def register(k25, lake, kind: str):
    uri = f"{lake.url}/raw/{kind}"
    return k25("register", kind, uri, "--kind", kind, "--licence", "MIT", "--source", "made here")


def test_the_help_names_every_kind(k25):
    said = k25("register", "--help").stdout
    assert [kind for kind in KINDS if not re.search(rf"\b{kind}:", said)] == []


@pytest.mark.parametrize("kind", sorted(OBJECTS))
def test_a_dataset_of_each_kind_is_registered_and_indexed(k25, lake, kind):
    assert register(k25, lake, kind).returncode == 0
    done = k25("index", kind)
    manifest = load_manifest(lake, kind)
    assert (done.returncode, done.stdout) == (0, f"{manifest.digest}\n")
    assert (manifest.num_lines, int(manifest.quarantined.sum())) == (1, 0)


def test_deep_names_every_medium_and_stats_count_annotations(k25, lake):
    register(k25, lake, "webdataset")
    k25("index", "webdataset")
    manifest = load_manifest(lake, "webdataset")
    assert content_ids(lake, manifest) == [None, None]
    done = k25("index", "webdataset", "--deep")
    assert (done.returncode, done.stdout) == (0, f"{manifest.digest}\n")
    assert content_ids(lake, manifest) == [hashlib.sha256(LARGE).hexdigest(), None]
    assert json.loads(k25("stats", "webdataset", "--json").stdout)["annotations"] == {"boxes": 1}


def test_tokens_keeps_the_ids_of_text(k25, lake):
    from k25_pipelines.sample.token_cache import open_token_cache
    from k25_pipelines.sample.tokens import load_tokenizer

    register(k25, lake, "jsonl")
    done = k25("index", "jsonl", "--tokens", "default")
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer("default")
    cache = open_token_cache(lake, load_manifest(lake, "jsonl"), tokenizer)
    assert cache is not None
    expected = tokenizer.encode("words")
    found = cache.ids(0, lambda key, offset, num_bytes, etag: lake.get_range(key, offset, num_bytes))
    assert np.asarray(found)[: len(expected)].tolist() == list(expected)
