"""A filter a segment of a plan: its samples sorted by dataset and line, with where they stand; names in, places out.

k25/filters/<segment digest>.ids    written at the first question about a segment, and named by what it is made from

A segment's rows are sorted by step; to find a sample in them every row is looked at. In its filter a thousand samples
are found by binary search, and it is a small part of the rows' bytes.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.columns import one_array
from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.planning import SegmentInfo, segment_key
from k25_pipelines.storage.arrow import parquet_tables
from k25_pipelines.storage.store import Store

FILTERS = "k25/filters/filter-1/"
PLACES = ("step", "pack", "slot")
"""What a filter tells of a sample; the step is counted from the segment's first."""
SCHEMA = pa.schema([("dataset", pa.string()), ("line", pa.int64()), *((name, pa.int64()) for name in PLACES)])
"""What is answered."""
AT_ONCE = 8
"""Segments asked for together."""
Lines = Mapping[str, np.ndarray]
"""Line numbers by dataset, int64, ascending."""


def places(lake: Store, infos: Iterable[SegmentInfo], lines: Lines) -> Iterator[tuple[SegmentInfo, pa.Table]]:
    """Yield each segment with where it holds some samples: dataset, line, step, pack, slot; by dataset and line.

    Args:
        lake: where the segments are.
        infos: in any order.
        lines: the samples.
    """
    waiting = iter(infos)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="filter") as pool:
        while batch := list(islice(waiting, 4 * AT_ONCE)):
            yield from zip(batch, pool.map(lambda info: _found(lake, info, lines), batch), strict=True)


def _found(lake: Store, info: SegmentInfo, lines: Lines) -> pa.Table:
    """Return the places of some samples in a segment, of SCHEMA."""
    table = read_filter(lake, info)
    names: list[str] = json.loads(table.schema.metadata[b"datasets"])
    bounds: list[int] = json.loads(table.schema.metadata[b"bounds"])
    chosen, datasets, numbers = list[np.ndarray](), list[str](), list[np.ndarray]()
    ahead = table["ahead"].to_numpy()
    for code, name in enumerate(names):
        if (wanted := lines.get(name)) is not None:
            own = np.cumsum(ahead[bounds[code] : bounds[code + 1]], dtype=np.int64)
            first, end = np.searchsorted(own, wanted, "left"), np.searchsorted(own, wanted, "right")
            at = np.concatenate([np.arange(f, e) for f, e in zip(first, end, strict=True) if f < e] or [first[:0]])
            chosen.append(at + bounds[code])
            numbers.append(own[at])
            datasets += [name] * len(at)
    at = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    told = {name: table[name].to_numpy()[at].astype(np.int64) for name in PLACES}
    told["step"] += info.first_step
    line = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
    return pa.table({"dataset": datasets, "line": line, **told}, schema=SCHEMA)


def read_filter(lake: Store, info: SegmentInfo) -> pa.Table:
    """Return the filter of a segment, made from its rows where there is none yet or it is damaged."""
    key = f"{FILTERS}{info.digest}.ids"
    try:
        return pa.ipc.open_file(pa.BufferReader(lake.get(key))).read_all()
    except (ObjectNotFoundError, pa.ArrowInvalid, OSError):
        table = made_filter(lake, info)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    lake.put(key, sink.getvalue())
    return table


def made_filter(lake: Store, info: SegmentInfo) -> pa.Table:
    """Return the filter of a segment from its rows.

    The columns are of the smallest types that hold them; `ahead` is how far a line lies behind the one before it of its
    dataset. The datasets' names and where each begins and ends stand in the metadata.
    """
    columns = ("step", "pack", "slot", "dataset", "line")
    rows = parquet_tables(lake, [segment_key(info, "parquet")], columns=columns)
    encoded = one_array(rows["dataset"])
    encoded = encoded if isinstance(encoded, pa.DictionaryArray) else encoded.dictionary_encode()
    codes, line = encoded.indices.to_numpy(), rows["line"].to_numpy()
    order = np.lexsort((line, codes))
    names = encoded.dictionary.to_pylist()
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    ahead = np.diff(line[order], prepend=0)
    begins = bounds[:-1][bounds[:-1] < bounds[1:]]
    ahead[begins] = line[order][begins]
    values = {"ahead": ahead, "step": (rows["step"].to_numpy() - info.first_step)[order]}
    values |= {name: rows[name].to_numpy()[order] for name in ("pack", "slot")}
    told = {"datasets": json.dumps(names), "bounds": json.dumps(bounds.tolist())}
    return pa.table({name: _smallest(each) for name, each in values.items()}).replace_schema_metadata(told)


def _smallest(values: np.ndarray) -> pa.Array:
    """Return whole numbers from 0 on in the smallest type that holds them."""
    return pa.array(values.astype(np.min_scalar_type(int(values.max(initial=0)))))
