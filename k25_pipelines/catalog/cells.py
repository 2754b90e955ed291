"""What the cells of a Parquet row say: plain values in, media, annotations and keys out; and where row groups stand."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from k25_pipelines.catalog.fields import FILE_NAMES, KEYS, Column, Fields
from k25_pipelines.catalog.media import MEDIA
from k25_pipelines.errors import SampleError


def cell_media(cell: Any, column: Column) -> Iterator[tuple[str, bytes | str]]:
    """Yield the name of each medium of a cell, `images[2]` in a list, and its bytes, or its key where it has none."""
    items = cell if column.is_list else [cell]
    for number, item in enumerate(items if isinstance(items, Sequence) else ()):
        value = (item.get("bytes") or item.get("path")) if isinstance(item, Mapping) else item
        if value is not None and not (column.name in FILE_NAMES and not value.lower().endswith(MEDIA)):
            yield (f"{column.name}[{number}]" if column.is_list else column.name), value


def cell_annotations(record: Mapping, fields: Fields) -> dict:
    """Return {"annotations": [...]} of a row, as `catalog/annotation.py` describes them; {} if it has none.

    Raises:
        SampleError: they are no list of objects.
    """
    found = []
    for name in fields.annotations:
        value = record[name]
        if isinstance(value, str):
            value = _parsed(value, name)
        if isinstance(value, Mapping):
            value = value["annotations"] if "annotations" in value else _rows_of(value, name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            raise SampleError(f"column {name!r} holds {type(value).__name__}, expected a list of objects")
        found += [_named(item, fields.class_names.get(name, ())) for item in value or ()]
    return {"annotations": found} if found else {}


def row_key(record: Mapping) -> str:
    """Return what a row calls itself, "" if nothing."""
    return next((str(record[name]) for name in KEYS if record.get(name) is not None), "")


def group_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return first byte and length of a row group, all its columns together."""
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends) - min(starts)


def _parsed(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"column {name!r} is no JSON ({error})") from error


def _rows_of(columns: Mapping, name: str) -> list[dict]:
    """Return Hugging Face's struct of lists as a list of structs."""
    lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values() if values is not None}
    if len(lengths) > 1 or -1 in lengths:
        raise SampleError(f"column {name!r} is a struct of lists of several lengths; every object needs all fields")
    kept = {field: values for field, values in columns.items() if values is not None}
    return [dict(zip(kept, row, strict=True)) for row in zip(*kept.values(), strict=True)]


def _named(annotation: Mapping, class_names: Sequence[str]) -> dict:
    """Return an annotation without empty fields, with words in place of the numbers of its category."""
    item = {field: value for field, value in annotation.items() if value is not None}
    for field in ("category", "label"):
        number = item.get(field)
        if isinstance(number, int) and not isinstance(number, bool):
            item[field] = class_names[number] if 0 <= number < len(class_names) else str(number)
    return item
