"""What the header of an image or a video says: bytes in, sizes out. Pixels are decoded in `sample/` alone."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

from k25_pipelines.errors import SampleError

HEAD_BYTES = 64 * 2**10
WHOLE_BYTES = 256 * 2**10
ORIENTATION_TAG = 0x0112
FRAMES = (0xC0, 0xC2)
"""Start of a baseline or progressive JPEG's frame."""
PLAIN_MARKERS = (0xC4, 0xDD, 0xE0, 0xEE, 0xFE)
"""Tables, restart interval, JFIF, Adobe's and comments: segments that say nothing of how an image is shown."""
PLAIN_PIXELS = 50_000_000
"""Above this, Pillow decides whether it is an honest image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaHeader:
    """Size as displayed: after the orientation."""

    width: int
    height: int
    frames: int = 1
    fps: float = 0.0
    orientation: int = 1


def probe_image(data: bytes) -> MediaHeader:
    """Return size and EXIF orientation of a whole JPEG, PNG or WebP. Raises SampleError: broken or cut short."""
    return probe_image_at(lambda offset, num_bytes: data[offset : offset + num_bytes], len(data))


def probe_image_at(read: Callable[[int, int], bytes], num_bytes: int) -> MediaHeader:
    """Return size and EXIF orientation of an image of which no more is read than needed.

    Args:
        read: gives the bytes from an offset, so many.
        num_bytes: length of the image.

    Raises:
        SampleError: empty, no image, or its end is missing.
    """
    if num_bytes == 0:
        raise SampleError("empty: 0 bytes")
    if num_bytes > WHOLE_BYTES:
        try:
            header, kind = _parsed(read(0, HEAD_BYTES))
            if _ends(kind, read(num_bytes - HEAD_BYTES, HEAD_BYTES)):
                return header
        except SampleError:
            pass  # a long header, or one whose reader wants the whole; or bytes after the end
    data = read(0, num_bytes)
    header, kind = _parsed(data)
    if not _is_complete(kind, data):
        raise SampleError(f"truncated {kind}: the end of the image is missing after {num_bytes} bytes")
    return header


def probe_video(source: bytes | str) -> MediaHeader:
    """Return size, frames and frames a second of a video, from its bytes or the path of a file. Raises SampleError."""
    if len(source) == 0:
        raise SampleError("empty: 0 bytes")
    # decord2 stands for decord, whose last release is of 2021: the same calls, still maintained. It loads
    # slowly, and only videos need it.
    import decord

    decord.logging.set_level(decord.logging.FATAL)  # what is wrong is in our error
    try:
        reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else source, num_threads=1)
        frames, fps = len(reader), float(reader.get_avg_fps())
        height, width = reader[0].shape[:2]
    except (RuntimeError, IndexError, decord.DECORDError, decord.DECORDLimitReachedError) as error:
        raise SampleError("no video that can be decoded, or its end is missing") from error
    return MediaHeader(width=int(width), height=int(height), frames=frames, fps=fps)


def _parsed(data: bytes) -> tuple[MediaHeader, str]:
    """Return header and kind of an image. Raises SampleError."""
    plain = _plain_jpeg(data)
    return (plain, "JPEG") if plain else _parsed_by_pillow(data)


def _plain_jpeg(data: bytes) -> MediaHeader | None:
    """Return the header of a JPEG without EXIF, faster than Pillow; None of anything out of the ordinary."""
    position, found = 2, None
    while data[position : position + 1] == b"\xff" and position + 20 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        if marker == 0xDA:
            return found if data.startswith(b"\xff\xd8") and length == 6 + 2 * data[position + 4] else None
        if marker in FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            known = bits == 8 and components in (1, 3) and length == 8 + 3 * components
            if found or not known or not 0 < width * height <= PLAIN_PIXELS:
                return None
            found = MediaHeader(width=width, height=height)
        elif marker == 0xDB:
            if (length - 2) % 65 or any(data[position + 4 : end : 65][: length // 65].translate(None, b"\0\1\2\3")):
                return None
        elif marker not in PLAIN_MARKERS or length < 2:
            return None
        position = end
    return None


def _parsed_by_pillow(data: bytes) -> tuple[MediaHeader, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            orientation = _orientation(image, data)
            width, height = image.size if orientation < 5 else image.size[::-1]
            kind = "JPEG" if image.format == "MPO" else str(image.format)
    except Image.UnidentifiedImageError as error:
        raise SampleError(f"no JPEG, PNG or WebP: the first bytes are {data[:8].hex(' ')}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError("more pixels than Pillow takes for an honest image") from error
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, Warning) as error:
        raise SampleError("broken header") from error
    return MediaHeader(width=width, height=height, orientation=orientation), kind


def _orientation(image, data: bytes) -> int:
    from PIL import Image

    # PNG's own getexif decodes the pixels to look behind them, so it is asked only where something is to be found.
    is_late = image.format == "PNG" and "exif" not in image.info and b"eXIf" in data
    try:
        exif = image.getexif() if is_late else Image.Image.getexif(image)
        found = exif.get(ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _ends(kind: str, tail: bytes) -> bool:
    """Whether the last bytes alone show that the image is whole, and hide no orientation."""
    if kind == "PNG":
        return b"IEND" in tail and b"eXIf" not in tail
    return kind == "JPEG" and b"\xff\xd9" in tail


def _is_complete(kind: str, data: bytes) -> bool:
    if kind == "WEBP":
        return len(data) >= 8 + struct.unpack_from("<I", data, 4)[0]
    if kind == "PNG":
        return b"IEND" in data[-HEAD_BYTES:]
    return data.find(b"\xff\xd9", _start_of_scan(data)) >= 0


def _start_of_scan(data: bytes) -> int:
    """Return where the compressed pixels begin: a thumbnail before them has an end mark of its own."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # fill byte
            position += 1
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if data[position + 1] == 0xDA:
            return position + 2 + length
        position += 2 + length
    return position
