"""Small source tables and recipes for tests, from the keyed stream alone: the same on any machine."""

from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.keys import random_key, random_unit
from k25_pipelines.plan.recipe import Recipe, parse_recipe
from k25_pipelines.plan.segment import Segment
from k25_pipelines.plan.source import SourceTable


def skewed(name: str, num: int, low: int, high: int) -> np.ndarray:
    """Integers between low and high whose small values are common, as lengths of texts are."""
    unit = random_unit(random_key("test table", name), np.arange(num))
    return (low + (high - low) * unit**4).astype(np.int64)


def text(name: str, num: int = 3000, *, chunk_lines: int = 40, longest: int = 3000, **columns: Any) -> SourceTable:
    tokens = skewed(name, num, 20, longest)
    return SourceTable(name=name, chunk_lines=chunk_lines, digest=name, text_tokens=tokens, **columns)


def images(name: str, num: int = 1500, *, chunk_lines: int = 16, **columns: Any) -> SourceTable:
    return SourceTable(
        name=name,
        chunk_lines=chunk_lines,
        digest=name,
        text_tokens=skewed(name, num, 10, 200),
        width=200 + skewed(f"{name} width", num, 0, 900),
        height=200 + skewed(f"{name} height", num, 0, 700),
        frames=np.ones(num, dtype=np.int64),
        fps=np.zeros(num),
        **columns,
    )


def videos(name: str, num: int = 300, *, chunk_lines: int = 1) -> SourceTable:
    return SourceTable(
        name=name,
        chunk_lines=chunk_lines,
        digest=name,
        text_tokens=skewed(name, num, 30, 200),
        width=np.full(num, 320),
        height=np.full(num, 180),
        frames=25 + skewed(f"{name} frames", num, 0, 150),
        fps=np.full(num, 25.0),
    )


def recipe(**fields: Any) -> Recipe:
    """A recipe over captions, wiki and code with a vision share of a tenth."""
    plain = {
        "name": "joint",
        "seed": 7,
        "pack_tokens": 2048,
        "packs_per_step": 8,
        "pack_window": 256,
        "steps": 20,
        "vision_share": 0.1,
        "sources": {
            "captions": {"weight": 1, "augment": ["resize", "crop", "flip", "colour"]},
            "code": {"weight": 2},
            "wiki": {"weight": 5},
        },
    }
    return parse_recipe({**plain, **fields})


def tables() -> list[SourceTable]:
    """The sources of `recipe`."""
    return [images("captions"), text("wiki"), text("code", 1000, longest=9000)]


def rows(segments: list[Segment]) -> pa.Table:
    """All rows of some segments, the datasets as plain words."""
    table = pa.concat_tables([segment.table for segment in segments])
    place = table.schema.get_field_index("dataset")
    return table.set_column(place, "dataset", table["dataset"].cast(pa.string())).combine_chunks()
