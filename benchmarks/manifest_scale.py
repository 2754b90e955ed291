"""A dataset version of 4e9 lines: opened, 10,000 samples looked up by id, compared with one of which 1% changed.

Run: python -m benchmarks.manifest_scale   (starts an S3 server of its own; writes results/manifest_scale.json)

Roots are whole: 4,000 manifests of a million lines, 4,096 partitions of ids. They stand in a real S3 server, as do some
partitions, written by the code that writes them anyway. The bytes of all other partitions are generated when they are
asked for, each answer after a wait of 150 ms and 87 MB/s, the same bytes as would have been written (compared where a
partition is real). Opening is measured in a process of its own, from its start. Versions are compared by partitions
that are all real and all different, with the 1% strewn evenly; each partition takes the same share of bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np

from benchmarks.report import keep
from k25_pipelines.catalog.id_diff import diff_ids
from k25_pipelines.catalog.id_index import (
    PAGE_RECORDS,
    TERM_BITS,
    IdIndex,
    Partition,
    ids_key,
    open_ids,
    write_partition,
    write_root,
)
from k25_pipelines.catalog.partitioned import open_partitioned, write_partitioned
from k25_pipelines.catalog.sketch import RECORD, num_cells
from k25_pipelines.keys import mix64
from k25_pipelines.storage.store import Store, open_store

NAME, LINES, BITS, MANIFEST_LINES = "web", 4_000_000_000, 12, 1_000_000
PARTITIONS = 2**BITS
TERMS = [("CC-BY-4.0", "crawl"), ("CC0-1.0", "museum"), ("MIT", "code")]
ODD = 2_654_435_761
"""Prime, so that multiplying by it takes each line to another."""
FIRST_BYTE_SECONDS, BYTES_PER_SECOND = 0.150, 87e6


class GeneratedStore:
    """Partitions of ids by arithmetic; those that are real, and all other objects, come from the lake."""

    def __init__(self, lake: Store, real: set[str]) -> None:
        """Stand before a lake."""
        self.url, self._lake, self._real = lake.url, lake, real
        self.num_requests = self.num_bytes = 0

    def get(self, key: str) -> bytes:
        """Return an object of the lake."""
        return self._lake.get(key)

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return bytes of a partition, after a wait."""
        name = key.rpartition("/")[2].removesuffix(".ids")
        self.num_requests += 1
        self.num_bytes += num_bytes
        time.sleep(FIRST_BYTE_SECONDS + num_bytes / BYTES_PER_SECOND)
        if name in self._real:
            return self._lake.get_range(key, offset, num_bytes)
        return generated_bytes(int(name, 16), offset, num_bytes)


def generated_bytes(partition: int, offset: int, num_bytes: int) -> bytes:
    """Return bytes of a partition's records or first ids."""
    size, num = RECORD.itemsize, num_records(partition)
    if offset >= num * size:
        first, count = (offset - num * size) // 8, num_bytes // 8
        return records_of(partition, np.arange(first, first + count) * PAGE_RECORDS)["id"].tobytes()
    return records_of(partition, np.arange(offset // size, (offset + num_bytes) // size)).tobytes()


def records_of(partition: int, places: np.ndarray) -> np.ndarray:
    """Return records of a partition by their places: ids that ascend by random steps, each line of the dataset once."""
    records, place = np.empty(len(places), RECORD), places.astype(np.uint64)
    step = np.uint64(2 ** (64 - BITS) // num_records(0))
    jitter = mix64(place + np.uint64(partition << 32)) % step
    records["id"] = np.uint64(partition << (64 - BITS)) + place * step + jitter
    line = line_of(partition, place)
    records["place"] = line << np.uint64(TERM_BITS) | line % np.uint64(len(TERMS))
    records["facts"] = mix64(line)
    return records


def num_records(partition: int) -> int:
    """Return how many samples a partition has: all together are LINES."""
    return LINES // PARTITIONS + (partition < LINES % PARTITIONS)


def line_of(partition: int, place: np.ndarray) -> np.ndarray:
    """Return the line of a record."""
    before = partition * (LINES // PARTITIONS) + min(partition, LINES % PARTITIONS)
    return (np.uint64(before) + place) * np.uint64(ODD) % np.uint64(LINES)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=int, default=4, help="partitions of ids, and manifests, that are written")
    parser.add_argument("--ids", type=int, default=10_000)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        return opened(open_store(os.environ["K25_LAKE"]), *options.open.split(","))
    from infra.s3_server import start, stop

    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        os.environ.update(server.environment)
        try:
            told = measured(open_store(server.environment["K25_LAKE"]), options)
        finally:
            stop(Path(folder))
    print(json.dumps(told, indent=1))
    print(keep("manifest_scale", told, command="python -m benchmarks.manifest_scale"))


def measured(lake: Store, options: argparse.Namespace) -> dict:
    """Return the figures."""
    chosen = np.linspace(0, PARTITIONS - 1, options.real).astype(int).tolist()
    cells = num_cells(num_records(0))
    real = {number: write_partition(lake, NAME, whole(number), cells) for number in chosen}
    first = real[chosen[0]]
    stored = lake.get(ids_key(NAME, first.name))
    assert stored[: sum(first.firsts)] == generated_bytes(0, 0, first.firsts[0]) + generated_bytes(0, *first.firsts)
    parts = [
        real.get(n) or Partition(name=f"{n:032x}", num_records=num_records(n), cells=cells) for n in range(PARTITIONS)
    ]
    ids = write_root(lake, NAME, "0" * 32, bits=BITS, cells=cells, terms=TERMS, partitions=parts)
    manifests, line_bytes = written_manifests(lake, options.real)
    told = {"lines": LINES, "partitions": PARTITIONS, "real_partitions": options.real, "ids_root_bytes": ids.root_bytes}
    told |= {"ids_bytes": sum(part.num_bytes for part in parts), "manifest_bytes_per_line": line_bytes}
    command = [sys.executable, "-m", "benchmarks.manifest_scale", "--open", f"{'0' * 32},{manifests}"]
    told["open"] = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    told["look_ups"] = looked_up(GeneratedStore(lake, {part.name for part in real.values()}), options.ids)
    told["lines_read"] = lines_read(lake, manifests, options.real)
    told["diff_of_one_percent"] = compared(lake, chosen, cells)
    return told


def whole(partition: int) -> np.ndarray:
    """Return all records of a partition."""
    return records_of(partition, np.arange(num_records(partition)))


def written_manifests(lake: Store, real: int) -> tuple[str, float]:
    """Write some manifests and the root of 4,000, and return its digest and the bytes of a line."""
    from benchmarks.takedown import written_manifest

    found = [written_manifest(lake, name, MANIFEST_LINES) for name in ("captions", "grounding", "shop", "web")[:real]]
    told, num_bytes = [], 0
    for manifest in found:
        data = lake.get(f"k25/datasets/{manifest.dataset}/manifests/{manifest.digest}.parquet")
        lake.put(f"k25/datasets/{NAME}/manifests/{manifest.digest}.parquet", data)
        told.append((manifest.digest, manifest.num_lines))
        num_bytes += len(data)
    others = [(f"{number:032x}", MANIFEST_LINES) for number in range(len(told), LINES // MANIFEST_LINES)]
    return write_partitioned(lake, NAME, told + others), num_bytes / (len(told) * MANIFEST_LINES)


def opened(lake: Store, ids: str, manifests: str) -> None:
    """Open both, and say how long that took, and what memory this process has used."""
    started = time.perf_counter()
    index, lines = open_ids(lake, NAME, ids), open_partitioned(lake, NAME, manifests)
    assert len(index.partitions) == PARTITIONS
    assert lines.num_lines == LINES
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    born = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + _started_at()
    print(json.dumps({"s": time.perf_counter() - started, "s_since_start": time.time() - born, "peak_mib": peak}))


def _started_at() -> float:
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def looked_up(store: GeneratedStore, num_ids: int) -> dict:
    """Look samples up all over the index, and compare what is found."""
    rng = np.random.default_rng(9)
    numbers = rng.integers(0, PARTITIONS, num_ids)
    records = np.concatenate([records_of(int(n), rng.integers(0, num_records(int(n)), 1)) for n in numbers])
    records = np.unique(records)
    started, busy, index = time.perf_counter(), time.process_time(), open_ids(cast(Store, store), NAME, "0" * 32)
    found = index.find(records["id"])
    told = {"s": time.perf_counter() - started, "cpu_s": time.process_time() - busy}
    assert np.array_equal(found, records)
    absent = index.find(records["id"][:100] + np.uint64(1))
    assert len(absent) == 0
    return told | {"ids": len(records), "requests": store.num_requests, "bytes": store.num_bytes}


def lines_read(lake: Store, version: str, real: int) -> dict:
    """Read lines of the manifests that are real."""
    started, manifest = time.perf_counter(), open_partitioned(lake, NAME, version)
    numbers = np.random.default_rng(3).integers(0, real * MANIFEST_LINES, 1000).tolist()
    found = manifest.lines(numbers)
    assert all(found[number].key == f"{number % MANIFEST_LINES:09}.jpg" for number in numbers)
    return {"lines": len(found), "s": time.perf_counter() - started}


def compared(lake: Store, chosen: list[int], cells: int) -> dict:
    """Compare partitions with what they are after 1% of their samples changed, all of them or in three ways."""
    told = {}
    before = cut(lake, "before", [whole(number) for number in chosen], cells)
    for name in ("1% are others", "0.4% are others, 0.3% gone, 0.3% new"):
        after = cut(lake, name[:4], [changed(number, name.startswith("1%")) for number in chosen], cells)
        started, busy = time.perf_counter(), time.process_time()
        diff = diff_ids(before, after)
        kinds = {kind: sum(getattr(diff, kind).values()) for kind in ("added", "removed", "changed")}
        told[name] = kinds | {
            "read_over_total": diff.read_bytes / diff.total_bytes,
            "read_bytes": diff.read_bytes,
            "partitions_read_whole": diff.partitions_read_whole,
            "s": time.perf_counter() - started,
            "cpu_s": time.process_time() - busy,
        }
    return told


def changed(partition: int, alone: bool) -> np.ndarray:
    """Return a partition of which 1% changed, strewn by a hash."""
    records = whole(partition)
    drawn = mix64(records["id"]) % np.uint64(1000)
    records["facts"] += (drawn < (10 if alone else 4)).astype(np.uint64)
    if not alone:
        new = records[(drawn >= 7) & (drawn < 10)].copy()
        new["id"] ^= np.uint64(1)
        records = np.sort(np.concatenate([records[(drawn < 4) | (drawn >= 7)], new]), order=["id", "place"])
    return records


def cut(lake: Store, version: str, partitions: list[np.ndarray], cells: int) -> IdIndex:
    """Write an index of these partitions alone."""
    parts = [write_partition(lake, "compared", records, cells) for records in partitions]
    bits = len(parts).bit_length() - 1
    return write_root(lake, "compared", version, bits=bits, cells=cells, terms=TERMS, partitions=parts)


if __name__ == "__main__":
    main()
