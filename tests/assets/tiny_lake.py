"""A demo lake in seconds: every dataset of the stages' recipes, some dozens of drawn samples each, in a folder."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from k25_pipelines.catalog import registry
from k25_pipelines.storage.store import Store, open_store

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (230, 200, 40)}
SHAPES = ("circle", "square", "bar")
WORDS = tuple("abcdefghijklmnopqrstuvwxyz"[place : place + 3] for place in range(24))


def build(folder: Path, *, num_broken: int = 1) -> Store:
    """Write the raw data below `folder` and return the lake there; some of the 60 caption images are unreadable."""
    lake = open_store(str(folder))
    lake.put("raw/captions/000000.tar", caption_tar(range(60), num_broken=num_broken))
    lake.put("raw/captions_heldout/000000.tar", caption_tar(range(100, 116)))
    _grounding(lake, 20)
    _clips(lake, 4, folder)
    lake.put("raw/wiki/part-0.parquet", _parquet([_text(seed, 60) for seed in range(60)]))
    lake.put("raw/code/part-0.jsonl", _jsonl([_text(seed, 50) for seed in range(200, 230)]))
    lake.put("raw/long_documents/part-0.jsonl", _jsonl([_text(seed, 500) for seed in range(300, 308)]))
    lake.put("raw/datasets.json", json.dumps(_entries(lake)).encode())
    return lake


def _entry(lake: Store, name: str, kind: str, annotations: str | None = None) -> dict:
    terms = {"licence": "CC0-1.0", "source": "drawn for tests"}
    return {"name": name, "uri": f"{lake.url}/raw/{name}", "kind": kind, "annotations": annotations, **terms}


def index_all(lake: Store) -> Store:
    """Register and index every dataset of the lake, and return it."""
    for entry in _entries(lake):
        registry.register(lake, registry.Registration(**entry))
        registry.index_dataset(lake, entry["name"])
    return lake


def _entries(lake: Store) -> list[dict]:
    return [
        _entry(lake, "captions", "webdataset"),
        _entry(lake, "captions_heldout", "webdataset"),
        _entry(lake, "clips", "video", "captions.jsonl"),
        _entry(lake, "code", "jsonl"),
        _entry(lake, "grounding", "images", "annotations.json"),
        _entry(lake, "long_documents", "jsonl"),
        _entry(lake, "wiki", "parquet"),
    ]


def _drawing(seed: int, side: int = 84) -> tuple[Image.Image, str, list[int]]:
    """Return a picture of one shape, its caption, and the shape's box as x, y, width, height."""
    colour, shape = list(COLOURS)[seed % 4], SHAPES[seed % 3]
    x, y, size = 4 + 7 * (seed % 5), 6 + 5 * (seed % 6), 28 + seed % 13
    image = Image.new("RGB", (side, side), (250, 250, 250))
    box = (x, y, x + size, y + (size // 3 if shape == "bar" else size))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    return image, f"a {colour} {shape} on white", [x, y, box[2] - x, box[3] - y]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def caption_tar(seeds: range, *, num_broken: int = 0, side: int = 84) -> bytes:
    """Return a tar of drawings of so many pixels a side with their captions; the first ones cannot be read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for seed in seeds:
            image, caption, _ = _drawing(seed, side)
            pixels = b"not an image" if seed < num_broken else _png(image)
            for suffix, data in (("png", pixels), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{seed:06d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _grounding(lake: Store, num_images: int) -> None:
    images, annotations = [], []
    for seed in range(num_images):
        image, _, box = _drawing(seed, side=112)
        lake.put(f"raw/grounding/{seed:04d}.png", _png(image))
        images.append({"id": seed, "file_name": f"{seed:04d}.png", "width": 112, "height": 112})
        annotations.append({"id": seed, "image_id": seed, "category_id": seed % 3, "bbox": box})
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    lake.put("raw/grounding/annotations.json", json.dumps(coco).encode())


def _clips(lake: Store, num_clips: int, folder: Path) -> None:
    lines = []
    for seed in range(num_clips):
        path = folder / f"clip-{seed}.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8.0, (84, 56))
        for step in range(24):
            frame = np.full((56, 84, 3), 240, np.uint8)
            cv2.circle(frame, (10 + 2 * step, 20 + seed), 8, (200, 60, 40 * seed), -1)
            writer.write(frame)
        writer.release()
        lake.put(f"raw/clips/{seed:03d}.mp4", path.read_bytes())
        path.unlink()
        lines.append({"file": f"{seed:03d}.mp4", "caption": f"a dot moves right, take {seed}"})
    lake.put("raw/clips/captions.jsonl", "\n".join(map(json.dumps, lines)).encode())


def _text(seed: int, num_words: int) -> str:
    return " ".join(WORDS[(seed * 7 + 3 * place + place * place // 5) % len(WORDS)] for place in range(num_words)) + "."


def _parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer, row_group_size=16)
    return buffer.getvalue()


def _jsonl(texts: list[str]) -> bytes:
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()
