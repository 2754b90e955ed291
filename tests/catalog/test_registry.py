"""Datasets by name: registered once, indexed in place, and only ever added to."""

import pytest

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import (
    dataset_names,
    dataset_versions,
    index_dataset,
    load_manifest,
    register,
    registration,
)
from k25_pipelines.errors import DatasetError, ManifestError, StoreError
from k25_pipelines.storage.memory import MemoryStore
from k25_pipelines.storage.store import open_store
from tests.catalog.conftest import json_lines, picture, registered, tar


def keys(manifest) -> list[str]:
    return [manifest.line(number).key for number in range(manifest.num_lines)]


def refusal(ask, *arguments, **options) -> str:
    with pytest.raises((DatasetError, ManifestError, StoreError)) as failure:
        ask(*arguments, **options)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_dataset_is_found_under_its_name(lake):
    expected = registered(lake, "wiki", "parquet")
    registered(lake, "code", "jsonl")
    assert registration(lake, "wiki") == expected
    assert dataset_names(lake) == ["code", "wiki"]


def test_registering_again_changes_nothing_and_changing_is_an_error(lake):
    registered(lake, "wiki", "parquet")
    registered(lake, "wiki", "parquet")
    said = refusal(registered, lake, "wiki", "jsonl", licence="MIT")
    changes = "kind is 'parquet', not 'jsonl'; licence is 'CC0-1.0', not 'MIT'"
    assert said == f"wiki is registered already: {changes}; choose another name"


@pytest.mark.parametrize("name", ["", "Wiki", "a-b", "a/b", "..", "wiki\n"])
def test_a_name_of_other_characters_is_refused(lake, name):
    assert "a-z, 0-9 and _" in refusal(registered, lake, name, "parquet")


def test_an_unknown_kind_is_refused_with_the_nearest(lake):
    assert "wiki: unknown kind 'parket'; did you mean 'parquet'?" in refusal(registered, lake, "wiki", "parket")


@pytest.mark.parametrize("field", ["uri", "licence", "source"])
def test_an_empty_field_is_refused(lake, field):
    assert refusal(registered, lake, "wiki", "parquet", **{field: " "}).startswith(f"wiki: {field} is empty")


def test_a_folder_is_registered_by_its_whole_path(lake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = register(lake, Registration(name="a", uri="raw/a/", kind="text", licence="MIT", source="here"))
    assert made.uri == f"{tmp_path}/raw/a"


def test_an_unknown_dataset_is_named_with_the_known_ones(lake):
    registered(lake, "captions", "webdataset")
    expected = f"unknown dataset 'captoins' in {lake.url}; did you mean 'captions'? known: captions"
    assert [refusal(ask, lake, "captoins") for ask in (registration, index_dataset, load_manifest)] == [expected] * 3


def test_a_dataset_that_was_never_indexed_says_how_to(lake):
    registered(lake, "wiki", "parquet")
    assert "run: k25 index wiki" in refusal(load_manifest, lake, "wiki")


def test_nothing_below_the_uri_says_what_was_looked_for(lake):
    lake.put("raw/wiki/readme.md", b"")
    registered(lake, "wiki", "parquet")
    expected = f"wiki: no objects below {lake.url}/raw/wiki; a parquet dataset is *.parquet"
    assert refusal(index_dataset, lake, "wiki") == expected


def test_indexing_publishes_a_version_that_loads(lake):
    lake.put("raw/code/0.jsonl", json_lines({"text": "abc"}, {"wrong": 1}))
    registered(lake, "code", "jsonl")
    manifest = index_dataset(lake, "code")
    assert load_manifest(lake, "code").table.equals(manifest.table)
    assert load_manifest(lake, "code", manifest.digest).digest == manifest.digest
    assert dataset_versions(lake, "code") == [
        {
            "number": 1,
            "digest": manifest.digest,
            "parent": None,
            "num_lines": 2,
            "num_quarantined": 1,
            "chunk_lines": 1,
            "uri": f"{lake.url}/raw/code",
            "kind": "jsonl",
            "licence": "CC0-1.0",
            "source": "drawn for a test",
        }
    ]


def test_the_digest_is_the_one_that_past_plans_used(lake):
    lake.put(
        "raw/code/0.jsonl", json_lines({"text": "abc", "key": "a"}, {"content": "é", "licence": "MIT"}, {"wrong": 1})
    )
    registered(lake, "code", "jsonl")
    assert index_dataset(lake, "code").digest == "73349e7f6bcfe87f3fff84cd03fa8338"


def test_indexing_again_without_change_makes_no_version(lake):
    lake.put("raw/code/0.jsonl", json_lines({"text": "abc"}))
    registered(lake, "code", "jsonl")
    before = [index_dataset(lake, "code").digest, *(info.key for info in lake.list("k25/"))]
    assert [index_dataset(lake, "code").digest, *(info.key for info in lake.list("k25/"))] == before


def test_new_objects_add_lines_and_old_lines_keep_their_numbers(lake):
    lake.put("raw/code/m.jsonl", json_lines({"text": "b", "key": "m"}))
    registered(lake, "code", "jsonl")
    first = index_dataset(lake, "code")
    lake.put("raw/code/a.jsonl", json_lines({"text": "a", "key": "a"}))  # stands before m in a listing
    second = index_dataset(lake, "code")
    assert (keys(first), keys(second)) == (["m"], ["m", "a"])
    assert second.line(0) == first.line(0)
    assert [version["parent"] for version in dataset_versions(lake, "code")] == [None, first.digest]
    assert load_manifest(lake, "code", first.digest).num_lines == 1


def test_the_chunk_size_of_the_first_version_stays(lake):
    lake.put("raw/code/a.jsonl", json_lines(*({"text": "a"} for _ in range(512))))
    registered(lake, "code", "jsonl")
    first = index_dataset(lake, "code")
    lake.put("raw/code/b.jsonl", json_lines(*({"text": "b"} for _ in range(1024))))
    assert (first.chunk_lines, index_dataset(lake, "code").chunk_lines) == (2, 2)


@pytest.mark.parametrize("harm", ["overwritten", "gone"])
def test_an_object_that_changed_is_named_and_nothing_is_written(lake, harm):
    lake.put("raw/code/0.jsonl", json_lines({"text": "abc"}))
    lake.put("raw/code/1.jsonl", json_lines({"text": "def"}))
    registered(lake, "code", "jsonl")
    first = index_dataset(lake, "code")
    before = [info.key for info in lake.list("k25/")]
    lake.put("raw/code/1.jsonl", json_lines({"text": "xyz"})) if harm == "overwritten" else lake.delete(
        "raw/code/1.jsonl"
    )
    lake.put("raw/code/2.jsonl", json_lines({"text": "new"}))
    said = refusal(index_dataset, lake, "code")
    assert said.startswith(f"code@{first.digest[:8]}: object {lake.url}/raw/code/1.jsonl ")
    assert harm in said
    assert said.endswith("restore it, or register the new state as a new dataset")
    assert [info.key for info in lake.list("k25/")] == before


def test_a_broken_object_that_is_replaced_is_a_new_line(lake):
    lake.put("raw/pictures/a.jpg", picture()[:-9])
    lake.put("raw/pictures/b.jpg", picture())
    registered(lake, "pictures", "images")
    first = index_dataset(lake, "pictures")
    lake.put("raw/pictures/a.jpg", picture())
    second = index_dataset(lake, "pictures")
    assert (keys(second), second.quarantined.tolist()) == (["a.jpg", "b.jpg", "a.jpg"], [True, False, False])
    assert second.line(0) == first.line(0)


class PowerCut(MemoryStore):
    """Goes away before the name that publishes is written."""

    def put_new(self, key: str, data: bytes) -> None:
        if "/versions/" in key:
            raise ConnectionError("the power is gone")
        super().put_new(key, data)


def test_an_indexer_killed_before_the_end_leaves_the_old_version(lake):
    lake.put("raw/code/0.jsonl", json_lines({"text": "abc"}))
    registered(lake, "code", "jsonl")
    first = index_dataset(lake, "code")
    lake.put("raw/code/1.jsonl", json_lines({"text": "def"}))
    with pytest.raises(ConnectionError):
        index_dataset(PowerCut(url=lake.url, objects=lake.objects), "code")
    assert load_manifest(lake, "code").digest == first.digest
    second = index_dataset(lake, "code")
    assert (load_manifest(lake, "code").digest, second.num_lines) == (second.digest, 2)


def fill(lake) -> None:
    for shard in range(9):
        samples = range(shard * 5, shard * 5 + 5)
        members = {
            f"{n:04}.{kind}": picture(8 + n, 6) if kind == "jpg" else b"x" * n
            for n in samples
            for kind in ("jpg", "txt")
        }
        lake.put(f"raw/captions/{shard}.tar", tar(members))


def test_the_number_of_threads_changes_no_line(lake):
    fill(lake)
    other = open_store(f"{lake.url}/other")
    for place, uri in ((lake, lake), (other, lake)):
        registered(place, "captions", "webdataset", uri=f"{uri.url}/raw/captions")
    one, many = index_dataset(lake, "captions", threads=1), index_dataset(other, "captions", threads=8)
    assert (many.digest, keys(many)) == (one.digest, [f"{number:04}" for number in range(45)])


def test_progress_counts_objects_and_samples(lake):
    fill(lake)
    registered(lake, "captions", "webdataset")
    seen = []
    index_dataset(lake, "captions", progress=lambda *told: seen.append(told))
    assert [told[:2] for told in seen] == [(done, 9) for done in range(1, 10)]
    assert [told[2].split(",")[0] for told in seen] == [f"{5 * done} samples" for done in range(1, 10)]


def test_the_backend_changes_no_digest(lake, tmp_path, s3_environment):
    fill(lake)
    remote, folder = open_store(s3_environment["K25_LAKE"]), open_store(str(tmp_path / "lake"))
    for info in lake.list("raw/"):
        remote.put(info.key, lake.get(info.key))
        folder.put(info.key, lake.get(info.key))
    digests = set()
    for place in (lake, remote, folder):
        registered(place, "captions", "webdataset")
        digests.add(index_dataset(place, "captions").digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "access refused"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "the endpoint cannot be reached"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_by_the_indexer(
    lake, s3_environment, monkeypatch, variable, value, expected
):
    registered(lake, "captions", "webdataset", uri=f"{s3_environment['K25_LAKE']}/raw/captions")
    monkeypatch.setenv(variable, value)
    said = refusal(index_dataset, lake, "captions")
    assert expected in said
    assert s3_environment["K25_LAKE"] in said


def test_a_missing_bucket_is_named_by_the_indexer(lake, s3_environment):
    registered(lake, "captions", "webdataset", uri="s3://no-such-bucket/raw")
    assert "bucket 'no-such-bucket' does not exist" in refusal(index_dataset, lake, "captions")
