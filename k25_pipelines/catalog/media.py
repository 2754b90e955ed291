"""An image or a video of a dataset: an object or a range of one in, a part and what is wrong with it out."""

import hashlib
from collections.abc import Callable
from functools import partial

from k25_pipelines.catalog.line import Part
from k25_pipelines.catalog.probe import WHOLE_BYTES, MediaHeader, probe_image, probe_image_at, probe_video
from k25_pipelines.errors import SampleError
from k25_pipelines.storage.store import ObjectInfo, Store

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
MEDIA = IMAGES + VIDEOS


def medium_kind(name: str) -> str:
    """Return `video` for a name that ends as those of videos do, else `image`."""
    return "video" if name.lower().endswith(VIDEOS) else "image"


def media_part(
    kind: str,
    info: ObjectInfo,
    header: MediaHeader | None,
    *,
    offset: int = 0,
    num_bytes: int = -1,
    content: str = "",
) -> Part:
    """Return a part for the bytes of an object, all of them unless told otherwise; sizes are 0 without a header."""
    return Part(
        kind=kind,
        shard=info.key,
        offset=offset,
        num_bytes=info.num_bytes if num_bytes < 0 else num_bytes,
        etag=info.etag,
        shard_bytes=info.num_bytes,
        width=header.width if header else 0,
        height=header.height if header else 0,
        frames=header.frames if header else 0,
        fps=header.fps if header else 0.0,
        orientation=header.orientation if header else 1,
        content=content,
    )


def probed(kind: str, read: Callable[[int, int], bytes], num_bytes: int) -> tuple[MediaHeader, str]:
    """Return the header of a medium and its content id, "" where not all of it was read.

    Args:
        kind: `image` or `video`.
        read: gives the bytes from an offset, so many.
        num_bytes: length of the medium.

    Raises:
        SampleError: it is broken or cut short.
    """
    if kind == "image" and num_bytes > WHOLE_BYTES:
        return probe_image_at(read, num_bytes), ""
    data = read(0, num_bytes)
    header = probe_image(data) if kind == "image" else probe_video(data)
    return header, content_id(data)


def probed_object(store: Store, info: ObjectInfo, kind: str) -> tuple[Part, str]:
    """Return the part of a whole object, and why it cannot be used; "" if it can."""
    try:
        header, content = probed(kind, partial(store.get_range, info.key, etag=info.etag), info.num_bytes)
    except SampleError as error:
        return media_part(kind, info, None), str(error)
    return media_part(kind, info, header, content=content), ""


def content_id(data: bytes | memoryview) -> str:
    """Return the name of a medium's bytes: 64 hexadecimal characters of their SHA-256."""
    return hashlib.sha256(data).hexdigest()
