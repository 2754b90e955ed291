"""Image bytes to pixels: strict, upright, three channels. Bytes in, uint8 [H, W, 3] out, or a SampleError."""

import io
import struct
import warnings
import zlib

import numpy as np
import simplejpeg
from PIL import Image

from k25_pipelines.errors import SampleError

MAX_PIXELS = 2**27
"""A picture of more pixels is refused before it is decoded: a small file may unfold to any size."""

SCALES = (8, 4, 2)
"""What `reduce` may be besides 1: the JPEG block of 8x8 decoded as 1x1, 2x2 or 4x4 pixels."""
SHARPER_THAN_NEEDED = 2.0
"""Reduction that is left to the bicubic after a reduced decode, at least.

Measured by benchmarks/pixels.py against the full decode of photographs: at 2.0 the PSNR is 51 dB in the median (47 at
worst) at half size, 48 (43) at a quarter, 47 (42) at an eighth, 13 levels off at most. Not within 2, hence never for
pixels without augmentation.
"""

ORIENTATION_TAG = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, MemoryError)
"""What Pillow's readers raise on bytes that are not what they claim."""


def decode_image(data: bytes, *, name: str = "image", reduce: int = 1) -> np.ndarray:
    """Return the pixels of an encoded image as a person sees it.

    The EXIF orientation is applied. Colour is kept and alpha dropped, as the reference processor's
    `convert("RGB")` does; 16-bit grey is scaled to 8 bits; CMYK is converted. The first frame of
    an animation is taken. Plain JPEGs go through simplejpeg, whose pixels are Pillow's.

    Args:
        data: JPEG, PNG, WebP, GIF, BMP, TIFF or what else Pillow reads.
        name: what the image is called in errors.
        reduce: 1, or one of SCALES as `dct_scale` says: every output pixel is that many source
            pixels a side (at the end fewer). JPEGs are decoded so, which is faster; others averaged.

    Returns:
        uint8 [ceil(H / reduce), ceil(W / reduce), 3], C-contiguous.

    Raises:
        SampleError: the bytes are no image, are cut short, or hold more than MAX_PIXELS.
        ValueError: there is no such `reduce`.
    """
    if reduce != 1 and reduce not in SCALES:
        raise ValueError(f"images are reduced by 1, {', '.join(map(str, SCALES))}, not {reduce}")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
            _check_size(image, name)
            if image.format == "PNG":
                _check_png(data)
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            pixels = _plain_jpeg(data, image, reduce)
            if pixels is None:
                pixels = np.array(_rgb(image) if reduce == 1 else _rgb(image).reduce(reduce))
    except (*_BROKEN, Image.DecompressionBombError) as error:
        why = f"{type(error).__name__}: {error}"
        raise SampleError(f"{name}: {len(data)} bytes are no readable image ({why})") from error
    return np.ascontiguousarray(upright(pixels, orientation))


def dct_scale(
    crop: tuple[float, float], size: tuple[int, int], *, source: tuple[int, int], orientation: int = 1
) -> int:
    """Return by how much an augmented image may be reduced while it is decoded: 1, 2, 4 or 8.

    The most that leaves a reduction of SHARPER_THAN_NEEDED to the bicubic, both ways. It follows
    from the plan and the manifest alone. Pixels without augmentation are the reference's: do not
    ask for them, decode in full.

    Args:
        crop: width and height of the part that is kept, upright [pixels].
        size: width and height that the part becomes, before quarter turns [pixels].
        source: width and height of the image, upright [pixels].
        orientation: EXIF's. One that is not 1 needs sides that the scale divides, else the last,
            partial pixel would come first.
    """
    left = min(crop[0] / size[0], crop[1] / size[1]) / SHARPER_THAN_NEEDED
    for scale in SCALES:
        if scale <= left and (orientation == 1 or not any(side % scale for side in source)):
            return scale
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels [H, W, ...] turned as their EXIF orientation says; one that is not 1 to 8 means 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise SampleError(f"{name}: {image.width}x{image.height} pixels, more than the {MAX_PIXELS} that are decoded")


def _check_png(data: bytes) -> None:
    """Compare the checksums of a PNG's chunks, which Pillow leaves out: it fills up a broken one with garbage."""
    offset, view = len(PNG_SIGNATURE), memoryview(data)
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, offset)
        (stated,) = struct.unpack_from(">I", data, offset + 8 + length)
        if zlib.crc32(view[offset + 4 : offset + 8 + length]) != stated:
            raise ValueError(f"the checksum of the {kind.decode('latin-1')} chunk at byte {offset} is wrong")
        offset += 12 + length


def _plain_jpeg(data: bytes, image: Image.Image, reduce: int) -> np.ndarray | None:
    """Return the pixels of a grey or YCbCr JPEG at one over `reduce`; None where Pillow is to decide."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or (width, height) != image.size:
            return None
        if reduce == 1:
            return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        size = -(-int(height) // reduce), -(-int(width) // reduce)
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_height=size[0], min_width=size[1], min_factor=reduce
        )
        return pixels if pixels.shape[:2] == size else None
    except ValueError:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip((levels + 128) // 257, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers without a stated range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
