"""How a request reached a bucket: URL and signature of one that was answered in, where the next go out."""

import re
from dataclasses import dataclass

_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d+/([^/]+)/s3/aws4_request")


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where a GET went and how it was signed, so that the next ones go there as well."""

    base: str
    """URL up to the object's name in the bucket."""
    region: str
    """For which it was signed."""


def learned_route(url: str, authorization: str, encoded_name: str) -> Route | None:
    """Return the way that a request for an object took, or None if it is not one that plain signed GETs can take."""
    signed = _SIGNED.match(authorization)
    if not (signed and url.endswith(encoded_name)):
        return None
    return Route(base=url.removesuffix(encoded_name), region=signed[1])
