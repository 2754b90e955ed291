"""Captioned images: drawings and photographs in, webdataset tar shards of image, .txt caption and .json facts out."""

import io
import json
from collections.abc import Iterator, Sequence

from PIL import Image
from webdataset.writer import TarWriter

from infra.demo_corpus.drawings import Drawing, render
from infra.demo_corpus.photographs import Photograph
from k25_pipelines.keys import random_key

SAMPLES_PER_SHARD = 256
DRAWING_SIDES = (56, 112)
"""Least and most width and height of a drawing's canvas [pixels]: small, for training runs on a CPU."""
PHOTOGRAPH_SIDES = (224, 512)
"""Least and most longer side of a photograph [pixels]."""
JPEG_QUALITY = 90
GROUNDS = (
    ("white", "#ffffff"),
    ("white", "#ffffff"),
    ("white", "#ffffff"),
    ("yellow", "#ffeb8a"),
    ("light blue", "#b5dcff"),
    ("pink", "#ffc9de"),
    ("light green", "#c6efb8"),
    ("grey", "#c4c4c4"),
)
"""What a drawing stands on; half of them on white, of which the caption says nothing."""


def drawing_sample(drawing: Drawing) -> dict:
    """Return the webdataset sample of a drawing: its name, and the ground's colour where it is not white."""
    width, height = (_between("canvas", side, drawing.hex_code, bounds=DRAWING_SIDES) for side in ("width", "height"))
    colour, code = GROUNDS[random_key("ground", drawing.hex_code) % len(GROUNDS)]
    image = Image.new("RGB", (width, height), code)
    pasted = render(drawing, min(width, height))
    x = random_key("x", drawing.hex_code) % (width - pasted.width + 1)
    y = random_key("y", drawing.hex_code) % (height - pasted.height + 1)
    image.paste(pasted, (x, y), pasted)
    caption = drawing.name if colour == "white" else f"{drawing.name} on {colour}"
    facts = {"kind": "drawing", "emoji": drawing.hex_code, "licence": drawing.licence, "source": drawing.source}
    is_jpeg = random_key("file format", drawing.hex_code) % 4 == 0
    return _sample(f"drawing-{drawing.hex_code.lower()}", image, caption, facts, is_jpeg=is_jpeg)


def photograph_sample(photograph: Photograph, pixels: Image.Image) -> dict:
    """Return the webdataset sample of a photograph, made smaller, as PNG for one in six."""
    image = pixels.copy()
    longer_side = _between("photograph", photograph.key, bounds=PHOTOGRAPH_SIDES)
    image.thumbnail((longer_side, longer_side), Image.Resampling.BICUBIC)
    facts = {"kind": "photograph", "licence": photograph.licence, "source": photograph.source}
    is_jpeg = random_key("file format", photograph.key) % 6 != 0
    return _sample(f"photograph-{photograph.key}", image, photograph.caption, facts, is_jpeg=is_jpeg)


def shards(samples: Sequence[dict], *, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of the tar shards that hold `samples` in a keyed order.

    The bytes depend on the samples alone: no time, user or group stands in them.
    """
    ordered = sorted(samples, key=lambda sample: random_key("shard order", name, sample["__key__"]))
    for number, first in enumerate(range(0, len(ordered), SAMPLES_PER_SHARD)):
        buffer = io.BytesIO()
        with TarWriter(buffer, user="", group="", mtime=0) as writer:
            for sample in ordered[first : first + SAMPLES_PER_SHARD]:
                writer.write(sample)
        yield f"{number:05d}.tar", buffer.getvalue()


def encoded(image: Image.Image, *, is_jpeg: bool) -> bytes:
    """Return an RGB image as the bytes of a JPEG or PNG file."""
    buffer = io.BytesIO()
    if is_jpeg:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _sample(key: str, image: Image.Image, caption: str, facts: dict, *, is_jpeg: bool) -> dict:
    return {
        "__key__": key,
        "jpg" if is_jpeg else "png": encoded(image, is_jpeg=is_jpeg),
        "txt": caption.encode(),
        "json": json.dumps({"caption": caption, **facts}, ensure_ascii=False).encode(),
    }


def _between(*names: str, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return low + random_key(*names) % (high - low + 1)
