"""Pixels and geometry to pictures a person looks at: thumbnails, marks, contact sheets, encoded for a page."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from k25_pipelines.sample.geometry import Affine

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


def thumbnail(pixels: np.ndarray, *, boxes: np.ndarray | None = None, side: int = 160) -> np.ndarray:
    """Return a picture no larger than `side`, with its boxes drawn on it.

    Args:
        pixels: uint8 [H, W, 3].
        boxes: float64 [n, 4] xyxy in pixel centres of `pixels`, or None.
        side: the longer side at most [pixels].

    Returns:
        uint8 [h, w, 3]; small pictures are not enlarged.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    if boxes is not None and len(boxes):
        matrix = np.diag([size[0] / width, size[1] / height, 1.0])
        drawing = ImageDraw.Draw(image)
        for number, box in enumerate(Affine(matrix, *size).boxes(boxes)):
            left, top, right, bottom = box.tolist()
            drawing.rectangle((left, top, max(left, right), max(top, bottom)), outline=COLOURS[number % len(COLOURS)])
    return np.asarray(image)


def contact_sheet(pictures: Sequence[np.ndarray], *, columns: int = 6, cell: int = 132) -> np.ndarray:
    """Return one picture with all of `pictures` in a grid, each in the middle of its cell, on white."""
    num_rows = max(1, -(-len(pictures) // columns))
    sheet = np.full((num_rows * cell, columns * cell, 3), 255, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        small = thumbnail(picture, side=cell - 4)
        height, width = small.shape[:2]
        top = place // columns * cell + (cell - height) // 2
        left = place % columns * cell + (cell - width) // 2
        sheet[top : top + height, left : left + width] = small
    return sheet


def encoded(pixels: np.ndarray, *, quality: int = 80) -> bytes:
    """Return a JPEG of uint8 [H, W, 3] pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def small_pixels(pixels: np.ndarray, *, side: int = 8) -> bytes:
    """Return a picture as side x side pixels, red, green and blue of each a byte: what colours stand where in it."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX).tobytes()


def data_uri(pixels: np.ndarray, *, quality: int = 80) -> str:
    """Return the pixels as a `data:` address that a page or a Markdown picture can hold."""
    return "data:image/jpeg;base64," + base64.b64encode(encoded(pixels, quality=quality)).decode()
