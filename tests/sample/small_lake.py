"""A lake in memory with a dataset of every kind, and a plan of it made by hand: small real things for tests."""

import functools
import io
import json
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import index_dataset, load_manifest, register
from k25_pipelines.plan.draws import DrawRule, draw
from k25_pipelines.plan.segment import SCHEMA
from k25_pipelines.plan.size import num_volumes, patch_grid, profile, sampled_frames
from k25_pipelines.sample.lengths import text_lengths
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store

KINDS = {
    "captions": "webdataset",
    "grounding": "images",
    "wiki": "parquet",
    "code": "jsonl",
    "long_documents": "jsonl",
    "clips": "video",
    "notes": "text",
}
ANNOTATIONS = {"grounding": "annotations.json", "clips": "captions.jsonl"}
PACK_TOKENS = 512
MAX_TOKENS = 64
AUGMENT = ("resize", "crop", "flip", "colour", "words")


def new_lake(url: str | None = None, *, others: Mapping[str, bytes] | None = None) -> Store:
    """A lake of its own with raw data of every kind, some objects other than usual, registered and indexed."""
    lake = open_store(url or f"memory://{uuid.uuid4().hex}")
    for name, objects in raw_objects().items():
        for key, data in objects.items():
            lake.put(f"raw/{name}/{key}", (others or {}).get(f"{name}/{key}", data))
        entry = Registration(
            name=name,
            uri=f"{lake.url}/raw/{name}",
            kind=KINDS[name],
            annotations=ANNOTATIONS.get(name),
            licence="CC0-1.0",
            source="made here",
        )
        register(lake, entry)
        index_dataset(lake, name)
    return lake


@functools.cache
def raw_objects() -> dict[str, dict[str, bytes]]:
    """Dataset -> key -> bytes."""
    return {
        "captions": {f"{shard}.tar": _tar(_caption_members(shard)) for shard in range(2)},
        "grounding": _grounding(),
        "wiki": {"0.parquet": _parquet([f"Article {number}. " + "Words of it. " * number for number in range(1, 25)])},
        "code": {
            "0.jsonl": _jsonl([{"content": f"def f{n}():\n    return {n}\n" * 3, "path": f"{n}.py"} for n in range(9)])
        },
        "long_documents": {"0.jsonl": _jsonl([{"text": f"chapter {n} " * 700, "key": f"book-{n}"} for n in range(2)])},
        "clips": _clips(),
        "notes": {"a/one.txt": b"A note.", "b.md": "Größe: 3\n".encode()},
    }


def photo(number: int, width: int, height: int) -> Image.Image:
    """A smooth picture of its own."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin((columns * (1 + channel) + rows * number) / 17) for channel in range(3)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", *, orientation: int = 1) -> bytes:
    """An image file."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, format=kind, exif=exif)
    return buffer.getvalue()


def _caption_members(shard: int) -> dict[str, bytes]:
    members = {}
    for number in range(6):
        stem = f"{shard}{number:03d}"
        image = encoded(photo(number, 150 + 30 * number, 120), orientation=6 if number == 1 else 1)
        members[f"{stem}.jpg"] = image
        if number == 2:
            more = ["a bear to the left of a tree, and to the right", "b", "a much longer caption " * 9]
            members[f"{stem}.json"] = json.dumps({"caption": "a bear on the left", "captions": more}).encode()
        else:
            members[f"{stem}.txt"] = f"picture {number}, left of {shard}\n".encode()
    return members


def _grounding() -> dict[str, bytes]:
    images = [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 140} for n in range(5)]
    boxes = [[10, 10, 60, 50], [100, 30, 90, 100], [180, 0, 20, 140], [0, 0, 200, 140]]
    annotations = [
        {"id": 10 * n + k, "image_id": n, "category_id": k % 2, "bbox": boxes[k]}
        for n in range(4)
        for k in range(n + 1)
    ]
    categories = [{"id": 0, "name": "left hand"}, {"id": 1, "name": "cup"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    files = {f"{n}.png": encoded(photo(n, 200, 140), "PNG") for n in range(5)}
    return {**files, "annotations.json": json.dumps(coco).encode()}


def _clips() -> dict[str, bytes]:
    captions = [
        {"file": "0.mp4", "caption": "it moves right"},
        {"file": "1.mp4", "caption": "late", "start": 1, "end": 2},
    ]
    return {f"{n}.mp4": _clip(seconds=3 + n) for n in range(2)} | {"captions.jsonl": _jsonl(captions)}


def _clip(*, seconds: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        source = f"testsrc=size=96x64:rate=8:duration={seconds}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
        subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
        return path.read_bytes()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": [str(n) for n in range(len(texts))], "text": texts}), buffer, row_group_size=10)
    return buffer.getvalue()


def _jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass(frozen=True, kw_only=True)
class HandPlan:
    """What the loader asks of a plan."""

    id: str
    recipe: SimpleNamespace
    datasets: dict[str, str]
    steps: list[pa.Table] = field(repr=False)
    tokenizer: str = "default"
    profile: str = "kimi_k25"

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    def rows(self, step: int) -> pa.Table:
        return self.steps[step]

    def pack_tokens_at(self, step: int) -> int:
        return self.recipe.pack_tokens

    def segment_of(self, step: int) -> SimpleNamespace:
        return SimpleNamespace(digest="%032x" % (step // 2), first_step=step // 2 * 2, num_steps=2)


def hand_plan(lake: Store, *, packs_per_step: int = 4, epochs: int = 2, augment=AUGMENT) -> HandPlan:
    """Every sample of every dataset in each epoch, dealt over the datasets, packed in this order."""
    rows = [
        row for epoch in range(epochs) for name in sorted(KINDS) for row in planned_rows(lake, name, epoch, augment)
    ]
    rows = [rows[place] for place in np.argsort([hash_of(row) for row in rows], kind="stable")]
    pack, slot, used, packed = 0, 0, 0, []
    for row in rows:
        if used + row["num_tokens"] > PACK_TOKENS:
            pack, slot, used = pack + 1, 0, 0
        packed.append({"step": pack // packs_per_step, "pack": pack % packs_per_step, "slot": slot, **row})
        slot, used = slot + 1, used + row["num_tokens"]
    steps = [[row for row in packed if row["step"] == step] for step in range((pack + 1) // packs_per_step)]
    return HandPlan(
        id="f" * 32,
        recipe=SimpleNamespace(
            pack_tokens=PACK_TOKENS, packs_per_step=packs_per_step, max_image_tokens=MAX_TOKENS, sources={}, changes=()
        ),
        datasets={name: load_manifest(lake, name).digest for name in KINDS},
        steps=[pa.Table.from_pylist(step, schema=SCHEMA) for step in steps],
    )


def hash_of(row: dict) -> int:
    """An order that mixes the datasets."""
    return (row["line"] * 7919 + row["epoch"] * 104729 + len(row["dataset"]) * 1299709 + row["token_start"]) % 10007


def planned_rows(lake: Store, name: str, epoch: int, augment=AUGMENT) -> list[dict]:
    """The plan rows of all samples of a dataset, texts split every PACK_TOKENS."""
    manifest, model = load_manifest(lake, name), profile("kimi_k25")
    lengths = text_lengths(lake, manifest, load_tokenizer("default"), model)
    media, lines = manifest.media_table(), np.arange(manifest.num_lines)
    drawn = draw(
        DrawRule(seed=3, dataset=name, augment=tuple(augment)),
        lines,
        np.full(len(lines), epoch),
        width=media["width"],
        height=media["height"],
        max_tokens=MAX_TOKENS,
        profile=model,
    )
    rows = []
    for line in lines[~media["quarantined"]].tolist():
        columns = {key: values[line].item() for key, values in drawn.items()}
        grid_rows, grid_columns = patch_grid(columns["out_w"], columns["out_h"], model)
        frames = (
            int(sampled_frames(media["frames"][line], media["fps"][line], model)) if media["num_media"][line] else 0
        )
        items = int(num_volumes(frames, model))
        row = {
            "dataset": name,
            "line": line,
            "epoch": epoch,
            "token_start": 0,
            "vision_tokens": items * int(grid_rows * grid_columns) // 4,
            "patches": frames * int(grid_rows * grid_columns),
            "media": items,
            **columns,
        }
        total = int(lengths[line]) + row["vision_tokens"]
        for start in range(0, total, PACK_TOKENS):
            rows.append({**row, "token_start": start, "num_tokens": min(PACK_TOKENS, total - start)})
    return rows
