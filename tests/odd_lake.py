"""A lake of data nobody tidied, drawn from a seed: odd sizes, formats and words, broken samples, long texts, clips."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from k25_pipelines.catalog import registry
from k25_pipelines.storage.store import Store, open_store

ALPHABET = "abcdefghijklmnop qrstuvwxyz  éßøЖ中文字🙂\n0123456789<|im_end|>"
KINDS = {"pictures": "webdataset", "boxes": "images", "clips": "video", "tables": "parquet", "lines": "jsonl"}


def build(folder: Path, seed: int) -> Store:
    """Write the raw data below `folder`; the same seed gives the same data."""
    lake, rng = open_store(str(folder)), np.random.default_rng(seed)
    for shard in range(3):
        lake.put(f"raw/pictures/{shard:03d}.tar", _tar(rng, shard))
    _boxes(lake, rng)
    _clips(lake, rng, folder)
    for shard in range(2):
        lake.put(f"raw/tables/{shard}.parquet", _table(rng))
        lake.put(f"raw/lines/{shard}.jsonl", _lines(rng))
    return lake


def copy(lake: Store, target: Store) -> Store:
    """Copy the raw objects to another store and return that."""
    for info in lake.list("raw/"):
        target.put(info.key, lake.get(info.key))
    return target


def index_all(lake: Store) -> Store:
    """Register and index every dataset of the lake, and return it."""
    for name, kind in KINDS.items():
        annotations = {"images": "coco.json", "video": "captions.jsonl"}.get(kind)
        terms = {"licence": "CC0-1.0", "source": "drawn for tests"}
        entry = registry.Registration(
            name=name, uri=f"{lake.url}/raw/{name}", kind=kind, annotations=annotations, **terms
        )
        registry.register(lake, entry)
        registry.index_dataset(lake, name)
    return lake


def _words(rng: np.random.Generator, mean: float) -> str:
    length = int(rng.lognormal(np.log(mean), 0.9))
    return "".join(ALPHABET[place] for place in rng.integers(0, len(ALPHABET), max(1, length)))


def _picture(rng: np.random.Generator) -> tuple[bytes, str, tuple[int, int]]:
    """Return an encoded picture of any shape and format, its suffix, and its size as displayed."""
    width, height = (int(side) for side in np.clip(rng.lognormal(4.6, 0.8, 2), 3, 640))
    coarse = rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    mode = str(rng.choice(["RGB", "L", "P", "RGBA"], p=[0.7, 0.1, 0.1, 0.1]))
    image, buffer = Image.fromarray(pixels).convert(mode), io.BytesIO()
    if mode in ("RGB", "L") and rng.random() < 0.7:
        exif, orientation = Image.Exif(), int(rng.integers(1, 9)) if rng.random() < 0.3 else 1
        exif[0x0112] = orientation
        image.save(buffer, "JPEG", quality=int(rng.integers(50, 96)), exif=exif, progressive=bool(rng.random() < 0.2))
        return buffer.getvalue(), "jpg", (height, width) if orientation > 4 else (width, height)
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png", (width, height)


def _tar(rng: np.random.Generator, shard: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(40):
            data, suffix, _ = _picture(rng)
            data = data[: len(data) // 2] if rng.random() < 0.06 else data
            for ending, body in ((suffix, data), ("txt", _words(rng, 60).encode())):
                member = tarfile.TarInfo(f"{shard}/{number:05d}.{ending}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


def _boxes(lake: Store, rng: np.random.Generator) -> None:
    images, annotations = [], []
    for number in range(30):
        data, suffix, (width, height) = _picture(rng)
        lake.put(f"raw/boxes/{number:03d}.{suffix}", data)
        images.append({"id": number, "file_name": f"{number:03d}.{suffix}", "width": width, "height": height})
        for _ in range(int(rng.integers(1, 5))):
            x, y = rng.uniform(0, width * 0.8), rng.uniform(0, height * 0.8)
            box = [x, y, rng.uniform(0.05, 1) * (width - x), rng.uniform(0.05, 1) * (height - y)]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, "bbox": box})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "left thing"}]}
    lake.put("raw/boxes/coco.json", json.dumps(coco).encode())


def _clips(lake: Store, rng: np.random.Generator, folder: Path) -> None:
    lines = []
    for number in range(5):
        width, height = (int(side) for side in rng.integers(20, 60, 2) * 2)
        path, rate = folder / f"{number}.mp4", float(rng.choice([5.0, 8.0, 25.0]))
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
        for _ in range(int(rng.integers(3, 90))):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            writer.write(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        writer.release()
        lake.put(f"raw/clips/{number}.mp4", path.read_bytes())
        path.unlink()
        lines.append({"file": f"{number}.mp4", "caption": _words(rng, 30)})
    lake.put("raw/clips/captions.jsonl", "\n".join(map(json.dumps, lines)).encode())


def _table(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [_words(rng, 300) for _ in range(120)]}), buffer, row_group_size=17)
    return buffer.getvalue()


def _lines(rng: np.random.Generator) -> bytes:
    return "\n".join(json.dumps({"text": _words(rng, 200)}) for _ in range(100)).encode()
