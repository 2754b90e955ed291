"""What every backend promises: one contract over memory, a folder, rclone's and moto's S3 server."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k25_pipelines.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError, StoreError
from k25_pipelines.storage.store import ObjectInfo, open_store, read_url

KEYS = st.lists(st.text("abz.-_ é+%", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join)


def test_what_is_put_is_what_is_got(store):
    store.put("a/b.bin", b"bytes")
    assert store.get("a/b.bin") == b"bytes"


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert [info.key for info in store.list()] == ["empty"]


def test_a_range_is_exactly_what_was_asked_for(store):
    store.put("digits", b"0123456789")
    assert store.get_range("digits", 3, 4) == b"3456"
    assert store.get_range("digits", 0, 10) == b"0123456789"
    assert store.get_range("digits", 9, 1) == b"9"
    assert store.get_range("digits", 4, 0) == b""


@pytest.mark.parametrize(("offset", "num_bytes"), [(8, 3), (10, 1), (500, 4)])
def test_a_range_beyond_the_end_is_an_error(store, offset, num_bytes):
    store.put("digits", b"0123456789")
    with pytest.raises(StoreError, match="shorter"):
        store.get_range("digits", offset, num_bytes)


def test_size_and_etag_are_the_same_in_a_listing_as_in_a_head(store):
    store.put("a", b"bytes")
    expected = ObjectInfo(key="a", num_bytes=5, etag=hashlib.md5(b"bytes").hexdigest())
    assert store.head("a") == expected
    assert list(store.list()) == [expected]


def test_the_etag_changes_with_the_bytes(store):
    store.put("a", b"bytes")
    before = store.head("a").etag
    store.put("a", b"other")
    assert store.head("a").etag != before


def test_a_range_of_an_object_of_known_etag_is_never_one_of_another(store):
    store.put("digits", b"0123456789")
    etag = store.head("digits").etag
    assert (store.get_range("digits", 3, 4, etag=etag), next(store.list()).etag) == (b"3456", etag)
    for other in [b"9876543210", b"01234567890", b"01"]:
        store.put("digits", other)
        found = store.head("digits").etag
        with pytest.raises(ObjectChangedError) as failure:
            store.get_range("digits", 3, 4, etag=etag)
        assert str(failure.value) == (
            f"{store.url}/digits was overwritten: its etag is {found}, expected {etag};"
            " restore it, or register the new state as a new dataset"
        )
    store.put("digits", b"0123456789")
    assert store.get_range("digits", 3, 4, etag=etag) == b"3456"


@pytest.mark.parametrize("ask", ["get", "head"])
def test_an_absent_object_is_named(store, ask):
    with pytest.raises(ObjectNotFoundError, match="no/such"):
        getattr(store, ask)("no/such")


def test_listing_follows_the_order_of_keys_and_keeps_to_the_prefix(store):
    for key in ["b", "a/c", "a.txt", "a/b/d", "ab", "a0"]:
        store.put(key, b"x")
    assert [info.key for info in store.list()] == ["a.txt", "a/b/d", "a/c", "a0", "ab", "b"]
    assert [info.key for info in store.list("a/")] == ["a/b/d", "a/c"]
    assert [info.key for info in store.list("a/b")] == ["a/b/d"]
    assert [info.key for info in store.list("none/")] == []


def test_a_listing_has_every_object_of_more_than_one_page(rclone_lake):
    store = open_store(rclone_lake)
    keys = [f"{number:04}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [info.key for info in store.list()] == keys


def test_written_once_means_the_same_bytes_again_or_an_error(store):
    store.put_new("once", b"bytes")
    store.put_new("once", b"bytes")
    with pytest.raises(ObjectExistsError, match="once"):
        store.put_new("once", b"other")
    assert store.get("once") == b"bytes"


def test_what_is_deleted_is_gone_and_may_be_deleted_again(store):
    store.put("a", b"bytes")
    store.delete("a")
    store.delete("a")
    assert list(store.list()) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/", "a\0b"])
def test_a_key_cannot_leave_the_root(store, key):
    for ask in (store.get, store.head, store.delete):
        with pytest.raises(StoreError, match="cannot leave the root"):
            ask(key)
    for write in (store.put, store.put_new):
        with pytest.raises(StoreError, match="cannot leave the root"):
            write(key, b"")


def test_a_store_below_a_prefix_sees_only_what_lies_there(store):
    store.put("raw/captions/a.tar", b"1")
    store.put("raw/captions_heldout/b.tar", b"2")
    below = open_store(f"{store.url}/raw/captions")
    assert [info.key for info in below.list()] == ["a.tar"]
    assert below.get("a.tar") == b"1"
    assert read_url(f"{store.url}/raw/captions/a.tar") == b"1"


def test_many_threads_may_share_a_store(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"{number:02}", bytes([number]) * 1000), range(24)))
        found = list(pool.map(lambda number: store.get_range(f"{number:02}", 10, 20), range(24)))
    assert found == [bytes([number]) * 20 for number in range(24)]


@given(KEYS.filter(lambda key: not {".", ".."} & set(key.split("/"))), st.binary(max_size=50))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plain_name_holds_any_bytes(store, key, data):
    store.put(key, data)
    assert (store.get(key), [info.key for info in store.list(key)]) == (data, [key])
    store.delete(key)


@pytest.mark.parametrize("url", ["gs://bucket", "s3:/bucket", "memory:/name"])
def test_a_url_of_another_scheme_is_refused(url):
    with pytest.raises(StoreError, match=f"{url}: no such kind of store"):
        open_store(url)
