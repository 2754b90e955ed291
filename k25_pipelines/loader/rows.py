"""The rows of a step as plain values, and the tasks in which they are loaded."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

TEXT_TASK_TOKENS = 4096
"""Texts are loaded together by one thread up to this length [tokens]."""


def row_dicts(table: pa.Table, places: np.ndarray) -> list[dict]:
    """Return some rows of a step, ascending, as plain values by column."""
    if not len(places):
        return []
    first = int(places[0])
    table, places = table.slice(first, int(places[-1]) + 1 - first), places - first
    columns = [plain_column(column)[places].tolist() for column in table.itercolumns()]
    names = table.column_names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def plain_column(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array; of words, as an array of objects."""
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.unify_dictionaries().chunks)
    if isinstance(array, pa.DictionaryArray):
        return np.array(array.dictionary.to_pylist(), dtype=object)[array.indices.to_numpy()]
    return array.to_numpy(zero_copy_only=False)


def tasks_of(rows: list[dict]) -> Iterator[range]:
    """Yield runs of rows that one thread loads: each medium alone, texts of one pack together."""
    first, tokens = 0, 0
    for place, row in enumerate(rows):
        ends_run = row["media"] or row["pack"] != rows[first]["pack"] or tokens + row["num_tokens"] > TEXT_TASK_TOKENS
        if ends_run and first < place:
            yield range(first, place)
            first, tokens = place, 0
        tokens += row["num_tokens"]
        if row["media"]:
            yield range(place, place + 1)
            first, tokens = place + 1, 0
    if first < len(rows):
        yield range(first, len(rows))
