"""The interface that every peer module implements.

    NAME       short name
    PACKAGES   distributions whose versions are recorded
    prepare()  convert / index the corpus into the peer's own layout under BENCH_DATA/s3root (idempotent);
               returns {"seconds", "bytes"} of the conversion
    make(cfg)  -> a Loader

A Loader is iterable (batches: lists of dicts with at least "id"), and has
    state()      -> a picklable checkpoint of what was handed out so far, or None where the peer has none
    load(state)  before iterating
cfg is a Cfg. mode "image": one batch is cfg.batch decoded samples. mode "blend": one batch is one packed
sequence of work.SEQ tokens.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import work as W

S3 = {
    "endpoint": os.environ.get("BENCH_S3_ENDPOINT", "http://127.0.0.1:9001"),
    "key": os.environ.get("BENCH_S3_KEY", "bench"),
    "secret": os.environ.get("BENCH_S3_SECRET", "benchsecret"),
}


@dataclass
class Cfg:
    mode: str = "image"
    source: str = "local"  # local | s3
    workers: int = 2
    rank: int = 0
    world: int = 1
    seed: int = 1
    batch: int = 8
    scratch: str = ""  # fresh empty folder for the peer's own cache
    extra: dict = field(default_factory=dict)


class Once:
    """with Once(folder) as todo: if todo: build it; records the time and size."""

    def __init__(self, folder):
        self.f = Path(folder)
        self.mark = self.f.parent / (self.f.name + ".built.json")

    def __enter__(self):
        self.t = time.time()
        self.todo = not self.mark.exists()
        if self.todo:
            import shutil

            shutil.rmtree(self.f, ignore_errors=True)
            self.f.mkdir(parents=True)
        return self.todo

    def __exit__(self, et, *_):
        if et is None and self.todo:
            n = sum(p.stat().st_size for p in self.f.rglob("*") if p.is_file())
            self.mark.write_text(json.dumps({"seconds": round(time.time() - self.t, 2), "bytes": n}))

    def info(self):
        return json.loads(self.mark.read_text())


def tar_samples(d=None):
    """(id, image bytes, meta bytes) for every sample of the corpus, in order."""
    import tarfile

    for t in sorted((d or W.S3ROOT / "wds").glob("*.tar")):
        with tarfile.open(t) as f:
            cur, parts = None, {}
            for m in f:
                stem, _, ext = m.name.rpartition(".")
                if stem != cur and cur is not None:
                    yield cur, parts.get("jpg") or parts.get("png"), parts["json"]
                    parts = {}
                cur = stem
                parts[ext] = f.extractfile(m).read()
            if cur is not None:
                yield cur, parts.get("jpg") or parts.get("png"), parts["json"]


def texts():
    for p in sorted((W.S3ROOT / "text").glob("*.jsonl")):
        with open(p) as f:
            for line in f:
                r = json.loads(line)
                yield r["id"], r["text"]


def text_tars():
    """Text as webdataset tars (KEY.txt), for the peers that read only tars."""
    import io
    import tarfile

    out = W.S3ROOT / "textwds"
    with Once(out) as todo:
        if todo:
            tf, n, k = None, 0, 0
            for id_, t in texts():
                if tf is None or n > 8 << 20:
                    if tf:
                        tf.close()
                    tf, n, k = tarfile.open(out / f"text-{k:05d}.tar", "w", format=tarfile.USTAR_FORMAT), 0, k + 1
                b = t.encode("utf-8", "replace")
                ti = tarfile.TarInfo(f"{id_}.txt")
                ti.size = len(b)
                tf.addfile(ti, io.BytesIO(b))
                n += len(b) + 1024
            tf.close()
    return out


def worker_seed(cfg):
    import torch.utils.data as tud

    w = tud.get_worker_info()
    wid, wn = (w.id, w.num_workers) if w else (0, 1)
    return cfg.rank * wn + wid, cfg.world * wn
