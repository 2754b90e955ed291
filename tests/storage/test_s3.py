"""How S3 fails: each failure one line that names endpoint, bucket and key, and the way out."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import pytest

from k25_pipelines.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError, StoreError
from k25_pipelines.storage.s3 import S3Store
from k25_pipelines.storage.store import open_store
from tests.storage.conftest import free_port
from tests.storage.mock_s3 import BODY, BUSY, mock_s3


def message(url: str, ask=lambda store: store.get("a/key")) -> str:
    with pytest.raises(StoreError) as failure:
        ask(open_store(url))
    assert "\n" not in str(failure.value)
    return str(failure.value)


ASKS = {
    "get": lambda store: store.get("a/key"),
    "head": lambda store: store.head("a/key"),
    "put_new": lambda store: store.put_new("a/key", b""),
    "list": lambda store: list(store.list("a/key")),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_a_missing_bucket_is_named(rclone_lake, rclone_server, ask):
    expected = f"s3://nowhere/a/key at {rclone_server}: bucket 'nowhere' does not exist; create it, or correct the URL"
    assert message("s3://nowhere", ask) == expected


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_named(rclone_lake, monkeypatch, variable, ask):
    monkeypatch.setenv(variable, "another-secret")
    said = message("s3://lake", ask)
    assert "access refused" in said
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert "another-secret" not in said


def test_missing_credentials_are_named(rclone_lake, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "no credentials; set AWS_ACCESS_KEY_ID" in message("s3://lake")


def test_an_endpoint_that_nobody_serves_is_named(rclone_lake, monkeypatch):
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert message("s3://lake").startswith(f"s3://lake/a/key at {endpoint}: the endpoint cannot be reached")


def test_a_malformed_endpoint_is_named(rclone_lake, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    assert "localhost:9000" in message("s3://lake")


def test_a_url_without_bucket_is_refused():
    assert message("s3://") == "s3:// names no bucket; write s3://bucket or s3://bucket/prefix"


def test_an_absent_object_of_a_bucket_that_is_there_is_not_called_a_missing_bucket(rclone_lake):
    with pytest.raises(ObjectNotFoundError):
        open_store(rclone_lake).head("a/key")


def test_where_the_server_honours_conditions_a_late_second_writer_loses(moto_lake):
    store = open_store(moto_lake)
    store.put("once", b"first")
    assert store._put_absent("once", b"second") is False
    with pytest.raises(ObjectExistsError):
        store.put_new("once", b"second")


@pytest.fixture
def moody_server(rclone_lake, monkeypatch):
    """A server that answers each request by the next of a list: `busy`, `cut`, or the whole object `bytes`."""
    moods: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mood = moods.pop(0)
            body = BUSY if mood == "busy" else b"bytes"
            self.send_response(503 if mood == "busy" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:2] if mood == "cut" else body)
            self.close_connection = True

        def log_message(self, *arguments) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield moods
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("moods", [["busy", "busy", "busy"], ["cut"], ["cut", "busy"]])
def test_a_busy_server_and_a_connection_cut_off_are_waited_out(moody_server, moods):
    moody_server += [*moods, "whole"]
    assert open_store("s3://lake").get("a/key") == b"bytes"
    assert moody_server == []


@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_after_the_first_read_boto3_is_passed_by(request, monkeypatch, server):
    store = open_store(request.getfixturevalue(f"{server}_lake"))
    assert isinstance(store, S3Store)
    store.put("a é+%/b", b"0123456789")
    etag = store.head("a é+%/b").etag
    assert store.get("a é+%/b") == b"0123456789"
    monkeypatch.setattr(store._client, "get_object", None)
    assert store.get("a é+%/b") == b"0123456789"
    assert store.get_range("a é+%/b", 2, 3, etag=etag) == b"234"
    with pytest.raises(ObjectChangedError):
        store.get_range("a é+%/b", 2, 3, etag="another")


def test_errors_are_told_as_well_after_the_first_read(store):
    store.put("a", b"0123456789")
    for _ in range(2):
        assert store.get("a") == b"0123456789"
        with pytest.raises(ObjectNotFoundError, match="none"):
            store.get("none")
        with pytest.raises(StoreError, match="shorter"):
            store.get_range("a", 8, 5)
        with pytest.raises(StoreError, match="shorter"):
            store.get_range("a", 80, 5)


@pytest.mark.parametrize("status", [301, 400, 403])
def test_an_answer_that_is_neither_bytes_nor_busy_is_asked_for_again_through_boto3(rclone_lake, monkeypatch, status):
    answers = iter([200, status, 200, 200])
    with mock_s3(lambda path: (next(answers), 0)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = open_store("s3://lake")
        assert [store.get("a") for _ in range(3)] == [BODY] * 3
    assert list(answers) == []


def test_the_moto_server_is_really_there(moto_endpoint):
    with urlopen(Request(f"{moto_endpoint}/moto-api/data.json")) as answer:
        assert answer.status == 200
