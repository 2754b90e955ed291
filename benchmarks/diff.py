"""What a diff of two dataset versions reads: 1% of their samples removed in one place, in ten places, or anywhere.

Run: python -m benchmarks.diff [--samples 1000000]     (about a minute of processor time a million)
"""

import argparse
import time
import uuid

import numpy as np
import pyarrow as pa

from benchmarks import takedown
from k25_pipelines.catalog.diff import diff_versions
from k25_pipelines.catalog.manifest import make_manifest
from k25_pipelines.catalog.pages import write_pages
from k25_pipelines.storage.store import open_store


def main() -> None:
    """Print a line for each way in which samples are gone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    num = parser.parse_args().samples
    lake = open_store(f"memory://{uuid.uuid4().hex}")
    before = takedown.written_manifest(lake, "web", num)
    began = time.process_time()
    write_pages(lake, before)
    print(f"index of {num:,} samples: {time.process_time() - began:.1f} s of processor time")
    print(f"{'1% gone':<16} {'removed':>10} {'read':>8} {'seconds':>8}")
    for name, kept in kept_lines(num).items():
        table = before.table.take(pa.array(kept))
        after = make_manifest(f"b_{name.split()[-1]}", table, uri=before.uri, kind="images", chunk_lines=64)
        write_pages(lake, after)
        began = time.process_time()
        found = diff_versions(lake, ("web", before.digest), (after.dataset, after.digest))
        seconds = time.process_time() - began
        share = found.read_bytes / found.total_bytes
        assert (found.removed.count, found.added.count, found.changed.count) == (num - len(kept), 0, 0)
        print(f"{name:<16} {found.removed.count:>10,} {share:>8.2%} {seconds:>8.2f}")


def kept_lines(num: int) -> dict[str, np.ndarray]:
    """Return which lines are left, int64, by the way in which one in a hundred is gone."""
    every, at_once = np.arange(num), num // 100
    ten = np.concatenate([np.arange(at_once // 10) + first for first in range(num // 200, num, num // 10)])
    strewn = np.random.default_rng(0).choice(num, num - at_once, replace=False)
    return {
        "in one place": np.delete(every, slice(num // 3, num // 3 + at_once)),
        "in ten places": np.setdiff1d(every, ten),
        "strewn anywhere": np.sort(strewn),
    }


if __name__ == "__main__":
    main()
