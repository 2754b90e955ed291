"""What the loader itself costs: its CPU seconds against the bare functions on the same bytes, in turns, in one process.

Run: python -m benchmarks.plumbing      (no lake needed; writes benchmarks/results/plumbing.json)

Four loads: photographs of about half a megapixel with captions, texts, 10% vision tokens among texts, and short
clips. Bare is a loop over bytes that are already in memory: decode, resize, cut patches, tokenize, nothing else. The
loader reads tars and JSON lines, checks them, packs, labels, counts, keeps provenance. One thread each.
"""

import argparse
import io
import json
import statistics
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.pixels import jpegs
from benchmarks.report import keep
from k25_pipelines.catalog import registry
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.size import profile
from k25_pipelines.planning import Plan, make_plan, open_plan
from k25_pipelines.sample import video
from k25_pipelines.sample.augment import draws_of_row
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.patches import patches
from k25_pipelines.sample.read import RawSample, read_line
from k25_pipelines.sample.renderings import frame_runs
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store

GPU_IMAGES = 14
"""Images a GPU reads in a second, as the paper's scale suggests."""
LOADS = {
    "photographs": {"steps": 40, "sources": {"photographs": {"weight": 1}}},
    "texts": {"steps": 60, "sources": {"texts": {"weight": 1}}},
    "10% vision": {"steps": 60, "vision_share": 0.1, "sources": {"photographs": {"weight": 1}, "texts": {"weight": 1}}},
    "clips": {"steps": 6, "sources": {"clips": {"weight": 1}}},
}


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lake = build(Path(folder))
        told = {}
        for name, fields in LOADS.items():
            shape = {"seed": 1, "pack_tokens": 4096, "packs_per_step": 2, "max_image_tokens": 1024}
            plan = open_plan(lake, make_plan(lake, parse_recipe({"name": name, **shape, **fields})))
            told[name] = measured(lake, plan, rounds=options.rounds)
            print(name, json.dumps(told[name]))
    photographs_a_core = told["photographs"]["samples_per_cpu_s"]
    told["cores per GPU at 14 images a second"] = GPU_IMAGES / photographs_a_core
    print(keep("plumbing", told, command="python -m benchmarks.plumbing"))


def measured(lake: Store, plan: Plan, *, rounds: int) -> dict:
    """Return CPU seconds of bare loop and loader, medians, and their ratio by rounds."""
    items = read_all(lake, plan)
    bare_loop(items[:8], plan)
    load_all(lake, plan)
    pairs = [(bare_loop(items, plan), load_all(lake, plan)) for _ in range(rounds)]
    tokens = sum(row["num_tokens"] for _, row in items)
    seconds = statistics.median(loaded for _, loaded in pairs)
    return {
        "bare_over_loader": statistics.median(bare / loaded for bare, loaded in pairs),
        "rounds": [round(bare / loaded, 3) for bare, loaded in pairs],
        "samples_per_cpu_s": len(items) / seconds,
        "tokens_per_cpu_s": tokens / seconds,
        "samples": len(items),
    }


def read_all(lake: Store, plan: Plan) -> list[tuple[RawSample, dict]]:
    """Return the bytes and rows of all steps but the first."""
    manifests = {name: registry.load_manifest(lake, name, digest) for name, digest in plan.datasets.items()}
    items = []
    for step in range(1, plan.num_steps):
        for row in plan.rows(step).to_pylist():
            manifest = manifests[row["dataset"]]
            store = open_store(manifest.uri)
            fetch = lambda shard, offset, size, etag, store=store: store.get_range(shard, offset, size)  # noqa: E731
            items.append((read_line(manifest, row["line"], fetch), row))
    return items


def bare_loop(items: list[tuple[RawSample, dict]], plan: Plan) -> float:
    """Return the CPU seconds of the functions alone."""
    tokenizer, model = load_tokenizer("default"), profile("kimi_k25")
    started = time.process_time()
    for raw, row in items:
        if raw.media:
            affine = draws_of_row(row).affine
            if raw.medium.kind == "image":
                frames = [affine.pixels(decode_image(raw.media[0]))[None]]
            else:
                runs = frame_runs(raw, raw.medium, model)
                size = raw.medium.width, raw.medium.height
                frames = list(video.decode_volumes(raw.media[0], runs, resize=affine.pixels, size=size, name="clip"))
            for item in frames:
                patches(item)
        tokenizer.encode_batch([raw.text or ""])
    return time.process_time() - started


def load_all(lake: Store, plan: Plan) -> float:
    """Return the CPU seconds of the loader for the same steps, after a first one."""
    with PlanLoader(plan, lake, threads=1) as loader:
        loader.batch(0)
        started = time.process_time()
        for step in range(1, plan.num_steps):
            loader.batch(step)
        return time.process_time() - started


def build(folder: Path) -> Store:
    """Write and index photographs, texts and clips."""
    lake = open_store(str(folder))
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    words = "\n".join(path.read_text("utf-8", errors="replace") for path in sources)
    encoded = jpegs()
    members = []
    for number in range(240):
        caption = " ".join(words[number * 4000 : number * 4000 + 500].split())
        members += [(f"{number:05d}.jpg", encoded[number % len(encoded)]), (f"{number:05d}.txt", caption.encode())]
    lake.put("raw/photographs/0.tar", tar(members))
    texts = [words[place : place + 1800] for place in range(0, 4_000_000, 1800)]
    lake.put("raw/texts/0.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    told = []
    for number in range(8):
        lake.put(f"raw/clips/{number}.mp4", clip(folder / "clip.mp4", number))
        told.append({"file": f"{number}.mp4", "caption": f"clip {number}"})
    lake.put("raw/clips/captions.jsonl", "\n".join(map(json.dumps, told)).encode())
    for name, kind in (("photographs", "webdataset"), ("texts", "jsonl"), ("clips", "video")):
        annotations = "captions.jsonl" if kind == "video" else None
        terms = {"licence": "benchmark", "source": "benchmark"}
        entry = registry.Registration(
            name=name, uri=f"{lake.url}/raw/{name}", kind=kind, annotations=annotations, **terms
        )
        registry.register(lake, entry)
        registry.index_dataset(lake, name)
    return lake


def tar(members: list[tuple[str, bytes]]) -> bytes:
    """Return a tar of members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def clip(path: Path, number: int) -> bytes:
    """Return ten seconds of moving shapes, 480 x 360, 25 frames a second."""
    rng = np.random.default_rng(number)
    ground = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (480, 360))
    for frame in range(250):
        picture = ground.copy()
        cv2.circle(picture, (20 + frame, 180 + number), 30, (200, 60, 40), -1)
        writer.write(picture)
    writer.release()
    data = path.read_bytes()
    path.unlink()
    return data


if __name__ == "__main__":
    main()
