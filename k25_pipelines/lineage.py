"""Which steps saw a sample, which samples a step saw, which checkpoints hold it. Plans and records in, rows out."""

import json

from k25_pipelines.planning import open_plan
from k25_pipelines.storage.store import Store


def samples_of_step(lake: Store, plan_id: str, step: int) -> list[dict]:
    """Return the samples of one step: dataset, line, epoch, pack, and planned tokens, in the order of the packs."""
    columns = ["pack", "slot", "dataset", "line", "epoch", "token_start", "num_tokens", "vision_tokens"]
    return open_plan(lake, plan_id).rows(step).select(columns).to_pylist()


def steps_of_sample(lake: Store, plan_id: str, *, dataset: str, line: int) -> list[int]:
    """Return the steps of a plan that hold the sample, ascending."""
    plan = open_plan(lake, plan_id)
    seen = []
    for step in range(plan.num_steps):
        rows = plan.rows(step)
        names, lines = rows["dataset"].to_pylist(), rows["line"].to_pylist()
        if any(name == dataset and number == line for name, number in zip(names, lines, strict=True)):
            seen.append(step)
    return seen


def checkpoint_records(lake: Store) -> list[dict]:
    """Return the record of every published checkpoint with its `key`, in the order of their keys."""
    keys = [info.key for info in lake.list("k25/checkpoints/") if info.key.endswith("/record.json")]
    return [{"key": key.removesuffix("/record.json"), **json.loads(lake.get(key))} for key in keys]


def checkpoints_of_sample(lake: Store, *, dataset: str, line: int) -> list[str]:
    """Return the keys of the checkpoints that were trained on the sample, by themselves or through a parent."""
    records = {record["key"]: record for record in checkpoint_records(lake)}
    steps: dict[str, list[int]] = {}
    holding: set[str] = set()
    for key, record in records.items():
        plan_id = record["plan"]
        if plan_id not in steps:
            steps[plan_id] = steps_of_sample(lake, plan_id, dataset=dataset, line=line)
        first, end = record["step_range"]
        if any(first <= step < end for step in steps[plan_id]):
            holding.add(key)
    return sorted(key for key in records if holding & _line_of_descent(records, key))


def _line_of_descent(records: dict[str, dict], key: str) -> set[str]:
    """Return the checkpoint and all it descends from; a parent is a key, or a list of keys by module."""
    reached: set[str] = set()
    ahead = [key]
    while ahead:
        current = ahead.pop()
        if current in reached or current not in records:
            continue
        reached.add(current)
        parents = records[current].get("parent") or []
        ahead += [parents] if isinstance(parents, str) else list(parents)
    return reached
