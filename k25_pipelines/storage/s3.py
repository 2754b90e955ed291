"""A store in a bucket of any S3 server, configured by the standard AWS_* variables alone; the one door to boto3."""

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import botocore.exceptions as botocore_errors
from boto3.session import Session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.response import StreamingBody
from botocore.session import get_session
from botocore.utils import percent_encode

from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from k25_pipelines.storage.route import Route, learned_route
from k25_pipelines.storage.store import ObjectInfo, checked_etag, checked_key, checked_length
from k25_pipelines.storage.throttle import FIRST_CONTACT, PATIENT, RetryPolicy, budget_folder
from k25_pipelines.storage.traffic import Traffic

MAX_CONNECTIONS = 64
CONNECT_SECONDS = 3
READ_SECONDS = 60
DEFAULT_REGION = "us-east-1"

_MISSING_KEY = {"NoSuchKey", "404", "NotFound"}
_DENIED = {"403", "AccessDenied", "Forbidden"}
_WRONG_KEYS = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "401", *_DENIED}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "TooManyRequests", "RequestLimitExceeded"}
_BUSY_STATUS = (429, 503)
_UNREACHED = (
    botocore_errors.EndpointConnectionError,
    botocore_errors.ConnectTimeoutError,
    botocore_errors.ProxyConnectionError,
)
_BROKEN_OFF = (botocore_errors.HTTPClientError, botocore_errors.IncompleteReadError)

_LOADER = create_loader()
"""Keeps the service's description, which is slow to read, for every client; credentials are read anew for each."""
Answer = TypeVar("Answer")


class S3Store:
    """Objects below `s3://bucket[/prefix]`. One client, which threads may share."""

    def __init__(self, url: str, **limits: float | None) -> None:
        """Open `url`, under the limits of `Traffic`; nothing is asked of the server yet.

        Raises:
            StoreError: no bucket, or a setting is malformed.
        """
        self._bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        if not self._bucket:
            raise StoreError(f"{url} names no bucket; write s3://bucket or s3://bucket/prefix")
        self._prefix = f"{prefix}/" if prefix else ""
        self._answered = False
        self._bucket_seen = False
        try:
            self._client, self._credentials = _client()
        except (botocore_errors.BotoCoreError, ValueError) as error:
            raise StoreError(f"{url}: {_one_line(error)}; correct the AWS_* variables") from error
        self._route: Route | None = None
        self._sent = threading.local()
        self._client.meta.events.register("before-send.s3.GetObject", self._note_sent)
        self._traffic = Traffic(
            budget_folder(self._client.meta.endpoint_url, self._bucket),
            is_transient=_is_transient,
            refusal=self._refusal,
            **limits,
        )

    def statistics(self) -> dict[str, int]:
        """Return how many requests this store sent, how many of them were throttled, retried, hedged; bytes read."""
        return self._traffic.statistics()

    def get(self, key: str) -> bytes:
        """Return a whole object. Raises ObjectNotFoundError."""
        return self._told(lambda: self._traffic.read(partial(self._read, key), policy=self._policy), key)

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return exactly `num_bytes` bytes from `offset`, of the object of that etag alone if one is given."""
        if num_bytes == 0:
            return b""
        where = f"{self.url}/{key}"
        read = partial(self._read, key, f"bytes={offset}-{offset + num_bytes - 1}", etag=etag)
        ask = partial(self._traffic.read, read, policy=self._policy, num_bytes=num_bytes)
        try:
            data = self._told(ask, key, passed={"InvalidRange", "416"})
        except botocore_errors.ClientError as error:  # the object ends before the range, so it may be another one
            checked_etag(self.head(key).etag, etag, where=where)
            raise StoreError(f"{self._where(key)} from byte {offset}: the object is shorter") from error
        return checked_length(data, num_bytes, where=f"{where} from byte {offset}")

    def head(self, key: str) -> ObjectInfo:
        """Return size and etag of an object. Raises ObjectNotFoundError."""
        name = self._name(key)
        found = self._ask(lambda: self._client.head_object(Bucket=self._bucket, Key=name), key)
        return ObjectInfo(key=key, num_bytes=found["ContentLength"], etag=found["ETag"].strip('"'))

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all, replacing what stood there."""
        name = self._name(key)
        self._ask(lambda: self._client.put_object(Bucket=self._bucket, Key=name, Body=data), key)

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object once. Raises ObjectExistsError where other bytes stand.

        Some servers ignore `If-None-Match`, so we look first; between the look and the write
        two writers of different bytes may meet there. Names made from content make that harmless.
        """
        try:
            self.head(key)
        except ObjectNotFoundError:
            if self._put_absent(key, data):
                return
        if self.get(key) != data:
            raise ObjectExistsError(f"{self._where(key)} stands already, with other bytes; it is written once")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix`, in the order of their keys."""
        found = []
        arguments = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._ask(lambda: self._client.list_objects_v2(**arguments), prefix)
            found += page.get("Contents", ())
            if not page.get("IsTruncated"):
                break
            arguments["ContinuationToken"] = page["NextContinuationToken"]
        found.sort(key=lambda item: item["Key"])  # not every server keeps the order that S3 promises
        for item in found:
            key = item["Key"][len(self._prefix) :]
            if key and not key.endswith("/"):  # markers that consoles leave for folders
                yield ObjectInfo(key=key, num_bytes=item["Size"], etag=item["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        name = self._name(key)
        self._ask(lambda: self._client.delete_object(Bucket=self._bucket, Key=name), key)

    def _read(self, key: str, byte_range: str | None = None, *, etag: str | None = None) -> bytes:
        """Ask once for an object or a range of it, and return its bytes if it has the etag that is given."""
        name = self._name(key)
        # boto3 spends most of a small GET in handlers and parsers. Its first GET shows where the bucket is and how it
        # is signed for; the next go there through the same connections, signed by botocore's signer: 1.6x the
        # GETs of 100 kB and 1.2x the bytes of 8 MiB per CPU second. s3fs costs what boto3 does, pyarrow checks
        # no etag, obstore refuses a range with status 200, as rclone gives it (benchmarks/s3_clients.py).
        found = self._read_directly(self._route, name, byte_range) if self._route else None
        if found is None:  # boto3 knows redirects, regions and renewed credentials
            ranged = {"Range": byte_range} if byte_range else {}
            answer = self._client.get_object(Bucket=self._bucket, Key=name, **ranged)
            found = answer.get("ETag", ""), answer["Body"]
            url, authorization = self._sent.request
            self._route = learned_route(url, authorization, percent_encode(name, safe="/~"))
        with found[1]:
            checked_etag(found[0].strip('"'), etag, where=f"{self.url}/{key}")
            data = found[1].read()
        self._traffic.count(bytes=len(data))
        return data

    def _read_directly(self, route: Route, name: str, byte_range: str | None) -> tuple[str, StreamingBody] | None:
        """Return etag and body, or None if boto3 shall ask. Raises what boto3 would, where the error is plain."""
        headers = {"Range": byte_range} if byte_range else {}
        request = AWSRequest("GET", route.base + percent_encode(name, safe="/~"), headers=headers)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", route.region).add_auth(request)
        prepared = request.prepare()
        prepared.stream_output = True
        answer = self._client._endpoint.http_session.send(prepared)
        if answer.status_code in (200, 206):
            return answer.headers.get("ETag", ""), StreamingBody(answer.raw, answer.headers.get("Content-Length"))
        if answer.status_code in (404, 416, 429) or answer.status_code >= 500:
            raise _error_of(answer)
        answer.raw.drain_conn()
        self._route = None  # moved, or signed for wrongly: boto3 shows the way anew
        return None

    def _note_sent(self, request, **_: object) -> None:
        """Keep what boto3 sends, in the thread that asks."""
        signed = request.headers.get("Authorization", b"")
        self._sent.request = request.url, signed.decode() if isinstance(signed, bytes) else signed

    def _put_absent(self, key: str, data: bytes) -> bool:
        name = self._name(key)
        put = {"Bucket": self._bucket, "Key": name, "Body": data, "IfNoneMatch": "*"}
        try:
            self._ask(lambda: self._client.put_object(**put), key, passed={"PreconditionFailed", "412"})
        except botocore_errors.ClientError:
            return False
        return True

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _where(self, key: str) -> str:
        return f"{self.url}/{key} at {self._client.meta.endpoint_url}"

    def _ask(self, operation: Callable[[], Answer], key: str, *, passed: frozenset | set = frozenset()) -> Answer:
        return self._told(lambda: self._traffic.ask(operation, policy=self._policy), key, passed=passed)

    def _told(self, ask: Callable[[], Answer], key: str, *, passed: frozenset | set = frozenset()) -> Answer:
        """Return the answer, or raise what went wrong in our words; errors of the codes `passed` as they are."""
        try:
            answer = ask()
        except (botocore_errors.ClientError, botocore_errors.BotoCoreError) as error:
            if _code(error) in passed:
                raise
            raise self._translated(error, key) from error
        self._answered = self._bucket_seen = True
        return answer

    def _refusal(self, error: Exception) -> tuple[bool, float | None]:
        """Return whether the server says that it is asked too much, and for how long to pause if it says so [s]."""
        if not isinstance(error, botocore_errors.ClientError):
            return False, None
        self._answered = True
        told = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
        is_refused = _status(error) in _BUSY_STATUS or _code(error) in _BUSY
        return is_refused, float(told) if told.isdecimal() else None

    def _policy(self) -> RetryPolicy:
        return PATIENT if self._answered else FIRST_CONTACT

    def _translated(self, error: Exception, key: str) -> StoreError:
        where, code = self._where(key), _code(error)
        bucket = f"{where}: bucket {self._bucket!r} does not exist; create it, or correct the URL"
        if code == "NoSuchBucket" or (code in _MISSING_KEY and self._bucket_is_missing()):
            return StoreError(bucket)
        if code in _MISSING_KEY:
            return ObjectNotFoundError(f"{where}: no such object")
        if code in _WRONG_KEYS:
            return StoreError(f"{where}: access refused ({code}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if isinstance(error, botocore_errors.NoCredentialsError | botocore_errors.PartialCredentialsError):
            return StoreError(f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if isinstance(error, _UNREACHED):
            return StoreError(f"{where}: the endpoint cannot be reached; check AWS_ENDPOINT_URL and the server")
        return StoreError(f"{where}: {_one_line(error)}")

    def _bucket_is_missing(self) -> bool:
        """A HEAD's 404 has no body that would tell a missing bucket from a missing object."""
        if not self._bucket_seen:
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except botocore_errors.ClientError as error:
                return _code(error) in _MISSING_KEY
            self._bucket_seen = True
        return False


def _client():
    core = get_session()
    core.register_component("data_loader", _LOADER)
    session = Session(botocore_session=core)
    settings = Config(
        retries={"total_max_attempts": 1},  # retries live in throttle.py
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",  # rclone sends the whole object's checksum with a range
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=MAX_CONNECTIONS,
        tcp_keepalive=True,
    )
    client = session.client("s3", region_name=session.region_name or DEFAULT_REGION, config=settings)
    return client, session.get_credentials()


def _error_of(answer: AWSResponse) -> botocore_errors.ClientError:
    """Return the error that boto3 would raise for this answer."""
    said = answer.content.decode("utf-8", "replace")
    told = {name: found[1] for name in ("Code", "Message") if (found := re.search(f"<{name}>(.*?)</{name}>", said))}
    headers = {name.lower(): value for name, value in answer.headers.items()}
    metadata = {"HTTPStatusCode": answer.status_code, "HTTPHeaders": headers}
    return botocore_errors.ClientError(
        {"Error": {"Code": str(answer.status_code), **told}, "ResponseMetadata": metadata}, "GetObject"
    )


def _code(error: Exception) -> str:
    answer = getattr(error, "response", None) or {}  # None where the connection broke before there was one
    return answer.get("Error", {}).get("Code", "")


def _status(error: botocore_errors.ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, botocore_errors.ClientError):
        return _status(error) >= 500 or _status(error) == 429 or _code(error) in _BUSY
    return isinstance(error, _UNREACHED + _BROKEN_OFF)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
