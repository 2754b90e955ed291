"""What `sample/token_cache.py` promises: the ids of online tokenization, in ranges of objects that are checked."""

import json

import numpy as np
import pytest

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import SampleError, StoreError
from k25_pipelines.plan.size import profile
from k25_pipelines.sample import token_cache
from k25_pipelines.sample.augment import Draws
from k25_pipelines.sample.example import example
from k25_pipelines.sample.lengths import lengths_key, text_lengths
from k25_pipelines.sample.read import Tables, lines_of_chunk, read_line
from k25_pipelines.sample.token_cache import build, open_token_cache, tokens_prefix
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import open_store
from tests.sample.small_lake import new_lake

MODEL = profile("kimi_k25")
TOKENIZER = load_tokenizer("default")
TEXTS = ("wiki", "code", "long_documents", "notes")


@pytest.fixture(scope="module")
def lake():
    return new_lake()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(token_cache, "SHARD_BYTES", 500)


def online(manifest, line):
    """The line's ids as a batch without the cache has them; None where it cannot be read."""
    store = open_store(manifest.uri)

    def fetch(shard, offset, num_bytes, etag):
        return store.get_range(shard, offset, num_bytes, etag=etag or None)

    try:
        raw = read_line(manifest, line, fetch, tables=Tables())
    except SampleError:
        return None
    plain = Draws(crop=(0, 0, 1, 1), width=1, height=1)
    return example(raw, plain, tokenizer=TOKENIZER, profile=MODEL, max_tokens=10**9).tokens


def built(lake, name):
    manifest = load_manifest(lake, name)
    build(lake, manifest, TOKENIZER, "kimi_k25")
    cache = open_token_cache(lake, manifest, TOKENIZER, MODEL)
    assert cache is not None
    return manifest, cache


def fetched(lake):
    return lambda key, offset, num_bytes, etag: lake.get_range(key, offset, num_bytes, etag=etag or None)


@pytest.mark.parametrize("name", TEXTS)
def test_the_ids_are_those_of_online_tokenization(lake, name, small_shards):
    manifest, cache = built(lake, name)
    for line in range(manifest.num_lines):
        expected = online(manifest, line)
        if expected is None:
            assert not cache.has(line)
            continue
        assert cache.has(line)
        found = cache.ids(line, fetched(lake))
        assert (found.dtype, found.tolist()) == (np.int64, expected.ids.tolist())
        assert expected.is_target.all()  # which the cache does not keep
        assert cache.ids(line, fetched(lake), first=3, num_tokens=4).tolist() == expected.ids[3:7].tolist()


@pytest.mark.parametrize("name", ["captions", "grounding", "clips"])
def test_samples_with_media_are_tokenized_as_ever(lake, name):
    manifest, cache = built(lake, name)
    assert not any(cache.has(line) for line in range(manifest.num_lines))
    assert cache.extents_of_chunk(0) == []


def test_lengths_and_ids_come_from_one_tokenization(lake, monkeypatch):
    fresh, manifest = open_store("memory://token-cache-fresh"), load_manifest(lake, "wiki")
    told = []
    lengths = build(fresh, manifest, TOKENIZER, MODEL, progress=lambda *news: told.append(news))
    assert told[-1][:2] == (manifest.num_chunks, manifest.num_chunks)
    monkeypatch.setattr("k25_pipelines.sample.lengths.tokenized_chunks", None)  # nothing is read again
    np.testing.assert_array_equal(text_lengths(fresh, manifest, TOKENIZER, MODEL), lengths)
    np.testing.assert_array_equal(build(fresh, manifest, TOKENIZER, "kimi_k25"), lengths)
    monkeypatch.undo()
    np.testing.assert_array_equal(text_lengths(lake, manifest, TOKENIZER, MODEL), lengths)


def test_the_lines_of_a_chunk_lie_in_one_range(lake, small_shards):
    manifest, cache = built(lake, "long_documents")
    for chunk in range(manifest.num_chunks):
        (whole,) = cache.extents_of_chunk(chunk)
        lines = [cache.extent(line) for line in lines_of_chunk(manifest, chunk)]
        assert (lines[0][0], lines[0][1], sum(line[2] for line in lines)) == whole[:3]
        assert {line[0] for line in lines} == {whole[0]}


def test_what_was_not_built_is_not_there(lake):
    assert open_token_cache(open_store("memory://token-cache-none"), load_manifest(lake, "wiki"), TOKENIZER) is None


def test_damage_is_noticed_wherever_it_is():
    lake = new_lake()
    manifest, cache = built(lake, "wiki")
    prefix = tokens_prefix(manifest, TOKENIZER)
    index, shard = lake.get(f"{prefix}.json"), f"{prefix}.{cache.shards[0]['name']}.ids"
    data = lake.get(shard)
    lake.put(shard, data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    last = manifest.num_lines - 1
    with pytest.raises(StoreError, match=f"the ids of wiki:{last} are damaged"):
        cache.ids(last, fetched(lake))
    lake.put(shard, b"\1" + data[1:])
    with pytest.raises(StoreError, match="the table is damaged"):
        open_token_cache(lake, manifest, TOKENIZER).ids(0, fetched(lake))
    for broken in (index[:-5], json.dumps({**json.loads(index), "dtype": "<u4"}).encode()):
        lake.put(f"{prefix}.json", broken)
        with pytest.raises(StoreError, match="delete it"):
            open_token_cache(lake, manifest, TOKENIZER)


def test_a_large_vocabulary_takes_four_bytes_an_id(lake, monkeypatch):
    monkeypatch.setattr(type(TOKENIZER), "num_tokens", 2**16 + 1)
    fresh, manifest = open_store("memory://token-cache-wide"), load_manifest(lake, "notes")
    build(fresh, manifest, TOKENIZER, MODEL)
    cache = open_token_cache(fresh, manifest, TOKENIZER)
    assert cache.dtype == np.dtype("<u4")
    assert cache.ids(0, fetched(fresh)).tolist() == online(manifest, 0).ids.tolist()


def test_another_rendering_is_another_column(lake, monkeypatch):
    manifest = load_manifest(lake, "wiki")
    names = lengths_key(manifest, TOKENIZER, MODEL), tokens_prefix(manifest, TOKENIZER)
    for module in ("lengths", "token_cache"):
        monkeypatch.setattr(f"k25_pipelines.sample.{module}.RENDERING", "chat-next")
    others = lengths_key(manifest, TOKENIZER, MODEL), tokens_prefix(manifest, TOKENIZER)
    assert [name.replace("chat-next", "chat-1") for name in others] == list(names)
    assert set(names) & set(others) == set()
