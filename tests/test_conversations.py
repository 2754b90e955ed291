"""Conversations and interleaved documents with several pictures, from JSONL in a bucket to a batch."""

import json

import numpy as np
import pytest

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import index_dataset, register
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import open_store
from tests.sample.annotated import picture

NUM = 6
RECIPE = {
    "name": "talk",
    "seed": 7,
    "pack_tokens": 512,
    "packs_per_step": 2,
    "steps": 2,
    "max_image_tokens": 40,
    "sources": {"talk": {"weight": 1, "augment": list(AUGMENTATIONS)}, "pages": {"weight": 1}},
}


def shown(number: int) -> dict:
    return {"type": "image", "image": f"img/{number % NUM}.png"}


def said(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def lake():
    store = open_store("memory://conversations")
    talk = [
        {
            "messages": [
                {"role": "user", "content": [shown(n), said("and"), shown(n + 1)]},
                {"role": "assistant", "content": f"answer {n}"},
            ]
        }
        for n in range(NUM)
    ]
    pages = [{"content": [said(f"page {n} "), shown(n), said(" more "), shown(5 - n)]} for n in range(NUM)]
    for name, kind, lines in (("talk", "chat", talk), ("pages", "interleaved", pages)):
        store.put(f"raw/{name}/a.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        for n in range(NUM):
            store.put(f"raw/{name}/img/{n}.png", picture(200 + 60 * n, 140 + 40 * n, seed=n))
        entry = Registration(name=name, uri=f"{store.url}/raw/{name}", kind=kind, licence="CC0-1.0", source="drawn")
        register(store, entry)
        index_dataset(store, name)
    return store


@pytest.mark.parametrize("profile", ["kimi_k25", "qwen2_vl"])
def test_every_picture_stands_where_its_sample_shows_it_and_counts_are_as_planned(lake, profile):
    plan = make_plan(lake, parse_recipe({**RECIPE, "profile": profile}))
    tokenizer = load_tokenizer("default")
    with PlanLoader(plan, lake) as loader:
        for step in range(2):
            batch, rows = loader.batch(step), loader.plan.rows(step).to_pylist()
            assert [sample.masked for sample in batch.provenance] == [None] * len(rows)
            assert len(batch.patches) == sum(row["patches"] for row in rows)
            assert len(batch.grid_thw) == sum(row["media"] for row in rows) == 2 * len(rows)
            pads = (batch.input_ids == tokenizer.media_pad).sum(axis=1).tolist()
            planned = np.bincount([row["pack"] for row in rows], [row["vision_tokens"] for row in rows]).tolist()
            assert pads == planned


def test_only_the_assistants_words_are_learnt_of_a_conversation(lake):
    recipe = {**RECIPE, "name": "alone", "sources": {"talk": {"weight": 1}}}
    tokenizer = load_tokenizer("default")
    with PlanLoader(make_plan(lake, parse_recipe(recipe)), lake) as loader:
        batch = loader.batch(0)
        first = batch.provenance[0]
        span = slice(first.start, first.start + first.num_tokens)
        labels = batch.labels[0, span]
        learnt = tokenizer.decode(labels[labels >= 0].tolist())
    assert f"answer {first.line}" in learnt
    assert "user" not in learnt
    assert "and" not in learnt.replace("<|im_end|>", "")
