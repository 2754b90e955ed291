"""A long plan is opened, and read at any step, by a few small requests: counted on an index of many segments."""

import json
import uuid

import numpy as np
import pytest

from k25_pipelines.errors import PlanError
from k25_pipelines.keys import digest
from k25_pipelines.plan.recipe import recipe_dict
from k25_pipelines.plan.segment import GROUP_ROWS, SCHEMA, Segment, make_segment, segment_table
from k25_pipelines.planning import open_plan
from k25_pipelines.planning.index import PAGE_SEGMENTS, Index, SegmentInfo, appended, segments_of, write_index
from k25_pipelines.planning.objects import segment_key, write_segment
from k25_pipelines.storage.store import open_store
from tests.plan.tables import recipe

PLAN = "a" * 32
STEPS, ROWS = 500, 40
FAR = 1_000_000


def synthetic_segment(first_step: int, *, steps: int = STEPS, rows: int = ROWS) -> Segment:
    """A segment of made-up rows, `rows` a step in four packs."""
    num = steps * rows
    numbers = np.random.Generator(np.random.PCG64(first_step)).integers(1, 10**6, num)
    kinds = {field.name: field.type.to_pandas_dtype() for field in SCHEMA if field.name != "dataset"}
    place = np.arange(num)
    values = dict.fromkeys(kinds, numbers)
    values |= {"step": first_step + place // rows, "pack": place % rows // (rows // 4), "slot": place % (rows // 4)}
    columns = {name: values[name].astype(kind) for name, kind in kinds.items()} | {"dataset": numbers % 3}
    table = segment_table(columns, ("captions", "code", "wiki"))
    start = {"first_step": first_step, "previous": None, "fork": None}
    return make_segment(start, b"", table, num_steps=steps, report={})


def long_plan(lake, *, num_segments: int) -> list[SegmentInfo]:
    """An index of many segments, of which those around step FAR are real."""
    facts = {
        "plan": PLAN,
        "recipe": recipe_dict(recipe(), steps=False),
        "datasets": {name: {"digest": name} for name in ("captions", "code", "wiki")},
        "tokenizer": "t" * 32,
        "profile": "kimi_k25",
        "parent": None,
    }
    lake.put_new(f"k25/plans/{PLAN}/plan.json", json.dumps(facts).encode())
    index, infos = Index(), []
    for number in range(num_segments):
        first = number * STEPS
        info = SegmentInfo(digest=digest("segment", number), first_step=first, num_steps=STEPS, plan=PLAN)
        if first == FAR:
            info = write_segment(lake, PLAN, synthetic_segment(first, steps=STEPS, rows=ROWS))
        infos.append(info)
        index = appended(lake, PLAN, index, info)
    write_index(lake, PLAN, index)
    return infos


class Counted:
    """A store that notes what is asked of it."""

    def __init__(self, lake) -> None:
        self._lake, self.asked, self.num_bytes = lake, [], 0
        self.url = lake.url

    def get(self, key):
        data = self._lake.get(key)
        self._note(key, data)
        return data

    def get_range(self, key, offset, num_bytes, *, etag=None):
        data = self._lake.get_range(key, offset, num_bytes, etag=etag)
        self._note(key, data)
        return data

    def _note(self, key, data):
        self.asked.append(key.removeprefix(f"k25/plans/{PLAN}/").split("/")[0] + "." + key.rsplit(".", 1)[-1])
        self.num_bytes += len(data)


@pytest.fixture
def lake():
    return open_store(f"memory://{uuid.uuid4().hex}")


def test_step_a_million_of_a_long_plan_is_read_by_six_requests(lake):
    infos = long_plan(lake, num_segments=2100)
    counted = Counted(lake)
    plan = open_plan(counted, PLAN)
    assert counted.asked == ["plan.json.json", "index.json.json"]
    assert counted.num_bytes < 64 * 2**10
    assert plan.num_steps == 2100 * STEPS
    rows = plan.rows(FAR)
    assert counted.asked[2:] == ["pages.json", "segments.json", "segments.parquet", "segments.parquet"]
    assert rows["step"].to_pylist() == [FAR] * ROWS
    expected = synthetic_segment(FAR).table.slice(0, ROWS)
    assert rows.to_pylist() == expected.to_pylist()
    size = lake.head(segment_key(infos[2000], "parquet")).num_bytes
    assert size > 2**20
    assert counted.num_bytes < 64 * 2**10 + size * 0.45
    plan.rows(FAR + 1)
    assert len(counted.asked) == 6
    plan.rows(FAR + STEPS - 1)
    assert counted.asked[6:] == ["segments.parquet"]


def test_the_index_gives_back_every_segment_from_its_pages(lake):
    infos = long_plan(lake, num_segments=PAGE_SEGMENTS * 2 + 3)
    assert segments_of(lake, PLAN) == infos
    plan = open_plan(lake, PLAN)
    assert plan.segments == tuple(infos)
    chosen = [0, 1, PAGE_SEGMENTS - 1, PAGE_SEGMENTS, 2 * PAGE_SEGMENTS + 2]
    assert [plan.segment_of(number * STEPS + 3) for number in chosen] == [infos[number] for number in chosen]


def test_a_page_that_was_overwritten_is_refused(lake):
    long_plan(lake, num_segments=PAGE_SEGMENTS + 1)
    [key] = [info.key for info in lake.list(f"k25/plans/{PLAN}/pages/")]
    lake.put(key, lake.get(key).replace(b"[0,500,", b"[0,400,"))
    with pytest.raises(PlanError, match="is not the page it is named for; restore it"):
        open_plan(lake, PLAN).rows(0)


def test_an_index_never_goes_back(lake):
    infos = long_plan(lake, num_segments=4)
    write_index(lake, PLAN, Index(tail=tuple(infos[:2])))
    assert segments_of(lake, PLAN) == infos


def test_rows_are_grouped_by_whole_steps():
    segment = synthetic_segment(0)
    groups = segment.header["body"]
    assert [first for first, *_ in groups] == list(range(0, STEPS, -(-GROUP_ROWS // ROWS)))
    assert sum(steps for _, steps, _, _ in groups) == STEPS
    assert [rows for _, steps, rows, _ in groups] == [steps * ROWS for _, steps, _, _ in groups]
