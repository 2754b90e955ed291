"""From a sample to the steps and checkpoints that saw it, and back."""

import json

import pytest

from k25_pipelines.catalog import registry
from k25_pipelines.lineage import checkpoints_of_sample, samples_of_step, steps_of_sample
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import open_store

RECIPE = {
    "name": "words",
    "seed": 7,
    "pack_tokens": 64,
    "packs_per_step": 2,
    "steps": 4,
    "blend": "samples",
    "sources": {"notes": {"weight": 1}},
}


@pytest.fixture
def planned(tmp_path):
    """A lake of notes and the id of a plan over them."""
    lake = open_store(str(tmp_path))
    lines = [json.dumps({"text": f"note {number} " + "word " * (number % 7 + 3)}) for number in range(40)]
    lake.put("raw/notes.jsonl", "\n".join(lines).encode())
    told = registry.Registration(
        name="notes", uri=f"{tmp_path}/raw", kind="jsonl", annotations=None, licence="MIT", source="test"
    )
    registry.register(lake, told)
    registry.index_dataset(lake, "notes")
    return lake, make_plan(lake, parse_recipe(RECIPE))


def checkpoint(lake, key: str, *, plan: str, step_range: tuple[int, int], parent: object) -> None:
    lake.put(f"{key}/record.json", json.dumps({"plan": plan, "step_range": step_range, "parent": parent}).encode())


def test_steps_and_samples_are_each_others_inverse(planned):
    lake, plan = planned
    seen = {(row["line"], step) for step in range(4) for row in samples_of_step(lake, plan, step)}
    told = {(line, step) for line in range(40) for step in steps_of_sample(lake, plan, dataset="notes", line=line)}
    assert told == seen


def test_a_checkpoint_holds_what_its_steps_and_its_parents_saw(planned):
    lake, plan = planned
    line = samples_of_step(lake, plan, 2)[0]["line"]
    first = steps_of_sample(lake, plan, dataset="notes", line=line)[0]
    checkpoint(lake, "k25/checkpoints/a/before", plan=plan, step_range=(0, first), parent=None)
    checkpoint(lake, "k25/checkpoints/a/with", plan=plan, step_range=(first, 4), parent="k25/checkpoints/a/before")
    checkpoint(lake, "k25/checkpoints/b/child", plan=plan, step_range=(0, 0), parent="k25/checkpoints/a/with")
    holding = checkpoints_of_sample(lake, dataset="notes", line=line)
    assert holding == ["k25/checkpoints/a/with", "k25/checkpoints/b/child"]
