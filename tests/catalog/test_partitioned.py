"""A dataset version in partitions: opened by its root, read line by line."""

import pytest

from k25_pipelines.catalog.line import lines_table
from k25_pipelines.catalog.manifest import make_manifest, write_manifest
from k25_pipelines.catalog.partitioned import open_partitioned, write_partitioned
from k25_pipelines.errors import ManifestError
from k25_pipelines.storage.store import open_store
from tests.catalog.test_diff import lines_of


@pytest.fixture
def lake(tmp_path):
    return open_store(str(tmp_path))


def partition(lake, numbers):
    manifest = make_manifest("web", lines_table(lines_of(numbers)), uri="memory://none", kind="images", chunk_lines=1)
    write_manifest(lake, manifest)
    return manifest


def test_lines_are_numbered_through_the_partitions_and_read_from_the_one_that_holds_them(lake):
    parts = [partition(lake, range(0, 30)), partition(lake, range(30, 37)), partition(lake, range(37, 90))]
    version = write_partitioned(lake, "web", parts)
    whole = open_partitioned(lake, "web", version)
    assert (whole.num_lines, whole.first_lines) == (90, (0, 30, 37))
    asked = [89, 0, 29, 30, 36, 37]
    assert whole.lines(asked) == {number: lines_of([number])[0] for number in asked}
    assert whole.line(31) == parts[1].line(1)
    for number in (-1, 90):
        with pytest.raises(ManifestError, match=f"has lines 0 to 89, not {number}"):
            whole.lines([3, number])


def test_a_root_that_is_missing_or_changed_and_a_partition_that_is_gone_are_named(lake):
    parts = [partition(lake, range(3)), partition(lake, range(3, 5))]
    version = write_partitioned(lake, "web", parts)
    with pytest.raises(ManifestError, match="no such partitioned version"):
        open_partitioned(lake, "web", "0123")
    whole = open_partitioned(lake, "web", version)
    lake.delete(f"k25/datasets/web/manifests/{parts[1].digest}.parquet")
    assert whole.line(2).key == "0000002"
    with pytest.raises(ManifestError, match="is gone; restore the object"):
        whole.line(3)
    other = write_partitioned(lake, "web", parts[:1])
    lake.put(f"k25/datasets/web/partitioned/{version}.root", lake.get(f"k25/datasets/web/partitioned/{other}.root"))
    with pytest.raises(ManifestError, match="not the root it is named for"):
        open_partitioned(lake, "web", version)
