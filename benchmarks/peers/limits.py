#!/usr/bin/env python3
"""The physical limits, without any loader: decode + resize per core, and read bandwidth per client.

limits.py decode   one process, one thread; methods interleaved image by image, median over rounds
limits.py read     whole-shard GETs and concurrent ranged GETs against the local S3 server, per client
"""

import io
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
import work as W
from loaders.base import S3, tar_samples


def decode_bench(n=100, rounds=3):
    import cv2
    import simplejpeg
    from PIL import Image

    cv2.setNumThreads(1)
    try:
        from turbojpeg import TurboJPEG

        tj = TurboJPEG()
    except Exception as e:
        print("PyTurboJPEG:", e, file=sys.stderr)
        tj = None
    all_ = [(b, b[:2] == b"\xff\xd8") for _, b, _ in tar_samples()]
    random.Random(1).shuffle(all_)
    jpg = [b for b, j in all_ if j][:n]
    png = [b for b, j in all_ if not j][: n // 8]

    def cvsize(a):
        return cv2.resize(a, W.target_size(a.shape[1], a.shape[0]), interpolation=cv2.INTER_AREA)

    def sj(b, **k):
        return simplejpeg.decode_jpeg(b, "RGB", fastdct=True, fastupsample=True, **k)

    def pil_bicubic(b):
        return W.decode_pillow(b)

    def pil_bilinear(b):
        im = Image.open(io.BytesIO(b)).convert("RGB")
        return np.asarray(im.resize(W.target_size(*im.size), Image.BILINEAR))

    def pil_reduce(b):
        im = Image.open(io.BytesIO(b))
        t = W.target_size(*im.size)
        im.draft("RGB", t)
        return np.asarray(im.convert("RGB").resize(t, Image.BILINEAR))

    def cv(b):
        return W.decode_cv2(b)

    def cv_bgr_linear(b):
        a = cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR)
        return cv2.cvtColor(
            cv2.resize(a, W.target_size(a.shape[1], a.shape[0]), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB
        )

    def sj_area(b):
        return cvsize(simplejpeg.decode_jpeg(b, "RGB"))

    def sj_fast_linear(b):
        a = sj(b)
        return cv2.resize(a, W.target_size(a.shape[1], a.shape[0]), interpolation=cv2.INTER_LINEAR)

    m = {
        "pillow decode + bicubic": pil_bicubic,
        "pillow decode + bilinear": pil_bilinear,
        "pillow draft + bilinear": pil_reduce,
        "cv2.imdecode RGB + area": cv,
        "cv2.imdecode BGR + linear": cv_bgr_linear,
        "simplejpeg + cv2 area": sj_area,
        "simplejpeg fastdct/fastupsample + cv2 linear": sj_fast_linear,
    }
    if tj:
        m["PyTurboJPEG + cv2 area"] = lambda b: cvsize(tj.decode(b, pixel_format=0))
    only = {
        "decode only: pillow": lambda b: np.asarray(Image.open(io.BytesIO(b)).convert("RGB")),
        "decode only: cv2": lambda b: cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR),
        "decode only: simplejpeg": lambda b: simplejpeg.decode_jpeg(b, "RGB"),
        "decode only: simplejpeg fast": sj,
    }

    # a smaller vision budget (256 tokens of 28x28 = 200k pixels): where scaled DCT decoding pays
    def small(w, h):
        s = min(1.0, (256 * W.PATCH**2 / (w * h)) ** 0.5)
        return max(28, round(w * s / 28) * 28), max(28, round(h * s / 28) * 28)

    def s_pil(b):
        im = Image.open(io.BytesIO(b)).convert("RGB")
        return np.asarray(im.resize(small(*im.size), Image.BICUBIC))

    def s_pil_draft(b):
        im = Image.open(io.BytesIO(b))
        t = small(*im.size)
        im.draft("RGB", t)
        return np.asarray(im.convert("RGB").resize(t, Image.BICUBIC))

    def s_cv(b):
        a = cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(a, small(a.shape[1], a.shape[0]), interpolation=cv2.INTER_AREA)

    def s_cv2(b):
        h, w, *_ = simplejpeg.decode_jpeg_header(b)
        t = small(w, h)
        f = cv2.IMREAD_REDUCED_COLOR_2 if w >= 2 * t[0] else cv2.IMREAD_COLOR
        return cv2.cvtColor(
            cv2.resize(cv2.imdecode(np.frombuffer(b, np.uint8), f), t, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB
        )

    def s_sj(b):
        h, w, *_ = simplejpeg.decode_jpeg_header(b)
        t = small(w, h)
        return cv2.resize(
            simplejpeg.decode_jpeg(b, "RGB", fastdct=True, fastupsample=True, min_height=t[1], min_width=t[0]),
            t,
            interpolation=cv2.INTER_AREA,
        )

    s = {
        "<=256 tokens: pillow bicubic": s_pil,
        "<=256 tokens: pillow draft + bicubic": s_pil_draft,
        "<=256 tokens: cv2 + area": s_cv,
        "<=256 tokens: cv2 IMREAD_REDUCED_2 + area": s_cv2,
        "<=256 tokens: simplejpeg scaled DCT + area": s_sj,
    }
    meth = {**m, **only, **s}
    t = {k: [] for k in meth}
    for _k in range(rounds):
        tot = dict.fromkeys(meth, 0.0)
        for b in jpg:
            for name, f in meth.items():
                c = time.process_time()
                f(b)
                tot[name] += time.process_time() - c
        for name in meth:
            t[name].append(tot[name] / len(jpg))
    mp = statistics.mean(im.size[0] * im.size[1] for im in (Image.open(io.BytesIO(b)) for b in jpg)) / 1e6
    base = statistics.median(t["pillow decode + bicubic"])
    out = {
        "mean_mpix": mp,
        "n": len(jpg),
        "rounds": rounds,
        "turbo": cv2.getBuildInformation().split("JPEG:")[1].split("\n")[0].strip(),
    }
    out["methods"] = {
        k: {
            "img_per_cpu_s": 1 / statistics.median(v),
            "mpix_per_cpu_s": mp / statistics.median(v),
            "ratio": base / statistics.median(v),
        }
        for k, v in t.items()
    }
    pt = {}
    for name, f in {"png pillow + bicubic": pil_bicubic, "png cv2 + area": cv}.items():
        c = time.process_time()
        for b in png:
            f(b)
        pt[name] = len(png) / (time.process_time() - c)
    out["png_img_per_cpu_s"] = pt
    caps = [json.loads(m)["caption"] for _, _, m in tar_samples()][:2000]
    c = time.process_time()
    nt = sum(len(W.tokenize(x)) for x in caps)
    dt = time.process_time() - c
    out["tokenize_captions_per_cpu_s"], out["caption_tokens_per_cpu_s"] = len(caps) / dt, nt / dt
    from loaders.base import texts

    docs = [t for _, (i, t) in zip(range(2000), texts())]
    c = time.process_time()
    nt = sum(len(W.tokenize(x)) for x in docs)
    out["text_tokens_per_cpu_s"] = nt / (time.process_time() - c)
    return out


def read_bench(rounds=3):
    shards = sorted((W.S3ROOT / "wds").glob("*.tar"))
    import tarfile

    mem = []
    for s in shards[:4]:
        with tarfile.open(s) as f:
            mem += [(s.name, m.offset_data, m.size) for m in f if not m.name.endswith(".json")]
    random.Random(2).shuffle(mem)
    mem = mem[:400]
    direct = os.environ.get("BENCH_S3_DIRECT", S3["endpoint"].replace(":9001", ":9000"))
    cl = {}

    def local_whole(n):
        return len((W.S3ROOT / "wds" / n).read_bytes())

    fds = {s.name: os.open(s, os.O_RDONLY) for s in shards}
    cl["local file"] = (local_whole, lambda n, o, k: len(os.pread(fds[n], k, o)))
    import boto3
    from botocore.config import Config

    b3 = boto3.client(
        "s3",
        endpoint_url=direct,
        aws_access_key_id=S3["key"],
        aws_secret_access_key=S3["secret"],
        region_name="us-east-1",
        config=Config(max_pool_connections=32, s3={"addressing_style": "path"}),
    )
    cl["boto3"] = (
        lambda n: len(b3.get_object(Bucket="wds", Key=n)["Body"].read()),
        lambda n, o, k: len(b3.get_object(Bucket="wds", Key=n, Range=f"bytes={o}-{o + k - 1}")["Body"].read()),
    )
    try:
        import s3fs

        sf = s3fs.S3FileSystem(
            key=S3["key"], secret=S3["secret"], client_kwargs={"endpoint_url": direct, "region_name": "us-east-1"}
        )
        cl["s3fs cat_file"] = (
            lambda n: len(sf.cat_file(f"wds/{n}")),
            lambda n, o, k: len(sf.cat_file(f"wds/{n}", start=o, end=o + k)),
        )
    except Exception as e:
        print("s3fs:", e, file=sys.stderr)
    import obstore
    from obstore.store import S3Store

    os_ = S3Store(
        "wds",
        endpoint=direct,
        access_key_id=S3["key"],
        secret_access_key=S3["secret"],
        region="us-east-1",
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    cl["obstore"] = (
        lambda n: len(obstore.get(os_, n).bytes()),
        lambda n, o, k: len(obstore.get_range(os_, n, start=o, length=k)),
    )
    import pyarrow.fs as pf

    pa = pf.S3FileSystem(
        access_key=S3["key"],
        secret_key=S3["secret"],
        endpoint_override=direct.split("//")[1],
        scheme="http",
        region="us-east-1",
        force_virtual_addressing=False,
    )

    def pa_whole(n):
        with pa.open_input_stream(f"wds/{n}") as f:
            return len(f.read())

    handles = {}

    def pa_range(n, o, k):
        f = handles.get(n) or handles.setdefault(n, pa.open_input_file(f"wds/{n}"))
        return len(f.read_at(k, o))

    cl["pyarrow S3FileSystem (handle kept)"] = (pa_whole, pa_range)
    res = {k: {"whole": [], "whole_cpu": [], "r1": [], "r16": [], "r16_cpu": [], "r16_mb": []} for k in cl}
    for _ in range(rounds):
        for k, (whole, rng) in cl.items():
            try:
                t, c = time.perf_counter(), time.process_time()
                n = sum(whole(s.name) for s in shards[:3])
                dt = time.perf_counter() - t
                res[k]["whole"].append(n / dt / 1e6)
                res[k]["whole_cpu"].append(n / (time.process_time() - c) / 1e6)
                t = time.perf_counter()
                for m in mem[:80]:
                    rng(*m)
                res[k]["r1"].append(80 / (time.perf_counter() - t))
                with ThreadPoolExecutor(16) as ex:
                    t, c = time.perf_counter(), time.process_time()
                    n = sum(ex.map(lambda m: rng(*m), mem))
                    dt = time.perf_counter() - t
                res[k]["r16"].append(len(mem) / dt)
                res[k]["r16_mb"].append(n / dt / 1e6)
                res[k]["r16_cpu"].append(len(mem) / (time.process_time() - c))
            except Exception as e:
                res[k]["error"] = f"{type(e).__name__}: {e}"[:200]

    # obstore has a call of its own for many ranges of one file, and asyncio
    def med(v):
        return round(statistics.median(v), 1) if v else None

    out = {k: {x: (med(y) if isinstance(y, list) else y) for x, y in v.items()} for k, v in res.items()}
    by = {}
    for n, o, k in mem:
        by.setdefault(n, []).append((o, k))
    try:
        t = time.perf_counter()
        for n, rs in by.items():
            obstore.get_ranges(os_, n, starts=[r[0] for r in rs], lengths=[r[1] for r in rs])
        out["obstore get_ranges (coalesced)"] = {"r16": round(len(mem) / (time.perf_counter() - t), 1)}
    except Exception as e:
        out["obstore get_ranges (coalesced)"] = {"error": str(e)[:120]}
    return out


if __name__ == "__main__":
    print("RESULT " + json.dumps({"decode": decode_bench, "read": read_bench}[sys.argv[1]]()))
