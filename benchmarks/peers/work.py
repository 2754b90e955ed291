"""The work that every peer does on a sample, so that only the loader differs.

decode -> RGB -> resize to the patch grid -> tokenize the caption; and one greedy packer that the peers
without packing of their own use.
"""

import io
import json
import os
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("BENCH_DATA", "/tmp/benchdata"))
S3ROOT = DATA / "s3root"
PATCH, MAX_TOKENS, SEQ = 28, 1024, 4096
EOS, IMG, PAD = 0, 1, 2
DECODER = os.environ.get("BENCH_DECODER", "pillow")
_tok = None


def target_size(w, h):
    """Nearest multiple-of-28 size, scaled down where it would exceed 1024 patches. Never scales up past rounding."""
    s = min(1.0, (MAX_TOKENS * PATCH * PATCH / (w * h)) ** 0.5)
    gw, gh = max(1, round(w * s / PATCH)), max(1, round(h * s / PATCH))
    while gw * gh > MAX_TOKENS:
        if gw >= gh:
            gw -= 1
        else:
            gh -= 1
    return gw * PATCH, gh * PATCH


def decode_pillow(b):
    from PIL import Image

    im = Image.open(io.BytesIO(b))
    im = im.convert("RGB")
    return np.asarray(im.resize(target_size(*im.size), Image.BICUBIC))


def decode_cv2(b):
    import cv2

    a = cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR_RGB)
    w, h = target_size(a.shape[1], a.shape[0])
    return cv2.resize(a, (w, h), interpolation=cv2.INTER_AREA)


def decode_k25(b):
    from k25_pipelines.sample.decode import decode_image
    from k25_pipelines.sample.resample import resized

    a = decode_image(b)
    h, w = a.shape[:2]
    return resized(a, target_size(w, h), (0.0, 0.0, float(w), float(h)))


def decode(b):
    return {"pillow": decode_pillow, "cv2": decode_cv2, "k25": decode_k25}[DECODER](b)


def tokenizer():
    global _tok
    if _tok is None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        _tok = Tokenizer.from_file(str(DATA / "tokenizer.json"))
    return _tok


def tokenize(s):
    return np.asarray(tokenizer().encode(s).ids, np.int32)


AS_TENSOR = True  # torch loaders move tensors between processes through shared memory, arrays through a pipe


def _t(a):
    if not AS_TENSOR:
        return a
    import torch

    return torch.from_numpy(a if a.flags.writeable else a.copy())


LIGHT = os.environ.get("BENCH_LIGHT") == "1"  # ids only: for the order checks, where decoding adds nothing


def image_sample(img_bytes, meta_bytes):
    m = json.loads(meta_bytes)
    if LIGHT:
        return {"id": m["id"]}
    a = decode(bytes(img_bytes))
    return {
        "id": m["id"],
        "pixels": _t(a),
        "tokens": tokenize(m["caption"]),
        "nvis": a.shape[0] * a.shape[1] // PATCH**2,
    }


def text_sample(id_, text):
    if LIGHT:
        return {"id": id_}
    return {"id": id_, "pixels": None, "tokens": tokenize(text), "nvis": 0}


def length(s):
    return s["nvis"] + len(s["tokens"]) + 1


def pieces(s):
    """A sample as pieces of at most SEQ tokens (long text is split, a picture never is)."""
    n = length(s)
    if n <= SEQ:
        return [s]
    t, out = s["tokens"], []
    for k in range(0, len(t), SEQ - 1):
        out.append({"id": s["id"], "pixels": None, "tokens": t[k : k + SEQ - 1], "nvis": 0})
    return out


def assemble(group):
    ids, imgs, keys, nv, nt = np.full(SEQ, PAD, np.int32), [], [], 0, 0
    p = 0
    for s in group:
        if s["nvis"]:
            ids[p : p + s["nvis"]] = IMG
            p += s["nvis"]
            imgs.append(s["pixels"])
            nv += s["nvis"]
        k = len(s["tokens"])
        ids[p : p + k] = s["tokens"]
        ids[p + k] = EOS
        p += k + 1
        nt += k + 1
        keys.append(s["id"])
    return {"id": "+".join(keys), "tokens": _t(ids), "images": imgs, "nvis": nv, "ntext": nt}


def pack(stream, buffer=32):
    """Greedy first-fit over a small buffer: oldest sample first, then whatever still fits."""
    buf = []
    it = iter(stream)
    done = False
    while True:
        while not done and len(buf) < buffer:
            try:
                buf.extend(pieces(next(it)))
            except StopIteration:
                done = True
        if not buf:
            return
        group, room, rest = [], SEQ, []
        for s in buf:
            n = length(s)
            if n <= room:
                group.append(s)
                room -= n
            else:
                rest.append(s)
        buf = rest
        yield assemble(group)


def manifest():
    return json.loads((DATA / "manifest.json").read_text())


def blend_weights(vision_share=0.10):
    """Per-sample probabilities (image+caption, text) whose expected vision tokens are vision_share of all."""
    m = manifest()
    v, c, x = m["mean_vision_tokens"], m["mean_caption_tokens"] + 1, m["mean_doc_tokens"] + 1
    # r = image samples per text sample: r*v = share * (r*(v+c) + x)
    r = vision_share * x / (v - vision_share * (v + c))
    return r / (1 + r), 1 / (1 + r)
