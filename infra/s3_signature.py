"""One signed question to an S3 endpoint: endpoint and credentials in, HTTP status out. Plain Python: it starts fast."""

import hashlib
import hmac
import http.client
import urllib.parse
from datetime import UTC, datetime

REGION = "us-east-1"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def list_buckets_status(endpoint: str, access_key: str, secret_key: str, *, timeout_seconds: float = 5.0) -> int | None:
    """Return the HTTP status with which `endpoint` answers a signed ListBuckets, None if nothing answers.

    200 means the server knows these credentials, 403 that it is somebody else's.

    Args:
        endpoint: such as `http://127.0.0.1:9000`.
        access_key: the credentials' public half.
        secret_key: the credentials' secret half.
        timeout_seconds: for the connection and for the answer [s].
    """
    host = urllib.parse.urlsplit(endpoint).netloc
    headers = signed_headers(host, access_key, secret_key, moment=datetime.now(UTC))
    connection = http.client.HTTPConnection(host, timeout=timeout_seconds)
    try:
        connection.request("GET", "/", headers=headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def signed_headers(host: str, access_key: str, secret_key: str, *, moment: datetime) -> dict[str, str]:
    """Return the headers that sign `GET /` at `host` at `moment` (UTC).

    Source: AWS Signature Version 4, "Create a signed AWS API request", for an empty body and query.
    """
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    signed = "host;x-amz-content-sha256;x-amz-date"
    canonical = "\n".join(
        ["GET", "/", "", f"host:{host}", f"x-amz-content-sha256:{EMPTY_SHA256}", f"x-amz-date:{stamp}", "", signed]
    )
    canonical_sha256 = hashlib.sha256(f"{canonical}\n{EMPTY_SHA256}".encode()).hexdigest()
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    signature = _hmac(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{canonical_sha256}").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
    return {"x-amz-date": stamp, "x-amz-content-sha256": EMPTY_SHA256, "Authorization": authorization}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
