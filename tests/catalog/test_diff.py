"""`k25 datasets --diff` and `--drift`: what changed between versions, and behind one."""

import json

import numpy as np
import pyarrow as pa
import pytest

from k25_pipelines.catalog.diff import diff_versions, named_version
from k25_pipelines.catalog.drift import find_drift
from k25_pipelines.catalog.line import Line, Part, lines_table
from k25_pipelines.catalog.manifest import make_manifest
from k25_pipelines.catalog.pages import PAGE_LINES, page_rows, write_pages
from k25_pipelines.catalog.registry import Registration, index_dataset, load_manifest, register
from k25_pipelines.errors import ManifestError
from k25_pipelines.governance.hashes import part_reader
from k25_pipelines.storage.store import open_store
from tests.catalog.conftest import json_lines, picture, registered, tar
from tests.fed_run import k25


def lines_of(numbers, *, etag="e", licence="CC0-1.0"):
    return [
        Line(
            key=f"{number:07}",
            parts=(Part(kind="image", shard=f"{number}.jpg", num_bytes=9, etag=etag, shard_bytes=9),),
            licence=licence if number % 2 else "CC-BY-4.0",
            source="crawl",
        )
        for number in numbers
    ]


def version_of(lake, name, lines):
    manifest = make_manifest(name, lines_table(lines), uri="memory://none", kind="images", chunk_lines=1)
    write_pages(lake, manifest)
    return name, manifest.digest


def test_a_diff_tells_what_was_added_removed_and_changed_by_licence_and_source(lake):
    before = version_of(lake, "a", lines_of(range(0, 40)))
    after = version_of(lake, "b", [*lines_of(range(10, 39)), *lines_of([39], etag="new"), *lines_of(range(40, 45))])
    found = diff_versions(lake, before, after)
    assert (found.added.count, dict(found.added.by_licence)) == (5, {"CC-BY-4.0": 3, "CC0-1.0": 2})
    assert (found.removed.count, dict(found.removed.by_source)) == (10, {"crawl": 10})
    assert (found.changed.count, found.changed.keys) == (1, ["0000039"])
    relicensed = version_of(lake, "c", lines_of(range(40), licence="MIT"))
    assert dict(diff_versions(lake, before, relicensed).changed.by_licence) == {"CC0-1.0 -> MIT": 20}


def test_a_diff_of_one_percent_reads_less_than_a_twentieth_of_the_index(lake):
    num_lines = 60 * PAGE_LINES
    whole = lines_table(lines_of(range(num_lines)))
    gone = np.ones(num_lines, bool)
    gone[num_lines // 3 : num_lines // 3 + num_lines // 100] = False
    versions = []
    for name, table in (("a", whole), ("b", whole.filter(pa.array(gone)))):
        manifest = make_manifest(name, table, uri="memory://none", kind="images", chunk_lines=1)
        write_pages(lake, manifest)
        versions.append((name, manifest.digest))
    found = diff_versions(lake, *versions)
    assert (found.added.count, found.removed.count, found.changed.count) == (0, num_lines // 100, 0)
    assert found.read_bytes < 0.05 * found.total_bytes


def test_samples_that_share_a_key_are_told_apart_by_their_order(lake):
    twice = lines_of([1, 1, 1])
    found = diff_versions(lake, version_of(lake, "a", twice), version_of(lake, "b", twice[:2]))
    assert (found.removed.count, found.removed.keys, found.changed.count) == (1, ["0000001"], 0)


def test_the_same_bytes_elsewhere_in_a_tar_written_anew_are_no_change(lake):
    for name, members in (
        ("a", {"x.jpg": picture(), "y.jpg": picture(9)}),
        ("b", {"y.jpg": picture(9), "x.jpg": picture()}),
    ):
        lake.put(f"raw/{name}/0.tar", tar(members))
        registered(lake, name, "webdataset")
        index_dataset(lake, name)
    found = diff_versions(lake, named_version(lake, "a"), named_version(lake, "b@1"))
    assert (found.added.count, found.removed.count, found.changed.count) == (0, 0, 0)


def test_versions_are_named_by_number_or_digest_and_unknown_ones_with_those_that_there_are(lake):
    for number in (1, 2):
        lake.put(f"raw/a/{number}.jpg", picture(8 + number))
        if number == 1:
            registered(lake, "a", "images")
        index_dataset(lake, "a")
    first, second = (named_version(lake, f"a@{number}")[1] for number in (1, 2))
    assert named_version(lake, "a") == named_version(lake, f"a@{second[:8]}") == ("a", second)
    assert diff_versions(lake, ("a", first), ("a", second)).added.keys == ["2.jpg"]
    with pytest.raises(ManifestError, match=f"known: 1 \\({first[:12]}"):
        named_version(lake, "a@7")


def test_pages_do_not_depend_on_where_lines_stand_in_the_manifest():
    tables = [lines_table(lines_of(order)) for order in (range(50), reversed(range(50)))]
    rows = [page_rows(make_manifest("a", t, uri="", kind="images", chunk_lines=1), [None] * 50) for t in tables]
    assert rows[0].equals(rows[1])


@pytest.fixture
def drifted(s3_environment):
    """Three pictures and a tar in a bucket, indexed; then one is overwritten, one gone, one written again, one new."""
    lake = open_store(s3_environment["K25_LAKE"])
    for name, width in (("a", 8), ("b", 9), ("c", 10)):
        lake.put(f"raw/web/{name}.jpg", picture(width))
    register(lake, Registration(name="web", uri=f"{lake.url}/raw/web", kind="images", licence="CC0-1.0", source="us"))
    index_dataset(lake, "web")
    lake.put("raw/web/a.jpg", picture(8)[:-2] + b"\0" + picture(8)[-2:])
    lake.delete("raw/web/b.jpg")
    lake.put("raw/web/d.jpg", picture(11))
    return lake


def test_an_overwritten_and_a_lost_object_are_named_and_new_ones_counted(drifted):
    found = find_drift(drifted, "web")
    told = [(each.uri.rpartition("/")[2], each.change, each.keys) for each in found.objects]
    assert told == [("a.jpg", "overwritten", ("a.jpg",)), ("b.jpg", "gone", ("b.jpg",))]
    assert (found.num_objects, found.num_new, found.is_broken) == (3, 1, True)


def test_digests_tell_other_bytes_under_an_old_etag_and_the_same_bytes_under_a_new_one(drifted):
    cells = part_reader(load_manifest(drifted, "web"))
    assert [(e.change, e.num_changed) for e in find_drift(drifted, "web", cells=cells).objects] == [
        ("overwritten", 1),
        ("gone", None),
    ]
    manifest = load_manifest(drifted, "web")
    parts = manifest.table["parts"].to_pylist()
    assert parts[2][0]["shard"] == "c.jpg"
    silent = find_drift(drifted, "web", cells=lambda part: b"other" if part.shard == "c.jpg" else cells(part))
    assert [(e.uri[-5:], e.change) for e in silent.objects][-1] == ("c.jpg", "overwritten")


def test_the_commands_tell_drift_by_their_exit_code_and_diff_as_json(drifted, capsys):
    assert k25("datasets", "--drift", "web", "--deep") == 1
    said = capsys.readouterr().out
    assert [words in said for words in ("overwritten: ", "gone: ", "1 are new: k25 index web")] == [True] * 3
    assert k25("datasets", "--diff", "web", "web", "--json") == 0
    assert json.loads(capsys.readouterr().out)["changed"]["count"] == 0
    drifted.put("raw/web/b.jpg", picture(9))
    drifted.put("raw/web/a.jpg", picture(8))
    assert k25("datasets", "--drift", "web", "--deep") == 0
    assert "3 of 3 objects are as they were indexed; 3 media compared" in capsys.readouterr().out


def test_a_dataset_is_registered_again_with_more_said_about_it_and_never_under_other_terms(lake, monkeypatch, capsys):
    monkeypatch.setenv("K25_LAKE", lake.url)
    lake.put("raw/text/0.jsonl", json_lines({"text": "words"}))
    base = ("register", "text", f"{lake.url}/raw/text", "--kind", "jsonl", "--source", "us", "--licence")
    assert k25(*base, "CC0-1.0", "--owner", "A", "--pii", "none") == 0
    assert k25(*base, "CC0-1.0") == 0
    assert "nothing is different" in capsys.readouterr().out
    assert k25("register", "text", "--keep-until", "2020-01-01") == 0
    assert k25("datasets", "--json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n")[2])[0]
    assert (told["owners"], told["pii"], told["keep_until"]) == (["A"], "none", "2020-01-01")
    assert k25("datasets") == 0
    assert "to be deleted since 2020-01-01" in capsys.readouterr().out
    assert k25(*base, "MIT") == 2
    assert "licence is 'CC0-1.0', not 'MIT'" in capsys.readouterr().err
    assert k25("register", "text", "--pii", "perhaps") == 2
    assert k25("register", "other", "--pii", "none") == 2
    assert "to register a dataset give uri, --kind, --licence, --source, too" in capsys.readouterr().err
