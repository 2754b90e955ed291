"""A store in a bucket of any S3 server, configured by the standard AWS_* variables alone; the one door to boto3."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import botocore.exceptions as botocore_errors
from boto3.session import Session
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import get_session

from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from k25_pipelines.storage.store import ObjectInfo, checked_etag, checked_key, checked_length
from k25_pipelines.storage.throttle import FIRST_CONTACT, PATIENT, RetryPolicy, retried

MAX_CONNECTIONS = 64
CONNECT_SECONDS = 3
READ_SECONDS = 60
DEFAULT_REGION = "us-east-1"

_MISSING_KEY = {"NoSuchKey", "404", "NotFound"}
_DENIED = {"403", "AccessDenied", "Forbidden"}
_WRONG_KEYS = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "401", *_DENIED}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "TooManyRequests", "RequestLimitExceeded"}
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

    def __init__(self, url: str) -> None:
        """Open `url`; nothing is asked of the server yet. Raises StoreError: no bucket, or a setting is malformed."""
        self._bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        if not self._bucket:
            raise StoreError(f"{url} names no bucket; write s3://bucket or s3://bucket/prefix")
        self._prefix = f"{prefix}/" if prefix else ""
        self._answered = False
        self._bucket_seen = False
        try:
            self._client = _client()
        except (botocore_errors.BotoCoreError, ValueError) as error:
            raise StoreError(f"{url}: {_one_line(error)}; correct the AWS_* variables") from error

    def get(self, key: str) -> bytes:
        """Return a whole object. Raises ObjectNotFoundError."""
        name = self._name(key)
        return self._ask(lambda: self._client.get_object(Bucket=self._bucket, Key=name)["Body"].read(), key)

    def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
        """Return exactly `num_bytes` bytes from `offset`, of the object of that etag alone if one is given."""
        if num_bytes == 0:
            return b""
        name, where = self._name(key), f"{self.url}/{key}"
        asked = {"Bucket": self._bucket, "Key": name, "Range": f"bytes={offset}-{offset + num_bytes - 1}"}

        def read() -> bytes:
            found = self._client.get_object(**asked)
            with found["Body"] as body:
                checked_etag(found["ETag"].strip('"'), etag, where=where)
                return body.read()

        try:
            data = self._ask(read, key, passed={"InvalidRange"})
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
        def noted() -> Answer:
            try:
                return operation()
            except botocore_errors.ClientError:
                self._answered = True
                raise

        try:
            answer = retried(noted, is_transient=_is_transient, policy=self._policy)
        except (botocore_errors.ClientError, botocore_errors.BotoCoreError) as error:
            if _code(error) in passed:
                raise
            raise self._translated(error, key) from error
        self._answered = self._bucket_seen = True
        return answer

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
    return session.client("s3", region_name=session.region_name or DEFAULT_REGION, config=settings)


def _code(error: Exception) -> str:
    return getattr(error, "response", {}).get("Error", {}).get("Code", "")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, botocore_errors.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _code(error) in _BUSY
    return isinstance(error, _UNREACHED + _BROKEN_OFF)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
